"""`pathorestore evaluate`: what it takes, calls and prints."""

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.evaluation.options import EvaluateOptions
    from pathorestore.evaluation.plan import Plan

Bar = Callable[[str], Callable[..., None]]
Say = Callable[[str], None]
_REPEATED = ("restored", "model", "coarse", "unprompted")  # options that add to what was given


def fill_evaluate(command: "ArgumentParser") -> None:
    """Declare the verb's options."""
    protocol = "options in a YAML file, or a protocol of the package by its name: lpfm; all others count over these"
    command.add_argument("--config", type=str, default=None, metavar="NAME_OR_FILE", help=protocol)  # see `with_protocols`
    images = command.add_argument_group("images")
    images.add_argument("--clean", type=str, default=None, metavar="FOLDER", help="sharp images; others belong to them by their names")
    images.add_argument("--degraded", type=str, default=None, metavar="FOLDER", help="the same images, degraded, for models to restore")
    images.add_argument(
        "--manifest", type=str, default=None, metavar="FILE", help="pairs or sharp images of a manifest, instead of --clean"
    )
    images.add_argument("--split", type=str, default="val", help="which rows of the manifest")
    images.add_argument("--facts", type=str, default=None, metavar="CSV", help="columns file, slide, patient, mpp, z_um, as far as known")
    images.add_argument("--simulate", nargs="+", type=float, default=None, metavar="Z", help="put sharp images out of focus by so many um")
    images.add_argument("--setting", choices=("ideal", "scanner", "shifted"), default="ideal", help="of the simulator")
    smaller = "make sharp images smaller by so many times, for upscalers; --model then names these, and bicubic is the baseline"
    images.add_argument("--reduce", nargs="+", type=float, default=None, metavar="SCALE", help=smaller)
    images.add_argument("--blur", type=float, default=1.0, help="before --reduce: 1 as in ISTE's recipe, sigma (SCALE - 1) / 2 px; 0 none")
    tasks = "make sharp images examples of tasks for prompted models, such as denoise; all: every task; what goes in is the baseline"
    images.add_argument("--task", nargs="+", type=str, default=None, metavar="NAME", help=tasks)
    images.add_argument("--crop", type=int, default=0, metavar="PX", help="judge at most so much of each side, around the centre; 0: all")
    images.add_argument("--limit", type=int, default=None, help="only so many images, evenly spread")
    _fill_methods(command)
    _fill_metrics(command)
    command.add_argument("-o", "--output", required=True, type=str, help="folder for report.html, scores.csv, summary.json and more")
    command.add_argument("--overwrite", action="store_true", help="begin anew where that folder holds an evaluation")
    command.add_argument("--title", type=str, default="", help="of the report")
    command.add_argument("--pictures", type=int, default=10, help="so many images in the report's comparer, besides best and worst")
    command.add_argument("--json", action="store_true", help="print the summary as JSON on stdout, all else on stderr")
    command.add_argument("-q", "--quiet", action="store_true", help="print failures only")


def _fill_methods(command: "ArgumentParser") -> None:
    methods = command.add_argument_group("methods")
    named = "may be given more than once"
    methods.add_argument("--restored", action="append", type=str, metavar="NAME=FOLDER", help=f"images restored by whatever; {named}")
    methods.add_argument("--model", action="append", type=str, metavar="NAME=MODEL", help=f"folder, hub repository or `default`; {named}")
    methods.add_argument("--coarse", action="append", type=str, metavar="NAME=MODEL", help=f"first stage of a model alone; {named}")
    methods.add_argument("--unprompted", action="append", type=str, metavar="NAME=MODEL", help=f"a model without its prompt; {named}")
    baselines = "compared besides; the unsharp mask and the Wiener filter (simulated images only) are tuned for the highest PSNR"
    words = ("degraded", "unsharp", "wiener", "none")
    methods.add_argument("--baseline", nargs="+", choices=words, default=["degraded"], help=baselines)
    methods.add_argument("--tune-on", type=str, default=None, metavar="FOLDER", help="sharp images for that; default: the measured ones")
    methods.add_argument("--reference", type=str, default="", metavar="NAME", help="method that is tested against all; default: the last")
    methods.add_argument("--risk", action="store_true", help="judge the models' risk maps too: do they know where the errors are?")
    methods.add_argument("--risk-seeds", type=int, default=3, help="runs of second stages for them")
    methods.add_argument("--tile", type=int, default=256, help="side of the models' tiles in px")
    methods.add_argument("--overlap", type=int, default=32, help="overlap of neighbouring tiles in px")
    methods.add_argument("--steps", type=int, default=None, help="steps of second stages")
    methods.add_argument("--sampler", choices=("ddpm", "ddim", "dpm++"), default=None, help="of generative upscalers")
    methods.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where models compute")
    methods.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto takes bf16 on CUDA that has it")
    methods.add_argument("--seed", type=int, default=0, help="of simulated noise and second stages")


