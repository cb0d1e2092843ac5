"""Many files through one piece of work: which output belongs to which input, and a run in which one bad file ends nothing."""

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

from pathorestore.data.slide_files import SLIDE_SUFFIXES
from pathorestore.pipelines.image_file import READ_SUFFIXES, WRITE_SUFFIXES, ImageFileError, encoder_for
from pathorestore.pipelines.raster import OutputFileError

Status = Literal["restored", "skipped", "failed"]
Existing = Literal["refuse", "overwrite", "skip"]

EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
# of a run on one file, which can say what was the matter
EXIT_INPUT, EXIT_OUTPUT, EXIT_MODEL, EXIT_LOCKED = 3, 4, 5, 6

# a DICOM slide is a folder of files, each of which names all of it, so such files are only taken one by one
SEARCHED_SUFFIXES = tuple(sorted({*READ_SUFFIXES, *SLIDE_SUFFIXES} - {".dcm"}))
# of pictures that the verbs write beside others and that show no tissue to work on: maps of risk and of focus
DERIVED_SUFFIXES = (".risk.tiff", ".risk.png", ".qc.png")


class JobLocked(OSError):
    """Another process is at work on the same output."""


class BadResult(ValueError):
    """The model gave something that is no image."""


class PlanError(ValueError):
    """Inputs and output that do not fit together, found before any work is done."""


@dataclass(frozen=True)
class Job:
    """One input file and the output it becomes."""

    input: Path
    output: Path


AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a finished piece of work tells: million pixels, and a sentence for each thing worth knowing."""

    megapixels: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """How one file ended.

    error: one line, empty unless it failed. trace: the traceback of a failure nobody foresaw, else empty. code: exit code of a run on this
    file alone: 0, 1 unforeseen, 2 settings, 3 input, 4 output or disk, 5 model, 6 locked by another process.
    """

    input: Path
    output: Path
    status: Status
    seconds: float = 0.0
    megapixels: float = 0.0
    notes: tuple[str, ...] = ()
    error: str = ""
    trace: str = ""
    code: int = EXIT_OK


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """How a batch ended. planned: number of jobs. interrupted: whether it was stopped before the last of them."""

    results: tuple[FileResult, ...]
    planned: int
    seconds: float
    interrupted: bool = False

    def count(self, status: Status) -> int:
        """Number of files that ended this way."""
        return sum(result.status == status for result in self.results)

    @property
    def exit_code(self) -> int:
        """0 if every file is restored or skipped, 1 if some failed (of one file its own code), 130 if interrupted."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if self.planned == 1:
            return max((result.code for result in self.results), default=EXIT_OK)
        return EXIT_SOME_FAILED if self.count("failed") else EXIT_OK

    def to_dict(self, *, done: str = "restored") -> dict[str, Any]:
        """The report as JSON-able values, without tracebacks. done: what was done to the files that are not skipped and did not fail."""
        files = [asdict(result) | {"input": str(result.input), "output": str(result.output)} for result in self.results]
        for entry in files:
            del entry["trace"]
            entry["status"] = done if entry["status"] == "restored" else entry["status"]
        summary: dict[str, Any] = {done: self.count("restored")} | {status: self.count(status) for status in ("skipped", "failed")}
        summary |= {
            "not_run": self.planned - len(self.results),
            "megapixels": sum(result.megapixels for result in self.results),
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "exit_code": self.exit_code,
        }
        return {"files": files, "summary": summary}


