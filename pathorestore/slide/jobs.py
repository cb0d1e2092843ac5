"""The manifest of a folder of outputs: one line of JSON for whatever happens to a job, added by every process and machine that works there.

A line is added by a single write to the end of the file, so no process needs to know of another. It says nothing of an input but its name.
"""

import json
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pathorestore.atomic import make_folder
from pathorestore.pipelines.batch import BatchReport, Done, Existing, FileResult, Job, run_batch
from pathorestore.slide.room import journal_path

MANIFEST_NAME = "pathorestore-jobs.jsonl"
Event = Literal["planned", "started", "done", "failed", "quarantined", "interrupted"]
MOST_LINE_BYTES = 4000  # what every system writes in one piece
_MOST_ERROR_CHARACTERS = 600


@dataclass(frozen=True, kw_only=True)
class JobLog:
    """The manifest of `folder`, to add to. work_dir: where journals lie, None for beside their outputs."""

    folder: Path
    work_dir: Path | None = None

    def plan(self, jobs: Sequence[Job], existing: Existing) -> dict[Path, int]:
        """Tell which jobs are about to be done; returns how many attempts each output has behind it.

        Raises OSError if the folder cannot be written to; nothing else does, for a full disk is told of by the work itself.
        """
        known = read_lines(self.path)[0]
        starts: dict[str, int] = {}
        for line in known:
            if line["event"] == "started":
                starts[line["output"]] = starts.get(line["output"], 0) + 1
        self._add([self._line("planned", job) for job in jobs if existing == "overwrite" or not job.output.exists()])
        return {job.output: starts.get(relative_name(job.output, self.folder), 0) for job in jobs}

    def started(self, job: Job, attempt: int) -> None:
        """Tell that this process begins with a job."""
        journal = journal_path(job.output, self.work_dir)
        inside = journal.is_relative_to(self.folder)
        where = relative_name(journal, self.folder) if inside else str(journal.absolute())
        self._tell(self._line("started", job, attempt=attempt, journal=where, born=process_born(os.getpid())))

    def ended(self, result: FileResult, attempt: int | None) -> None:
        """Tell how a job ended. attempt: None if it was not begun, since its output was there before."""
        job = Job(result.input, result.output)
        failed = result.status == "failed"
        facts: dict[str, Any] = {"seconds": round(result.seconds, 2), "megapixels": round(result.megapixels, 3), "attempt": attempt}
        if failed:
            facts["error"] = self._without_folders(result.error, job)
        left = True if attempt is None else None
        self._tell(self._line("failed" if failed else "done", job, left=left, **facts))

    def interrupted(self, job: Job, attempt: int) -> None:
        """Tell that a job was stopped by somebody's wish."""
        self._tell(self._line("interrupted", job, attempt=attempt))

    def quarantined(self, result: FileResult, attempt: int) -> None:
        """Tell that a job is left out, because workers died over it."""
        error = self._without_folders(result.error, Job(result.input, result.output))
        self._tell(self._line("quarantined", Job(result.input, result.output), attempt=attempt, error=error))

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / MANIFEST_NAME

    def _line(self, event: Event, job: Job, **facts: Any) -> dict[str, Any]:
        said = {name: value for name, value in facts.items() if value is not None}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        where = {"time": now, "event": event, "output": relative_name(job.output, self.folder), "input": job.input.name}
        return where | {"host": socket.gethostname(), "pid": os.getpid()} | said

    def _tell(self, line: Mapping[str, Any]) -> None:
        with suppress(OSError):
            self._add([line])

    def _add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add lines, as many to a write as surely go in one piece."""
        if not lines:
            return
        make_folder(self.folder)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            parcel = _mended(handle)
            for line in map(_encoded, lines):
                if parcel and len(parcel) + len(line) > MOST_LINE_BYTES:
                    os.write(handle, parcel)
                    parcel = b""
                parcel += line
            os.write(handle, parcel)
        finally:
            os.close(handle)

    def _without_folders(self, text: str, job: Job) -> str:
        """An error without the folders of the input, whose names may be those of patients."""
        for path in (job.input, job.input.absolute(), job.input.resolve()):
            text = text.replace(f"{path.parent}{os.sep}", "")
        text = text.replace(f"{self.folder}{os.sep}", "")
        return re.sub(r"(?<![\w.])/(?:[^\s/:;,'\"]+/)+", "", text)[:_MOST_ERROR_CHARACTERS]


@dataclass(frozen=True, kw_only=True, eq=False)
class Logged:
    """A piece of work that tells the manifest when it begins, and when it is interrupted. attempts: by output, this one included."""

    work: Callable[[Job], Done]
    log: JobLog
    attempts: Mapping[Path, int]

    def __call__(self, job: Job) -> Done:
        """Do the work."""
        self.log.started(job, self.attempts[job.output])
        try:
            return self.work(job)
        except KeyboardInterrupt:
            self.log.interrupted(job, self.attempts[job.output])
            raise


def run_logged(
    jobs: Sequence[Job],
    work: Callable[[Job], Done],
    *,
    log: JobLog,
    existing: Existing = "refuse",
    on_result: Callable[[FileResult], None] = lambda _: None,
) -> BatchReport:
    """`run_batch`, every step of which is told to a manifest."""
    attempts = {output: before + 1 for output, before in log.plan(jobs, existing).items()}
    kept = {job.output for job in jobs if existing != "overwrite" and job.output.is_file()}

    def told(result: FileResult) -> None:
        log.ended(result, None if result.output in kept else attempts[result.output])
        on_result(result)

    return run_batch(jobs, Logged(work=work, log=log, attempts=attempts), existing=existing, on_result=told)


def relative_name(path: Path, folder: Path) -> str:
    """The name of an output below its folder, the same on every machine, wherever each has mounted that folder."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _encoded(line: Mapping[str, Any]) -> bytes:
    """A line, its error shortened until all of it goes in one write; file names that are no text come through as escapes."""
    data = json.dumps(line).encode() + b"\n"
    while len(data) > MOST_LINE_BYTES and line.get("error"):
        line = {**line, "error": line["error"][: len(line["error"]) // 2]}
        data = json.dumps(line).encode() + b"\n"
    return data


def _mended(handle: int) -> bytes:
    """What must stand before the next line: an end for one that another process died over."""
    size = os.fstat(handle).st_size
    return b"" if size == 0 or os.pread(handle, 1, size - 1) == b"\n" else b"\n"


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a manifest that make sense, and the number of those that do not."""
    if not path.exists():
        return [], 0
    good, bad = [], 0
    for row in path.read_bytes().split(b"\n"):
        if not row.strip():
            continue
        try:
            line = json.loads(row)
        except ValueError:  # torn
            line = None
        if isinstance(line, dict) and isinstance(line.get("event"), str) and isinstance(line.get("output"), str):
            good.append(line)
        else:
            bad += 1
    return good, bad


def process_born(pid: int) -> int:
    """When a process of this machine began, in its own ticks; -1 if it is gone, 0 where the system does not tell."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return -1 if Path("/proc/self/stat").exists() else 0
    return -1 if facts[0] in "ZX" else int(facts[19])