def _fill_metrics(command: "ArgumentParser") -> None:
    metrics = command.add_argument_group("metrics")
    metrics.add_argument("--metrics", nargs="+", type=str, default=None, metavar="NAME", help="default: all that can be had here")
    level = "fov: measure whole images; patch: patches, averaged over each image"
    metrics.add_argument("--level", choices=("fov", "patch"), default="fov", help=level)
    metrics.add_argument("--patch", type=int, default=256, metavar="PX", help="side of these patches")
    segmenter = "of nuclei: watershed, instanseg[=FILE], precomputed=FOLDER, hovernet=CHECKPOINT, stardist=FOLDER"
    metrics.add_argument("--segmenter", type=str, default="watershed", help=segmenter)
    encoder = "of embeddings: default, FOLDER of a TinyEncoder, TIMM_NAME=CHECKPOINT, uni, gigapath (both from the hub)"
    metrics.add_argument("--encoder", type=str, default="default", help=encoder)
    iqa = "folder of parameters of NIQE and BRISQUE, as `pathorestore iqa-fit` writes it; default: the embedded ones"
    metrics.add_argument("--iqa", type=str, default=None, metavar="FOLDER", help=iqa)
    group = "what intervals are drawn over; auto: patients if all are known, else slides, else images"
    metrics.add_argument("--group", choices=("auto", "image", "slide", "patient"), default="auto", help=group)


def with_protocols(words: Sequence[str]) -> list[str]:
    """The command line with the options that every `--config NAME_OR_FILE` holds right behind the verb, so that all others count over them.

    Raises ValueError for what is neither a file nor a protocol of the package, and for files that hold no options.
    """
    verb, *rest = words
    given, protocols = [], []
    following = iter(rest)
    for word in following:
        name, equals, value = word.partition("=")
        if name == "--config":
            protocols += _as_words(_wishes(value if equals else next(following, "")))
        else:
            given.append(word)
    return [verb, *protocols, *given]


def _as_words(wishes: dict[str, Any]) -> list[str]:
    words = []
    for option, wish in wishes.items():
        values = [str(one) for one in (wish if isinstance(wish, list) else [wish])]
        if wish is True:
            words.append(f"--{option}")
        elif wish in (None, False, []):
            continue
        elif option in _REPEATED or not isinstance(wish, list):
            words += [f"--{option}={one}" for one in values]
        else:
            words += [f"--{option}", *values]
    return words


def _wishes(name_or_file: str) -> dict[str, Any]:
    import yaml

    home = Path(__file__).parent / "evaluation" / "protocols"
    names = sorted(path.stem for path in home.glob("*.yaml"))
    file = home / f"{name_or_file}.yaml" if name_or_file in names else Path(name_or_file)
    if not file.is_file():
        raise ValueError(f"--config {name_or_file!r} is neither a file nor a protocol of the package: {', '.join(names)}")
    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {file}: is not YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(held, dict) or not all(isinstance(option, str) and option != "config" for option in held):
        raise ValueError(f"--config {file}: expected options and their values, such as crop: 128; got {type(held).__name__}")
    return held


