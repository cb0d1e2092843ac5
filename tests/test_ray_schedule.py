"""Who gets which file, and who is tried again, on a cluster that is made up: it works in this process and dies when it is told to."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from pathorestore.pipelines.batch import Done, Job
from pathorestore.slide import distributed
from pathorestore.slide.distributed import RayOptions, Worker, run_on_ray
from pathorestore.slide.job_states import read_states
from pathorestore.slide.jobs import JobLog


class WorkerDies(BaseException):
    """Ends the worker that it is raised in."""


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        self.cause = cause


class Handle:
    """A worker as Ray shows it: calls give references, and the work is done when somebody fetches it."""

    def __init__(self, worker: Worker):
        self.worker, self.killed = worker, False

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: lambda: getattr(self.worker, name)(*given))


class Cluster:
    """As many workers as are asked for. workers: all that there ever were."""

    def __init__(self, most: int):
        self.ray, self.most, self.handles = self, most, []
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    @property
    def workers(self) -> int:
        return self.most

    def spawn(self, make, log):
        self.handles.append(Handle(Worker(make, "cpu", log, ".")))
        assert sum(not handle.killed for handle in self.handles) <= self.most
        return self.handles[-1]

    def wait(self, references, timeout):
        return references[:1], references[1:]

    def get(self, reference):
        try:
            return reference()
        except WorkerDies as death:
            raise RayError from death
        except AssertionError as bug:
            raise RayTaskError(bug) from bug

    def kill(self, handle):
        handle.killed = True


@dataclass
class Work:
    """Writes outputs; deaths: how many workers each input kills before it is done."""

    deaths: dict[str, int] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    births: list[bool] = field(default_factory=list)
    stopping: bool = False

    def __call__(self, job: Job) -> Done:
        name = job.input.name
        self.taken.append(name)
        if name == "bad":
            raise ValueError("no tissue")
        if name == "stop":
            self.stopping = True
        if self.deaths.get(name, 0):
            self.deaths[name] -= 1
            raise WorkerDies
        job.output.write_text(name)
        return Done(megapixels=1)

    def make(self, device: str) -> "Work":
        """A worker's work; births: whether the next workers come up."""
        if self.births and not self.births.pop(0):
            raise WorkerDies
        return self

    def size(self, job: Job) -> tuple[int, ...]:
        return (len(job.input.name),)

    def ask_to_stop(self) -> None:
        self.stopping = True

    def patiently(self):
        return nullcontext()


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Restore names on workers; returns the report. The cluster is `run.cluster`."""

    def call(work: Work, *names: str, workers: int = 2, existing: str = "refuse"):
        call.cluster = Cluster(workers)
        monkeypatch.setattr(distributed, "_cluster", lambda _: nullcontext(call.cluster))
        jobs = [Job(Path(name), tmp_path / f"{name}.tif") for name in names]
        return run_on_ray(jobs, work, make=work.make, log=JobLog(folder=tmp_path), options=RayOptions(), existing=existing)

    call.cluster = None
    return call


def states(folder: Path) -> dict[str, tuple[str, int]]:
    return {job.output.removesuffix(".tif"): (job.state, job.attempt) for job in read_states(folder).jobs}


def test_the_longest_go_first_and_the_report_keeps_the_order_of_the_plan(run, tmp_path):
    work = Work()
    report = run(work, "a", "ccc", "bb", workers=1)
    assert work.taken == ["ccc", "bb", "a"]
    assert [result.input.name for result in report.results] == ["a", "ccc", "bb"]
    assert states(tmp_path) == {"a": ("done", 1), "bb": ("done", 1), "ccc": ("done", 1)}
    assert all(handle.killed for handle in run.cluster.handles)


def test_a_file_that_killed_one_worker_is_done_by_the_next(run, tmp_path):
    report = run(Work(deaths={"bb": 1}), "a", "bb", "ccc")
    assert report.exit_code == 0
    assert states(tmp_path) == {"a": ("done", 1), "bb": ("done", 2), "ccc": ("done", 1)}
    assert len(run.cluster.handles) == 3


def test_a_file_that_killed_two_is_left_out_and_the_others_are_done(run, tmp_path):
    work = Work(deaths={"bb": 9, "dddd": 9})
    report = run(work, "a", "bb", "ccc", "dddd")
    assert report.exit_code == 1
    assert [result.status for result in report.results] == ["restored", "failed", "restored", "failed"]
    assert states(tmp_path) == {"a": ("done", 1), "bb": ("quarantined", 2), "ccc": ("done", 1), "dddd": ("quarantined", 2)}
    assert work.taken.count("bb") == 2
    again = run(Work(), "a", "bb", "ccc", "dddd", existing="skip")  # a person may try once more
    assert [result.status for result in again.results] == ["skipped", "restored", "skipped", "restored"]
    assert states(tmp_path)["bb"] == ("done", 3)


def test_deaths_are_counted_by_file_and_not_by_worker(run, tmp_path):
    report = run(Work(deaths=dict.fromkeys("abcdefgh", 1)), *"abcdefgh")
    assert report.exit_code == 0
    assert set(states(tmp_path).values()) == {("done", 2)}


def test_a_file_that_is_bad_costs_no_worker(run, tmp_path):
    report = run(Work(), "bad", "good")
    assert [result.status for result in report.results] == ["failed", "restored"]
    assert len(run.cluster.handles) == 2
    assert states(tmp_path) == {"bad": ("failed", 1), "good": ("done", 1)}


def test_a_worker_that_does_not_come_up_is_tried_again(run):
    assert run(Work(births=[False, False, True]), "a", workers=1).exit_code == 0


def test_workers_that_never_come_up_end_the_run_in_one_line(run):
    with pytest.raises(ChildProcessError, match="no worker can be started: it dies while it loads the model"):
        run(Work(births=[False] * 10), "a", "b")
    assert len(run.cluster.handles) <= 4


def test_there_are_no_more_workers_than_files(run):
    run(Work(), "a", workers=8)
    assert len(run.cluster.handles) == 1


def test_a_wish_to_stop_ends_the_run_after_what_is_being_done(run, tmp_path):
    work = Work()
    report = run(work, "stop", "a", "b", workers=1)
    assert report.interrupted
    assert work.taken == ["stop"]
    assert states(tmp_path) == {"a": ("planned", 0), "b": ("planned", 0), "stop": ("done", 1)}


def test_what_is_there_already_needs_no_cluster(run, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tif").touch()
    report = run(Work(births=[False] * 10), "a", "b", existing="skip")
    assert [result.status for result in report.results] == ["skipped", "skipped"]
    assert run.cluster.handles == []
    report = run(Work(), "a", "b", existing="overwrite")
    assert [result.status for result in report.results] == ["restored", "restored"]


def test_workers_follow_the_gpus_and_else_two_cores():
    def staffed(gpus: int, cpus: int, **wishes: object):
        cluster = distributed._staffed(None, RayOptions(**wishes), {"GPU": float(gpus), "CPU": float(cpus)})
        return cluster.workers, cluster.device

    assert staffed(4, 32) == (4, "cuda")
    assert staffed(4, 32, workers=2) == (2, "cuda")
    assert staffed(4, 32, device="cpu") == (2, "cpu")
    assert staffed(0, 32) == (2, "cpu")
    assert staffed(0, 1) == (1, "cpu")
    assert staffed(0, 32, workers=16) == (16, "cpu")
    assert staffed(4, 32, workers=8, address="head:6379") == (8, "cuda")  # the cluster may grow
    with pytest.raises(ValueError, match="more than the 4 GPUs"):
        staffed(4, 32, workers=5)
    with pytest.raises(ValueError, match="Ray knows of no GPU"):
        staffed(0, 32, device="cuda")
