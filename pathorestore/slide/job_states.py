"""What a manifest of jobs amounts to: the latest state of every output, and whether who began it is still alive."""

import fcntl
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pathorestore.pipelines.batch import EXIT_OK, EXIT_SOME_FAILED, PlanError
from pathorestore.slide.jobs import MANIFEST_NAME, process_born, read_lines

EXIT_UNFINISHED = 75  # "try again later", as sysexits.h numbers it
_TROUBLE = ("failed", "quarantined", "died", "interrupted")
_ORDER = ("done", "running", "started", "planned", *_TROUBLE)


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How an output stands.

    state: "planned", "running", "started (host)" on a machine that cannot be asked from here, "died", "done", "failed", "quarantined" or
    "interrupted". worker: host and process that said so last. time: of that, UTC. attempt: how often it was begun, by the last line.
    """

    output: str
    input: str
    state: str
    worker: str
    time: str
    attempt: int = 0
    seconds: float = 0.0
    megapixels: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class JobStates:
    """All outputs of a folder, by name. unreadable: lines of the manifest that make no sense."""

    jobs: tuple[JobState, ...]
    unreadable: int

    def counts(self) -> dict[str, int]:
        """Number of outputs by state, the best first."""
        states = [job.state.partition(" ")[0] for job in self.jobs]
        return {state: states.count(state) for state in _ORDER if state in states}

    @property
    def exit_code(self) -> int:
        """0 if all is done, 1 if something ended in another way, 75 if nothing did but work is left."""
        counts = self.counts()
        if any(state in counts for state in _TROUBLE):
            return EXIT_SOME_FAILED
        return EXIT_OK if counts.keys() <= {"done"} else EXIT_UNFINISHED

    def to_dict(self) -> dict[str, Any]:
        """The states as JSON-able values."""
        summary: dict[str, Any] = {"jobs": len(self.jobs), **self.counts()}
        summary |= {name: sum(getattr(job, name) for job in self.jobs) for name in ("megapixels", "seconds")}
        return {"jobs": [asdict(job) for job in self.jobs], "summary": summary | {"unreadable_lines": self.unreadable}}


def read_states(folder: Path) -> JobStates:
    """How the outputs of a folder stand. Raises PlanError if it has no manifest."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise PlanError(f"{folder}: holds no {MANIFEST_NAME}; give the output folder of a run of restore")
    lines, unreadable = read_lines(path)
    latest: dict[str, dict[str, Any]] = {}
    done: dict[str, dict[str, Any]] = {}
    for line in lines:
        name = line["output"]
        before = latest.get(name)
        if line["event"] == "planned" and before is not None and before["event"] == "started":
            continue  # somebody else plans what is being done
        if line.get("left") and name in done:
            line = done[name]  # nothing was done to it
        latest[name] = line
        if line["event"] == "done":
            done[name] = line
    return JobStates(tuple(_state(folder, latest[name]) for name in sorted(latest)), unreadable)


def _state(folder: Path, line: dict[str, Any]) -> JobState:
    host = str(line.get("host", ""))
    return JobState(
        output=line["output"],
        input=str(line.get("input", "")),
        state=_state_of_work(folder, line, host) if line["event"] == "started" else line["event"],
        worker=f"{host}:{line.get('pid', '')}",
        time=str(line.get("time", "")),
        attempt=int(_number(line, "attempt")),
        seconds=_number(line, "seconds"),
        megapixels=_number(line, "megapixels"),
        error=str(line.get("error", "")),
    )


def _state_of_work(folder: Path, line: dict[str, Any], host: str) -> str:
    if host != socket.gethostname():
        return f"started ({host})"
    return "running" if _alive(folder, line) else "died"


def _number(line: dict[str, Any], name: str) -> float:
    value = line.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0


def _alive(folder: Path, line: dict[str, Any]) -> bool:
    """Whether the process that began a job lives, or, where that cannot be seen, whether the journal of the job is locked."""
    pid, journal = line.get("pid"), line.get("journal")
    if isinstance(pid, int) and _same_process(pid, line.get("born")):
        return True
    return isinstance(journal, str) and _is_locked(folder / f"{journal}.lock")


def _same_process(pid: int, born: object) -> bool:
    found = process_born(pid)
    if found:
        return found == born
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            os.close(handle)
    return False
