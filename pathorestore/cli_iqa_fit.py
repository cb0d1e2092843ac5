"""`pathorestore iqa-fit`: what it takes, calls and prints."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.evaluation.iqa_fit import FitResult

Bar = Callable[[int, int], None]


def fill_iqa_fit(command: "ArgumentParser") -> None:
    """Declare the verb's own options."""
    command.add_argument("folder", type=str, metavar="FOLDER", help="folder of sharp images, or a manifest (.csv, .parquet)")
    command.add_argument("-o", "--output", required=True, type=str, help="folder for the parameters, two files of each kind")
    command.add_argument("--kind", choices=("niqe", "brisque", "both"), default="both", help="what to fit")
    command.add_argument("--limit", type=int, default=0, help="take so many of the images, drawn by the seed; default: all")
    command.add_argument("--seed", type=int, default=0, help="seed of the split, the simulated noise and the centres of the regression")
    command.add_argument("--crop", type=int, default=384, help="side in px of the central crop that is degraded")
    command.add_argument("--patch", type=int, default=96, help="side in px of the patches of NIQE")
    command.add_argument("--overwrite", action="store_true", help="replace parameters that exist")
    command.add_argument("-q", "--quiet", action="store_true", help="print failures only")


def run_iqa_fit(arguments: "Namespace", bar: Bar = lambda *_: None) -> int:
    """Fit, write, tell, and return the exit code."""
    from pathorestore.atomic import refuse_existing
    from pathorestore.evaluation.iqa_fit import FitOptions, fit_iqa
    from pathorestore.metrics import brisque, niqe

    options = FitOptions(kind=arguments.kind, limit=arguments.limit, seed=arguments.seed, crop_px=arguments.crop, patch_px=arguments.patch)
    output = Path(arguments.output)
    kinds = ("niqe", "brisque") if arguments.kind == "both" else (arguments.kind,)
    # before anything is computed, which takes minutes
    refuse_existing(*(output / f"{kind}.{end}" for kind in kinds for end in ("safetensors", "json")), overwrite=arguments.overwrite)
    quiet = arguments.quiet
    found = fit_iqa(Path(arguments.folder), options, progress=bar, note=(lambda _: None) if quiet else _note)
    written: list[Path] = []
    if found.niqe:
        written += niqe.save_parameters(found.niqe, output)
    if found.brisque:
        written += brisque.save_parameters(found.brisque, output)
    if not quiet:
        print(_table(found))
        print("\n".join(f"written: {path}" for path in written))
    return 0


def _note(line: str) -> None:
    print(f"note: {line}", flush=True)


def _table(found: "FitResult") -> str:
    from pathorestore.evaluation.iqa_levels import DEGRADATIONS
    from pathorestore.pipelines.report_text import aligned

    facts = found.facts
    head = f"fitted to {facts.files} images of {facts.groups} groups; held out: {facts.held_out}"
    if not facts.held_out:
        return f"{head}, so nothing says how well it does: give images of two patients or more"
    rows = [["degradation", "strengths", *(text for name in found.agreement for text in (name, "per image"))]]
    medians = [["degradation", *found.agreement]]
    for one in DEGRADATIONS:
        known = [found.agreement[name][one.name] for name in found.agreement]
        strengths = f"{', '.join(f'{strength:g}' for strength in one.strengths)} {one.unit}"
        rows.append([one.name, strengths, *(f"{value:.3f}" for figure in known for value in (figure.pooled, figure.within))])
        medians.append([one.name, *(", ".join(f"{value:.1f}" for value in figure.medians) for figure in known)])
    right = frozenset(range(2, 2 + 2 * len(found.agreement)))
    told = "Spearman's rank correlation of the score with the level, over all held-out images and within each:"
    middle = "Median score of the held-out images at levels 0 (sharp) to 5:"
    return "\n".join([head, told, aligned(rows, right=right), middle, aligned(medians)])