def run_evaluate(arguments: "Namespace", bar: Bar, clock: Callable[[], str], error: Say) -> int:
    """Evaluate, write the files, and return the exit code: 0, or 1 if some images could not be judged."""
    from pathorestore.evaluation.plan import plan
    from pathorestore.evaluation.tables import terminal_text
    from pathorestore.evaluation.write import open_folder, write_all

    say = _printer(arguments)
    start, options, folder = perf_counter(), evaluate_options(arguments), Path(arguments.output)
    ready = plan(options, progress=bar("tile"))
    with open_folder(folder, ready, overwrite=arguments.overwrite) as journal:
        evaluation = ready.evaluation(journal, progress=bar("image tuned on"))
        for name, why in ready.left_out.items():
            say(f"left out: {name}: {why}")
        try:
            written = write_all(
                folder,
                ready,
                evaluation,
                journal,
                facts=lambda: _facts(ready, clock, perf_counter() - start),
                progress=bar("image"),
                on_failure=lambda case, method, why: error(f"{case}, {method}: {why}"),
            )
        except KeyboardInterrupt:
            error("interrupted; what is measured is kept, the same command goes on from here")
            return 130
    if arguments.json:
        print(json.dumps(written.summary.to_dict(), indent=1))
    say(terminal_text(written.summary))
    for line in (*(str(path) for path in written.files), *written.notes):
        say(line)
    return 1 if written.summary.failures else 0


def evaluate_options(arguments: "Namespace") -> "EvaluateOptions":
    """The arguments as options. Raises ValueError for NAME=VALUE words that are none."""
    from pathorestore.evaluation.options import EvaluateOptions
    from pathorestore.pipelines.assemble import RestoreOptions

    paths: dict[str, Any] = {
        name: Path(value) if (value := arguments[name]) else None for name in ("clean", "degraded", "manifest", "facts", "tune_on", "iqa")
    }
    if arguments.patch < 16:
        raise ValueError(f"--patch {arguments.patch} is too small; expected at least 16 px, such as 256")
    restore = RestoreOptions(
        steps=arguments.steps,
        tile_px=arguments.tile,
        overlap_px=arguments.overlap,
        device=arguments.device,
        precision=arguments.precision,
        seed=arguments.seed,
    )
    return EvaluateOptions(
        **paths,
        split=arguments.split,
        simulate=tuple(arguments.simulate or ()),
        setting=arguments.setting,
        reduce=tuple(arguments.reduce or ()),
        tasks=tuple(arguments.task or ()),
        blur=arguments.blur,
        restored=named(arguments.restored or (), "--restored"),
        models=named(arguments.model or (), "--model"),
        coarse=named(arguments.coarse or (), "--coarse"),
        unprompted=named(arguments.unprompted or (), "--unprompted"),
        baselines=tuple(name for name in arguments.baseline if name != "none"),
        metrics=tuple(arguments.metrics or ()),
        segmenter=arguments.segmenter,
        encoder=arguments.encoder,
        patch_px=arguments.patch if arguments.level == "patch" else 0,
        crop_px=arguments.crop,
        limit=arguments.limit,
        grouping=arguments.group,
        reference=arguments.reference,
        title=arguments.title,
        pictures=arguments.pictures,
        risk=arguments.risk,
        risk_seeds=arguments.risk_seeds,
        restore=restore,
        sampler=arguments.sampler,
    )


def named(words: Sequence[str], option: str) -> tuple[tuple[str, str], ...]:
    """NAME=VALUE words as pairs. Raises ValueError for a word without name or value."""
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not name.strip() or not equals or not value:
            raise ValueError(f"{option} {word!r} must be NAME=VALUE, such as mine=folder")
        pairs.append((name.strip(), value))
    return tuple(pairs)


def _printer(arguments: "Namespace") -> Say:
    def say(line: str) -> None:
        if not arguments.quiet:
            print(line, file=sys.stderr if arguments.json else sys.stdout, flush=True)

    return say


def _facts(ready: "Plan", clock: Callable[[], str], seconds: float) -> dict[str, Any]:
    """The machine, the software and the settings, for the record."""
    import torch

    from pathorestore.version import __version__

    return {
        "created_utc": clock(),
        "pathorestore": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": round(seconds, 1),
        **ready.facts,
    }
