"""The verbs around training, `pathorestore export` and `pathorestore ablate`: what they take and what they print."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.training.ablation import Ablation


def fill_export(command: "ArgumentParser") -> None:
    """Declare the options of `export`."""
    command.add_argument("checkpoint", type=str, metavar="CKPT", help="checkpoint of a run, such as runs/pformer/checkpoints/last.ckpt")
    command.add_argument(
        "-o", "--output", required=True, type=str, help="folder for weights; `restore --model` or `upscale --model` takes it"
    )
    command.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32", help="number format of the stored weights")
    command.add_argument("--overwrite", action="store_true", help="replace a folder that exists")


def run_export(arguments: "Namespace") -> int:
    """Export a checkpoint and say what was written; returns the exit code."""
    from pathorestore.training.export import export

    exported = export(Path(arguments.checkpoint), Path(arguments.output), dtype=arguments.dtype, overwrite=arguments.overwrite)
    weights = "moving average" if exported.averaged else "weights of the last step"
    print(f"{exported.kind}   {exported.folder}\nparts    {', '.join(exported.parts)}\nweights  {weights}")
    return 0


def fill_ablate(command: "ArgumentParser") -> None:
    """Declare the options of `ablate`."""
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


def run_ablate(arguments: "Namespace") -> int:
    """Run an ablation and print its table; returns the exit code."""
    from pathorestore.training.ablation import run_ablation

    table = run_ablation(ablation_of(arguments), say=lambda line: print(line, flush=True), progress=sys.stderr.isatty())
    print(f"\n{table.read_text(encoding='utf-8')}\ntable: {table}")
    return 0
