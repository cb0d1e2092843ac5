"""The command `pathorestore`: parse, call a pipeline, print. Nothing heavy is imported before the arguments are understood."""

import io
import json
import logging
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pathorestore.cli_classify import fill_classify, run_classify
from pathorestore.cli_data import fill_data, run_data
from pathorestore.cli_evaluate import fill_evaluate, run_evaluate, with_protocols
from pathorestore.cli_fuse import fill_fuse, stacks_to_fuse
from pathorestore.cli_iqa import fill_iqa, run_iqa
from pathorestore.cli_iqa_fit import fill_iqa_fit, run_iqa_fit
from pathorestore.cli_jobs import batch_on, fill_engine, fill_jobs, run_jobs
from pathorestore.cli_options import fill_batch, fill_demo, fill_info, fill_model, fill_simulate
from pathorestore.cli_qc import files_to_judge, fill_qc
from pathorestore.cli_restore import files_to_restore, fill_restore, restore_elsewhere
from pathorestore.cli_slides import estimates
from pathorestore.cli_terminal import bar, termination_as_interruption
from pathorestore.cli_training import fill_ablate, fill_export, run_ablate, run_export
from pathorestore.cli_upscale import files_to_upscale, fill_enhance, fill_stain, fill_upscale, upscale_elsewhere
from pathorestore.cli_view import fill_view, run_view
from pathorestore.slide.restore_any import StopSignal
from pathorestore.version import __version__

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.pipelines.batch import AnyJob, BatchReport, Done, Existing, FileResult, Job
    from pathorestore.slide.distributed import FileWork
    from pathorestore.slide.restore_any import RestoreAny