def plan_outputs(inputs: Sequence[str | Path], output: str | Path, *, mark: str = "") -> list[Job]:
    """Decide every output before the first file is read, in an order that depends on names only.

    One file becomes `output`, or `output/name` where output is a folder: an existing one, one written with a trailing slash, or a name
    without a suffix. A folder is searched for images by suffix, hidden files and folders, the output folder itself and pictures named like
    maps of ours (`DERIVED_SUFFIXES`) left out, and its tree is mirrored under `output`. Several inputs need a folder. Names are kept; a
    suffix that cannot be written gets ".png" behind it, or ".tiff" if it is a slide's. mark: put before the suffix of outputs in folders.
    A file that does not exist is planned all the same: it fails in the run, the others do not.
    Raises PlanError for an output that cannot be a folder or be written, two inputs with one output, an output that is an input, no image.
    """
    if not inputs:
        raise PlanError("no input given; name at least one image file or folder")
    paths, target = [Path(item) for item in inputs], Path(output)
    single_file = len(paths) == 1 and not paths[0].is_dir()
    check_folders(target if not single_file else target.parent)
    if single_file and not names_folder(output):
        jobs = [Job(paths[0], writable(target))]
    else:
        if not names_folder(output):
            why = "the input is a folder" if len(paths) == 1 else "there are several inputs"
            raise PlanError(f"{why}, so the output must be a folder, but {target} is named like a file; try -o {target.with_suffix('')}/")
        check_folders(target)
        if mark and any(path.is_dir() and path.resolve() == target.resolve() for path in paths):
            raise PlanError(f"{target}: the outputs would lie among the inputs, and be inputs next time; name another folder")
        jobs = [job for path in paths for job in _jobs_under(path, target, mark)]
    jobs = list(dict.fromkeys(jobs))  # the same input named twice
    _check_collisions(jobs)
    return jobs


def run_batch(
    jobs: Sequence[AnyJob],
    work: Callable[[AnyJob], Done],
    *,
    existing: Existing = "refuse",
    on_result: Callable[[FileResult], None] = lambda _: None,
) -> BatchReport:
    """Do `work` on every job in order; a failure becomes a line of the report and the next file is taken.

    existing: what to do about an output that is there already: "refuse" fails the file, "skip" leaves it and does no work, "overwrite" lets
    the work replace it. on_result: called after each file. An interruption (KeyboardInterrupt) ends the batch; what is done stays.
    """
    results: list[FileResult] = []
    start, interrupted = perf_counter(), False
    try:
        for job in jobs:
            result = run_one(job, work, existing)
            results.append(result)
            on_result(result)
    except KeyboardInterrupt:
        interrupted = True
    return BatchReport(results=tuple(results), planned=len(jobs), seconds=perf_counter() - start, interrupted=interrupted)


def explain(error: BaseException) -> str:
    """One line for a user: what could not be done to which file, or the kind of a failure that nobody foresaw."""
    if isinstance(error, OSError) and error.filename is not None:
        reason = error.strerror or type(error).__name__
        return f"{_shown(error.filename)}: {reason[:1].lower()}{reason[1:]}"
    if isinstance(error, ImageFileError | PlanError | BadResult):  # ours: one line, but for what a file name may hold
        return _shown(error)
    if _is_out_of_memory(error):
        return "out of memory; try a smaller --tile, or another --device"
    text = " ".join(line.strip() for line in str(error).splitlines()).strip()
    return text if isinstance(error, ValueError | OSError) and text else f"unexpected {type(error).__name__}: {text or 'no message'}"


def run_one(job: AnyJob, work: Callable[[AnyJob], Done], existing: Existing) -> FileResult:
    """Do `work` on one job, as `run_batch` does; failures are results, interruptions are not."""
    start = perf_counter()
    try:
        there = job.output.is_file()
        if there and existing == "skip":
            return FileResult(input=job.input, output=job.output, status="skipped", notes=("output exists",))
        if there and existing == "refuse":
            raise OutputFileError(f"{job.output}: exists already; --overwrite replaces it, --skip-existing leaves it")
        done = work(job)
    except Exception as error:
        line = explain(error)
        line = line if _shown(job.input) in line or _shown(job.output) in line else f"{_shown(job.input)}: {line}"
        foreseen = isinstance(error, ImageFileError | OSError | BadResult | PlanError)
        trace = "" if foreseen else traceback.format_exc()
        seconds, code = perf_counter() - start, code_of(error, job)
        return FileResult(input=job.input, output=job.output, status="failed", seconds=seconds, error=line, trace=trace, code=code)
    return FileResult(
        input=job.input,
        output=job.output,
        status="restored",
        seconds=perf_counter() - start,
        megapixels=done.megapixels,
        notes=done.notes,
    )


