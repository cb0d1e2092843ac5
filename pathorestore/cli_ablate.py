"""`pathorestore ablate`: what it takes, and the run that it asks for."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.training.ablation import Ablation


def fill_ablate(command: "ArgumentParser") -> None:
    """Declare the verb's own options."""
    kinds = ("router", "prompts", "estimator", "encoder")
    command.add_argument("kind", choices=kinds, help="which comparison: tables 4, 5, 6 and 7 of the paper")
    command.add_argument("--manifest", required=True, type=str, help="CSV or Parquet of sharp images, as `data make` writes it")
    command.add_argument("--preset", choices=("tiny", "base"), default="tiny", help="sizes and training of the package's configurations")
    command.add_argument("--minutes", type=float, default=None, help="training of each row, from which one number of steps for all follows")
    command.add_argument("--steps", type=int, default=None, help="training steps of each row, in place of minutes")
    command.add_argument("-o", "--out", type=str, default=None, help="folder of the results; default: runs/ablation-KIND")
    command.add_argument("--parts", type=str, default="embedded", help="folder of parts trained before; default: the embedded mop-tiny")
    command.add_argument("--seed", type=int, default=0, help="seed of weights, crops and simulation; the same for all rows")
    command.add_argument("--rows", type=str, default="", help="names of the rows wanted, parted by commas, e.g. F,F+P_P; default: all")
    command.add_argument("--images", type=int, default=16, help="most validation images to measure on")
    command.add_argument("--crop", type=int, default=256, help="side in px that they are cut to")
    further = "a further encoder: NAME=TIMM_MODEL:CHECKPOINT, or NAME=uni, NAME=gigapath with your own access to the hub; may be repeated"
    command.add_argument("--encoder", action="append", type=str, default=[], metavar="SPEC", help=further)


def ablation_of(arguments: "Namespace") -> "Ablation":
    """The run that the arguments ask for."""
    from pathorestore.training.ablation import Ablation

    return Ablation(
        kind=arguments.kind,
        manifest=Path(arguments.manifest),
        preset=arguments.preset,
        minutes=arguments.minutes,
        steps=arguments.steps,
        out=Path(arguments.out) if arguments.out else None,
        parts=arguments.parts,
        seed=arguments.seed,
        rows=tuple(name.strip() for name in arguments.rows.split(",") if name.strip()),
        images=arguments.images,
        crop_px=arguments.crop,
        encoders=tuple(arguments.encoder),
    )
