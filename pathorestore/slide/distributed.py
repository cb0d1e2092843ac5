"""Many files over the workers of a Ray cluster: one resident model for each GPU, one file at a time for each worker.

Only paths and small facts travel; pixels go from disk to disk. A worker that dies is replaced and its file is tried again, from its journal
on; a file over which workers die twice is left out, and the others go on.
"""

import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from pathorestore.pipelines.batch import EXIT_SOME_FAILED, BatchReport, Done, Existing, FileResult, Job, explain, run_one
from pathorestore.slide.jobs import JobLog, Logged

MOST_DEATHS = 2  # of workers over one file
_MOST_FAILED_STARTS = 3  # of workers, one after the other
_OBJECT_STORE_BYTES = 200_000_000
_POLL_S = 0.2  # how soon a wish to stop is heard
_QUIET: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}


class FileWork(Protocol):
    """The work on one file, and what the driver asks of it."""

    def __call__(self, job: Job) -> Done:
        """Do it."""
        ...

    def size(self, job: Job) -> tuple[int, ...]:
        """How long a job will take, to compare with other jobs."""
        ...

    def ask_to_stop(self) -> None:
        """Have the work that is being done raise KeyboardInterrupt where it can go on later."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether it has been asked to."""
        ...

    def patiently(self) -> AbstractContextManager[None]:
        """A time in which the user's wish to stop sets `stopping`, and only a second one interrupts."""
        ...


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Wishes for the cluster; the names in messages are those of the command line.

    address: of a cluster that runs, None to start one here. workers: None for one for each GPU, else two, or one where there is one CPU.
    device: "auto", "cpu" or "cuda".
    """

    address: str | None = None
    workers: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers {self.workers} must be at least 1")


class Worker:
    """A process that keeps a model and restores one file after the other.

    make: gives the work for a device, "cpu" or "cuda". folder: to which relative paths belong.
    """

    def __init__(self, make: Callable[[str], FileWork], device: str, log: JobLog, folder: str):
        self._make, self._device, self._log, self._folder = make, device, log, folder
        self._work: FileWork | None = None

    def prepare(self) -> str:
        """Load the model; returns what is in the way, in one line."""
        with suppress(OSError):  # where all paths are absolute, it need not be there
            os.chdir(self._folder)
        self._keep_to_one_core()
        try:
            self._work = self._make(self._device)
        except Exception as error:
            return explain(error)
        return ""

    def restore(self, job: Job, existing: Existing, attempt: int) -> FileResult | None:
        """Restore a file; returns how it ended, None if it was interrupted. What is wrong with the file is a result, never an error."""
        assert self._work is not None
        self._keep_to_one_core()
        try:
            result = run_one(job, Logged(work=self._work, log=self._log, attempts={job.output: attempt}), existing)
        except KeyboardInterrupt:
            return None
        self._log.ended(result, attempt)
        return result

    def stop(self) -> None:
        """Stop `restore`, which runs in another thread, where it can go on later."""
        if self._work is not None:
            self._work.ask_to_stop()

    def _keep_to_one_core(self) -> None:
        """Else the workers of a CPU fight for its cores."""
        import torch

        if self._device == "cpu":
            torch.set_num_threads(1)


def run_on_ray(
    jobs: Sequence[Job],
    work: FileWork,
    *,
    make: Callable[[str], FileWork],
    log: JobLog,
    options: RayOptions,
    existing: Existing = "refuse",
    on_result: Callable[[FileResult], None] = lambda _: None,
) -> BatchReport:
    """`run_batch` on Ray, longest job first. work: the driver's own, which restores nothing; make: what workers get theirs from."""
    start, results, interrupted = perf_counter(), dict[int, FileResult](), False

    def told(index: int, result: FileResult) -> None:
        results[index] = result
        on_result(result)

    attempts = log.plan(jobs, existing)
    try:
        tickets = []
        for index, job in enumerate(jobs):
            if existing != "overwrite" and job.output.is_file():
                result = run_one(job, work, existing)
                log.ended(result, None)
                told(index, result)
            else:
                tickets.append(_Ticket(index, job, attempts[job.output]))
        if tickets:
            with _cluster(options) as cluster, work.patiently():
                tickets.sort(key=lambda ticket: work.size(ticket.job), reverse=True)
                spawn = partial(cluster.spawn, make, log)
                interrupted = not _Run(cluster.ray, spawn, min(cluster.workers, len(tickets)), log, told).run(tickets, work, existing)
    except KeyboardInterrupt:
        interrupted = True
    in_order = tuple(results[index] for index in sorted(results))
    return BatchReport(results=in_order, planned=len(jobs), seconds=perf_counter() - start, interrupted=interrupted)


@dataclass(eq=False)
class _Ticket:
    index: int
    job: Job
    attempts: int
    deaths: int = 0