def code_of(error: Exception, job: Job) -> int:
    """The exit code for a failure; what messages and paths are about tells inputs from outputs."""
    if isinstance(error, JobLocked):
        return EXIT_LOCKED
    if isinstance(error, BadResult):
        return EXIT_MODEL
    if isinstance(error, ImageFileError):
        return EXIT_OUTPUT if isinstance(error, OutputFileError) else EXIT_INPUT
    if isinstance(error, OSError):
        # folders of outputs are made, so what is not there is an input, but in such places as /proc
        places = (str(job.output), str(job.output.parent))
        about_input = str(error.filename) == str(job.input) or (isinstance(error, FileNotFoundError) and str(error.filename) not in places)
        return EXIT_INPUT if about_input else EXIT_OUTPUT
    return EXIT_USAGE if isinstance(error, PlanError) else EXIT_SOME_FAILED


def _shown(item: object) -> str:
    return str(item).replace("\n", "\\n")


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def names_folder(output: str | Path) -> bool:
    """Whether an output is meant as a folder: an existing one, one written with a trailing slash, or a name without a suffix."""
    path = Path(output)
    return path.is_dir() or str(output).endswith(("/", os.sep)) or not (path.suffix or path.exists())


def _jobs_under(path: Path, target: Path, mark: str) -> Iterator[Job]:
    if not path.is_dir():
        yield Job(path, target / _output_name(path.name, mark))
        return
    found = sorted(_images_under(path, target), key=lambda image: image.relative_to(path).parts)
    if not found:
        raise PlanError(
            f"{path}: holds no images; looked for {', '.join(SEARCHED_SUFFIXES)} in it and below, hidden files and maps left out"
        )
    for image in found:
        relative = image.relative_to(path)
        yield Job(image, target / relative.parent / _output_name(relative.name, mark))


def _images_under(folder: Path, target: Path) -> Iterator[Path]:
    output = target.resolve()
    inside = output != folder.resolve()  # an output equal to the folder itself is found out as output = input
    for here, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".") and not (inside and (Path(here) / name).resolve() == output)]
        yield from (Path(here) / name for name in names if _is_searched(name))


def _is_searched(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SEARCHED_SUFFIXES and not name.lower().endswith(DERIVED_SUFFIXES)


def writable(path: Path) -> Path:
    """The path, if its suffix is one that is written. Raises PlanError otherwise."""
    try:
        encoder_for(path)
    except ImageFileError as error:
        raise PlanError(str(error)) from error
    return path


def _output_name(name: str, mark: str) -> str:
    suffix = Path(name).suffix.lower()
    if suffix in WRITE_SUFFIXES:
        return marked(name, mark)
    return f"{name}{mark}.{'tiff' if suffix in SLIDE_SUFFIXES else 'png'}"


def marked(name: str, mark: str) -> str:
    """The name of a file with a mark before its suffix, if it does not bear it already."""
    path = Path(name)
    return name if not mark or path.stem.endswith(mark) else f"{path.stem}{mark}{path.suffix}"


def check_folders(folder: Path) -> None:
    """Raise PlanError if the nearest existing thing on the way to a folder is not a folder."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists() or path == path.parent or str(path) == ".")
    if nearest.exists() and not nearest.is_dir():
        raise PlanError(f"{nearest}: is a file, so nothing can be written below it; name another output folder")


def _check_collisions(jobs: Iterable[Job]) -> None:
    inputs = {identity(job.input): job.input for job in jobs if job.input.exists()}
    taken: dict[Path, Path] = {}
    for job in jobs:
        other = taken.setdefault(job.output, job.input)
        if other != job.input:
            raise PlanError(
                f"{other} and {job.input} would both be written to {job.output}; restore a folder that holds both, or run them one by one"
            )
        if job.output.exists() and identity(job.output) in inputs:
            source = inputs[identity(job.output)]
            what = "is an input" if source == job.output else f"is the input {source} under another name"
            raise PlanError(f"{job.output}: {what}, and inputs are never replaced; name another output folder or file")


def identity(path: Path) -> tuple[int, int]:
    """What two names of one file have in common: its disk and its place there. Raises OSError if there is none."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> None:
    raise error