_PROGRAM = "pathorestore"
_PLACES = {name: name.upper() for name in ("sharp", "stack", "folder", "manifest")}
_PLACES |= {"inputs": "INPUT", "restored": "OUT", "output": "-o/--output", "images": "FOLDER_OR_MANIFEST"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 all well, 1 some files failed, 2 usage or model, 130 interrupted."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its remarks about odd tags would be taken for ours
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no text
    if not words:
        return _fail(f"name a command: {', '.join(_COMMANDS)}; see {_PROGRAM} --help", 2)
    try:
        return _run(words)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except ArgumentError as error:
        known = [word for word in words[:1] if word in _COMMANDS or word in _TRAINING]
        return _fail(f"{_plain(str(error))}; see {' '.join([_PROGRAM, *known])} --help", 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, and Python would complain about it at exit
        return 1
    except Exception as error:
        if "--verbose" in words:
            traceback.print_exc()
        return _report(error, one_by_one=words[0] not in ("restore", "upscale", "enhance", "stain", "data", "evaluate", "qc"))


def _run(words: list[str]) -> int:
    if words[0] in _TRAINING:
        from pathorestore.training.cli import run

        return run(words)
    arguments = _parser().parse_args(with_protocols(words) if words[0] == "evaluate" else words)
    return _COMMANDS[arguments.command](arguments[arguments.command])


def _report(error: Exception, *, one_by_one: bool) -> int:
    from pathorestore.pipelines.batch import EXIT_SOME_FAILED, EXIT_USAGE, explain
    from pathorestore.pipelines.raster import ImageFileError

    about_files = isinstance(error, ImageFileError) or (isinstance(error, OSError) and one_by_one)
    foreseen = isinstance(error, ValueError | OSError | ImportError)
    line = str(error) if isinstance(error, ImportError) else explain(error)
    return _fail(line, EXIT_SOME_FAILED if about_files or not foreseen else EXIT_USAGE)


def _restore(arguments: "Namespace") -> int:
    return _images_and_slides(arguments, restore_elsewhere(arguments, _now), files_to_restore, done="restored")


def _upscale(arguments: "Namespace") -> int:
    return _images_and_slides(arguments, upscale_elsewhere(arguments, _now), files_to_upscale, done="enlarged")


def _enhance(arguments: "Namespace") -> int:
    return _images_and_slides(arguments, upscale_elsewhere(arguments, _now), files_to_upscale, done="enhanced")


def _stain(arguments: "Namespace") -> int:
    return _images_and_slides(arguments, upscale_elsewhere(arguments, _now), files_to_upscale, done="stained")


def _images_and_slides(
    arguments: "Namespace",
    elsewhere: "Callable[[str], FileWork]",
    files: "Callable[..., tuple[list[Job], RestoreAny]]",
    *,
    done: str,
) -> int:
    stop, run = StopSignal(_tell), batch_on(arguments, elsewhere)
    jobs, work = files(arguments, _now, lambda unit: bar(unit, quiet=arguments.quiet), stop)
    if arguments.dry_run:
        from pathorestore.pipelines.report_text import aligned

        rows, code = estimates(jobs, work, _error)
        print(aligned(rows, right=frozenset(range(1, 7))))
        return code
    with stop.heard():
        return _batch(jobs, work, arguments, run=run, done=done)


def _batch(
    jobs: "Sequence[AnyJob]",
    work: "Callable[[AnyJob], Done]",
    arguments: "Namespace",
    *,
    run: "Callable[..., BatchReport]",
    done: str = "restored",
) -> int:
    """Do the work on every job, tell of each file as it ends and of all at the end; returns the exit code."""
    from pathorestore.pipelines.report_text import batch_table

    existing: Existing = "overwrite" if arguments.overwrite else "skip" if arguments.skip_existing else "refuse"
    with termination_as_interruption():
        report = run(jobs, work, existing=existing, on_result=lambda result: _show(result, arguments, done=done))
    if report.interrupted:
        _error("interrupted; finished work is kept, the same command with --skip-existing goes on from here")
    if not arguments.quiet:
        _say(batch_table(report, done=done), arguments)
    if arguments.json:
        print(json.dumps(report.to_dict(done=done), indent=2))
    return report.exit_code


def _demo(arguments: "Namespace") -> int:
    from pathorestore.pipelines.assemble import RestoreOptions, in_tiles, load_system
    from pathorestore.pipelines.demo import DEMO_SIDE_PX, PIXEL_NOTE, DemoParts, demo_image, run_demo, write_picture
    from pathorestore.pipelines.report_text import demo_table

    sharp = demo_image()
    options = RestoreOptions(model=arguments.model, revision=arguments.revision, tile_px=DEMO_SIDE_PX)
    system = load_system(options)
    parts = DemoParts(
        coarse=in_tiles(system.coarse_only(), options), two_stage=in_tiles(system, options), focus_map_um=system.prompter.defocus.heat_map
    )
    print(
        f"restoring a tissue image of {DEMO_SIDE_PX} x {DEMO_SIDE_PX} px at four focus positions, which takes a minute or two ...",
        flush=True,
    )
    rows = run_demo(parts, sharp, seed=arguments.seed, progress=bar("position", quiet=False))
    picture = Path(arguments.output) / "demo.png"
    write_picture(picture, rows)
    print(demo_table(rows))
    print("PSNR and SSIM against the clean image; the unsharp mask was tuned on that image, the networks were not.")
    print(PIXEL_NOTE)
    print(f"picture: {picture}")
    return 0


def _info(arguments: "Namespace") -> int:
    from pathorestore.pipelines.info import installation
    from pathorestore.pipelines.provenance import read_provenance
    from pathorestore.pipelines.report_text import aligned, installation_text

    if arguments.file is None:
        found = installation()
        print(json.dumps(found.to_dict(), indent=2) if arguments.json else installation_text(found))
        return 0
    record = read_provenance(Path(arguments.file))
    if record is None:
        return _fail(f"{arguments.file}: carries no provenance record of {_PROGRAM}", 1)
    print(record.to_json() if arguments.json else aligned(record.lines()))
    return 0


def _simulate(arguments: "Namespace") -> int:
    from pathorestore.pipelines.report_text import aligned
    from pathorestore.pipelines.simulate import SimulateFile

    simulate = SimulateFile(
        z_um=arguments.z,
        created_utc=_now(),
        setting=arguments.setting,
        seed=arguments.seed,
        pixel_um=arguments.pixel_um,
        overwrite=arguments.overwrite,
        max_pixels=arguments.max_pixels,
    )
    written = simulate(Path(arguments.sharp), Path(arguments.output))
    rows = [["plane", "z um", "defocus um", "ctf"]]
    rows += [[row.plane, f"{row.z_um:+.3f}", f"{row.defocus_um:+.3f}", f"{row.ctf:.3f}"] for row in written.planes]
    print("\n".join([aligned(rows, right=frozenset({1, 2, 3})), f"clean  {written.clean}", f"table  {written.table}", *written.notes]))
    return 0


def _fuse(arguments: "Namespace") -> int:
    from pathorestore.pipelines.batch import run_batch

    jobs, work = stacks_to_fuse(arguments, _now)
    return _batch(jobs, work, arguments, run=run_batch, done="fused")


def _qc(arguments: "Namespace") -> int:
    jobs, work = files_to_judge(arguments, bar("tile", quiet=arguments.quiet))
    return _batch(jobs, work, arguments, run=work.run, done="judged")


def _iqa_fit(arguments: "Namespace") -> int:
    return run_iqa_fit(arguments, bar("image", quiet=arguments.quiet))


def _iqa_build(arguments: "Namespace") -> int:
    return run_iqa(arguments, bar("image", quiet=False))


def _data(arguments: "Namespace") -> int:
    return run_data(arguments, bar("row", quiet=False))


def _classify(arguments: "Namespace") -> int:
    return run_classify(arguments, bar("image", quiet=arguments.quiet), _error)


def _view(arguments: "Namespace") -> int:
    with termination_as_interruption():
        return run_view(arguments, bar("tile", quiet=arguments.quiet))


def _evaluate(arguments: "Namespace") -> int:
    with termination_as_interruption():
        return run_evaluate(arguments, lambda unit: bar(unit, quiet=arguments.quiet), _now, _error)


_COMMANDS: dict[str, Callable[["Namespace"], int]] = {
    "restore": _restore,
    "upscale": _upscale,
    "enhance": _enhance,
    "stain": _stain,
    "demo": _demo,
    "info": _info,
    "simulate": _simulate,
    "export": run_export,
    "data": _data,
    "fuse": _fuse,
    "ablate": run_ablate,
    "classify": _classify,
    "view": _view,
    "jobs": run_jobs,
    "evaluate": _evaluate,
    "qc": _qc,
    "iqa-build": _iqa_build,
    "iqa-fit": _iqa_fit,
}
# LightningCLI parses these itself
_TRAINING = {
    "fit": "train one stage: --config NAME_OR_FILE, such as pformer_tiny",
    "validate": "the validation figures of a checkpoint",
    "test": "the same on the test split",
    "predict": "restore the images of the test split with a stage",
}


def _show(result: "FileResult", arguments: "Namespace", *, done: str = "restored") -> None:
    from pathorestore.pipelines.report_text import result_lines

    if result.status == "failed":
        _error(result.error)
        if result.trace and arguments.verbose:
            print(result.trace, file=sys.stderr, end="")
    elif not arguments.quiet:
        _say(result_lines(result, done=done), arguments)


def _say(text: str, arguments: "Namespace") -> None:
    print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)


def _error(line: str) -> None:
    print(f"{_PROGRAM}: error: {line}".replace("\n", "\\n"), file=sys.stderr, flush=True)  # a file name may hold a line break


def _tell(line: str) -> None:
    print(f"{_PROGRAM}: {line}", file=sys.stderr, flush=True)


def _fail(line: str, code: int) -> int:
    _error(line)
    return code


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(message: str) -> str:
    """An error of the argument parser in the words of the command line, on one line."""
    verbs = (re.escape(verb) for verb in ("data.make", "data.check", *_COMMANDS))
    commands = rf"\b(?:{'|'.join(verbs)})\.(\w+)"
    message = re.sub(commands, lambda match: _PLACES.get(match[1], f"--{match[1]}"), message)
    message = re.sub(r'Parser key "(\w+)"(?: element (\d+))?:', lambda match: f"--{match[1].replace('_', '-')}:", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    return " ".join(message.split())


def _parser() -> "ArgumentParser":
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=_PROGRAM,
        description="Restore out-of-focus pathology images. For research; not for primary diagnosis.",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    for name, (fill, summary) in _FILLERS.items():
        command = ArgumentParser(description=summary, exit_on_error=False, allow_abbrev=False)
        commands.add_subcommand(name, command, help=summary)
        fill(command)  # only now, for it may add commands of its own, and these must come after
        command.add_argument("--verbose", action="store_true", help="print the traceback of an error that nobody foresaw")
    for name, summary in _TRAINING.items():
        commands.add_subcommand(name, ArgumentParser(exit_on_error=False), help=summary)
    return parser


def _over_files(*fills: Callable[["ArgumentParser"], None], slides: bool = False) -> Callable[["ArgumentParser"], None]:
    """The filler of a verb that goes through many files, slides among them or not."""

    def fill(command: "ArgumentParser") -> None:
        for one in fills:
            one(command)
        fill_batch(command, **({"max_pixels": None} if slides else {}))

    return fill


_FILLERS: dict[str, tuple[Callable[["ArgumentParser"], None], str]] = {
    "restore": (_over_files(fill_restore, fill_engine, slides=True), "restore images and slides"),
    "upscale": (_over_files(fill_upscale, fill_engine, slides=True), "enlarge images and slides, by any factor or to a pixel size"),
    "enhance": (_over_files(fill_enhance, fill_engine, slides=True), "do to images and slides what a prompt says"),
    "stain": (_over_files(fill_stain, fill_engine, slides=True), "show images and slides as if stained otherwise"),
    "demo": (fill_demo, "defocus a real histology image, restore it, print figures, draw a picture"),
    "info": (fill_info, "show versions, devices, models and licences, or how a file was made"),
    "simulate": (fill_simulate, "turn a sharp image into a focal stack with exact labels"),
    "export": (fill_export, "turn a training checkpoint into a model folder"),
    "data": (fill_data, "make and check the manifest that training reads"),
    "fuse": (_over_files(fill_fuse), "make one all-in-focus image of each focal stack"),
    "ablate": (fill_ablate, "train the variants of one of the paper's comparisons and tabulate them"),
    "qc": (_over_files(fill_qc, fill_model, slides=True), "judge the focus of images and slides: fine, restore or rescan"),
    "iqa-build": (fill_iqa, "write a table of blurred patches, to train no-reference scores on"),
    "iqa-fit": (fill_iqa_fit, "fit the no-reference metrics NIQE and BRISQUE to sharp images"),
    "evaluate": (fill_evaluate, "judge restored images and models: scores, tests, one report"),
    "classify": (fill_classify, "show one classifier several versions of labelled images: AUC, accuracy and more, with intervals"),
    "view": (fill_view, "look at a slide or image in a browser: before/after slider, layers, provenance"),
    "jobs": (fill_jobs, "how the files of an output folder stand, whichever machines work at them"),
}