class _Run:
    """Who does what: workers that begin (no ticket), that work (a ticket) and that wait."""

    def __init__(self, ray: Any, spawn: Callable[[], Any], workers: int, log: JobLog, told: Callable[[int, FileResult], None]):
        self._ray, self._spawn, self._most, self._log, self._told = ray, spawn, workers, log, told
        self._under_way: dict[Any, tuple[Any, _Ticket | None]] = {}
        self._idle: list[Any] = []
        self._failed_starts, self._why = 0, ""

    def run(self, tickets: Sequence[_Ticket], work: FileWork, existing: Existing) -> bool:
        """Do all; false if it was stopped on the way. Raises ChildProcessError if no worker can be had."""
        self._waiting = deque(tickets)
        asked = False
        try:
            while (self._waiting and not asked) or self._working():
                if work.stopping and not asked:
                    asked = True
                    for worker, _ in self._under_way.values():
                        worker.stop.remote()
                if not asked:
                    self._hire()
                    self._assign(existing)
                if self._under_way:
                    for reference in self._ray.wait(list(self._under_way), timeout=_POLL_S)[0]:
                        self._take(reference)
        finally:
            self._dismiss()
        return not asked

    def _working(self) -> list[_Ticket]:
        return [ticket for _, ticket in self._under_way.values() if ticket is not None]

    def _hire(self) -> None:
        """Have as many workers as there is work for; a worker that does not come up is tried again a few times."""
        if self._failed_starts >= _MOST_FAILED_STARTS:
            if not self._under_way and not self._idle:
                raise ChildProcessError(f"no worker can be started: {self._why}")
            return
        wanted = min(self._most, len(self._waiting) + len(self._working()))
        while len(self._under_way) + len(self._idle) < wanted:
            worker = self._spawn()
            self._under_way[worker.prepare.remote()] = (worker, None)

    def _assign(self, existing: Existing) -> None:
        while self._idle and self._waiting:
            worker, ticket = self._idle.pop(), self._waiting.popleft()
            ticket.attempts += 1
            self._under_way[worker.restore.remote(ticket.job, existing, ticket.attempts)] = (worker, ticket)

    def _take(self, reference: Any) -> None:
        worker, ticket = self._under_way.pop(reference)
        try:
            ended = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # nothing that `run_one` makes a result of
            ended = explain(error.cause)
            if ticket is not None:
                ended = self._failed(ticket, f"a worker gave up: {ended}")
                self._log.ended(ended, ticket.attempts)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(worker)  # if it is only out of reach, it must not go on beside the one that follows it
            self._died(ticket, type(error).__name__)
            return
        if ticket is None:
            self._began(worker, ended)
            return
        self._idle.append(worker)
        if ended is not None:
            self._told(ticket.index, ended)

    def _began(self, worker: Any, trouble: str) -> None:
        if not trouble:
            self._failed_starts = 0
            self._idle.append(worker)
            return
        self._ray.kill(worker)
        self._failed_starts, self._why = self._failed_starts + 1, trouble

    def _died(self, ticket: _Ticket | None, why: str) -> None:
        if ticket is None:
            self._failed_starts, self._why = self._failed_starts + 1, f"it dies while it loads the model ({why})"
            return
        ticket.deaths += 1
        if ticket.deaths < MOST_DEATHS:
            self._waiting.appendleft(ticket)
            return
        result = self._failed(ticket, f"{MOST_DEATHS} workers died over it, so it is left out; what they finished of it is kept")
        self._log.quarantined(result, ticket.attempts)
        self._told(ticket.index, result)

    def _failed(self, ticket: _Ticket, why: str) -> FileResult:
        error = f"{ticket.job.input}: {why}"
        return FileResult(input=ticket.job.input, output=ticket.job.output, status="failed", error=error, code=EXIT_SOME_FAILED)

    def _dismiss(self) -> None:
        """End the workers; of a slide in work the journal stays."""
        for worker in [*self._idle, *(worker for worker, _ in self._under_way.values())]:
            with suppress(Exception):
                self._ray.kill(worker)
        for ticket in self._working():
            self._log.interrupted(ticket.job, ticket.attempts)


@dataclass(frozen=True, kw_only=True)
class _Cluster:
    ray: Any
    workers: int
    device: str

    def spawn(self, make: Callable[[str], FileWork], log: JobLog) -> Any:
        """A new worker, which need not be up yet."""
        # a second thread, so that it hears that it should stop; restarts are ours, for deaths are counted by file
        remote = self.ray.remote(num_cpus=1, num_gpus=int(self.device == "cuda"), max_restarts=0, max_concurrency=2)(Worker)
        return remote.remote(make, self.device, log, str(Path.cwd()))


@contextmanager
def _cluster(options: RayOptions) -> Iterator[_Cluster]:
    """A running Ray, with as little beside it as there can be, that leaves nothing behind."""
    if (
        not options.address and "ray" not in sys.modules
    ):  # its ports are open to the network, so who has not this run's own secret is to be refused
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = _import_ray()
    folder: str | None = None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if options.address:
            ray.init(address=options.address, **_QUIET)
        else:
            folder = tempfile.mkdtemp(prefix="pathorestore-", dir="/tmp")  # sockets lie in it, whose paths must be short
            here = {"num_cpus": max(options.workers or 0, _cpus()), "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": folder}
            ray.init(address="local", include_dashboard=False, **here, **_QUIET)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray has taken SIGTERM
        yield _staffed(ray, options, ray.cluster_resources())
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _staffed(ray: Any, options: RayOptions, resources: dict[str, float]) -> _Cluster:
    """How many workers of which kind a cluster is to have. Raises ValueError for more than this machine can have."""
    gpus = 0 if options.device == "cpu" else int(resources.get("GPU", 0))
    if options.device == "cuda" and not gpus:
        raise ValueError("--device cuda: Ray knows of no GPU; use --device cpu, or auto, which takes GPUs where there are some")
    workers = options.workers or gpus or min(2, max(1, int(resources.get("CPU", 1))))
    if gpus and workers > gpus and not options.address:
        raise ValueError(f"--workers {workers} is more than the {gpus} GPUs of this machine; leave --workers out, or add --device cpu")
    return _Cluster(ray=ray, workers=workers, device="cuda" if gpus else "cpu")


def _import_ray() -> Any:
    """Ray, told to be quiet, which it only hears before it is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # a warning that concerns workers without GPU, which use none anyway
    os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "(?s).*"  # Ray would print on stdout that a worker died, which is told in our words
    try:
        import ray
    except ImportError as error:
        raise ImportError('--engine ray needs Ray; pip install "pathorestore[ray]"') from error
    return ray


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
