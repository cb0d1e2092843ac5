"""Restoring on Ray: workers that are killed, slides that kill, and the same bytes as in one process."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from ray_work import MakeWork, NoModel, SlideWork
from slide_samples import tissue_pixels, write_slide
from view_files import _closed_sockets  # noqa: F401

from pathorestore.pipelines.batch import FileResult, Job, run_batch
from pathorestore.slide.distributed import RayOptions, run_on_ray
from pathorestore.slide.job_states import read_states
from pathorestore.slide.jobs import JobLog, read_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason='Ray is not installed; pip install "pathorestore[ray]"'),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

TESTS = Path(__file__).parent
ROW_BYTES = 250_000  # less than a row of the largest slide takes without loss


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{TESTS.parent}")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Four slides, the last the largest."""
    folder = tmp_path_factory.mktemp("slides")
    sides = (700, 900, 1100, 1500)
    return [write_slide(folder / f"s{side}.tif", tissue_pixels(side, side, seed=side), tile=256) for side in sides]


@pytest.fixture(scope="module")
def expected(slides, tmp_path_factory):
    """The bytes of each output of one process, by name."""
    folder = tmp_path_factory.mktemp("alone")
    report = run_batch([Job(slide, folder / slide.name) for slide in slides], SlideWork())
    assert report.exit_code == 0
    return {slide.name: (folder / slide.name).read_bytes() for slide in slides}


def run(jobs, out, make, *, workers=2, work=None, **options):
    seen: list[FileResult] = []
    report = run_on_ray(
        jobs, work or SlideWork(), make=make, log=JobLog(folder=out), options=RayOptions(workers=workers), on_result=seen.append, **options
    )
    return report, seen


def killer_of_the_worker_at(journal: Path, rows: int, killed: list[int]) -> threading.Thread:
    """A thread that kills the process which has so many rows in a journal."""

    def watch() -> None:
        lock = journal.with_name(f"{journal.name}.lock")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError, IndexError):  # nobody else may look into a journal, but it can be seen to grow
                held = sum(journal.with_name(journal.name + suffix).stat().st_size for suffix in ("", "-wal"))
                if held >= rows * ROW_BYTES:
                    killed.append(int(lock.read_text().split()[1]))
                    os.kill(killed[0], signal.SIGKILL)
                    return
            time.sleep(0.02)

    return threading.Thread(target=watch, daemon=True)


def test_a_killed_worker_is_replaced_and_its_slide_goes_on_to_the_same_bytes(slides, expected, tmp_path):
    out, killed = tmp_path / "out", []
    jobs = [Job(slide, out / slide.name) for slide in slides]
    watcher = killer_of_the_worker_at(out / ".s1500.tif.pathorestore-journal", 2, killed)
    watcher.start()
    report, seen = run(jobs, out, MakeWork(0.02, tmp_path / "witness"))
    watcher.join()
    assert report.exit_code == 0
    assert [result.input for result in report.results] == slides  # the order of the plan, whoever was first
    assert len(seen) == 4
    assert {job.output.name: job.output.read_bytes() for job in jobs} == expected
    assert len(killed) == 1
    lines, _ = read_lines(out / "pathorestore-jobs.jsonl")
    starts = [(line["output"], line["attempt"], line["pid"]) for line in lines if line["event"] == "started"]
    assert starts[0][0] == "s1500.tif" or starts[1][0] == "s1500.tif"  # the longest first
    assert sorted(output for output, attempt, _ in starts if attempt == 2) == ["s1500.tif"]
    assert len({pid for *_, pid in starts}) == 3  # two workers, and one more for the one that was killed
    assert read_states(out).exit_code == 0
    told = [row.split() for row in (tmp_path / "witness").read_text().splitlines()]
    assert {value for name, value in told if name == "device"} == {"cpu"}
    tiles = [int(value) for name, value in told if name == "s1500.tif"]
    assert len(tiles) == 2
    assert tiles[1] < tiles[0]  # the second worker had less to do


def test_a_slide_that_kills_its_worker_every_time_is_left_out_and_a_corrupt_one_fails_alone(slides, expected, tmp_path):
    out = tmp_path / "out"
    killer, broken, bug = tmp_path / "killer.tif", tmp_path / "broken.tif", tmp_path / "bug.tif"
    killer.write_bytes(slides[3].read_bytes())
    broken.write_bytes(slides[0].read_bytes()[:5000])
    bug.write_bytes(slides[0].read_bytes())
    inputs = [broken, bug, killer, *slides[:2]]
    report, _ = run([Job(path, out / path.name) for path in inputs], out, MakeWork(0.0, tmp_path / "witness"))
    assert [result.status for result in report.results] == ["failed", "failed", "failed", "restored", "restored"]
    assert report.exit_code == 1
    assert not report.interrupted
    assert "2 workers died over it" in report.results[2].error
    assert report.results[0].code == 3
    assert "kernel and input do not match" in report.results[1].trace
    for slide in slides[:2]:
        assert (out / slide.name).read_bytes() == expected[slide.name]
    states = {job.output: (job.state, job.attempt) for job in read_states(out).jobs}
    assert states == {
        "broken.tif": ("failed", 1),
        "bug.tif": ("failed", 1),
        "killer.tif": ("quarantined", 2),
        "s700.tif": ("done", 1),
        "s900.tif": ("done", 1),
    }


def test_a_model_that_no_worker_can_load_is_one_line(slides, tmp_path):
    with pytest.raises(ChildProcessError, match="no worker can be started: the folder holds no model"):
        run([Job(slides[0], tmp_path / "out" / "a.tif")], tmp_path / "out", NoModel())


def test_a_wish_to_stop_keeps_rows_and_the_next_run_goes_on(slides, expected, tmp_path):
    out, work = tmp_path / "out", SlideWork()
    jobs = [Job(slide, out / slide.name) for slide in (slides[3], slides[2])]
    watched = [out / ".s1500.tif.pathorestore-journal", out / ".s1100.tif.pathorestore-journal"]

    def stop_when_both_have_begun() -> None:
        while not all(path.exists() for path in watched):
            time.sleep(0.02)
        work.ask_to_stop()

    threading.Thread(target=stop_when_both_have_begun, daemon=True).start()
    report, _ = run(jobs, out, MakeWork(0.02, tmp_path / "witness"), work=work)
    assert report.interrupted
    assert report.exit_code == 130
    assert report.results == ()
    assert read_states(out).counts() == {"interrupted": 2}
    for journal in watched:
        with sqlite3.connect(journal) as connection:
            assert connection.execute("select count(*) from lines").fetchone()[0] >= 1
        connection.close()
    report, _ = run(jobs, out, MakeWork(0.0, tmp_path / "witness"))
    assert report.exit_code == 0
    assert all(job.output.read_bytes() == expected[job.output.name] for job in jobs)
    assert [job.attempt for job in read_states(out).jobs] == [2, 2]


def command(*words: object) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "pathorestore", *map(str, words)]


def test_the_command_on_ray_reports_as_it_does_without(tmp_path):
    (tmp_path / "in").mkdir()
    for index, side in enumerate((200, 260)):
        write_slide(tmp_path / "in" / f"s{index}.tif", tissue_pixels(side, side, seed=index))
    (tmp_path / "in" / "torn.tif").write_bytes(b"II*\0")
    wishes = ("--coarse-only", "--tile", 128, "--pyramid", "--json")
    reports = {}
    for name, engine in (("alone", ()), ("ray", ("--engine", "ray", "--workers", 2))):
        done = subprocess.run(
            command("restore", tmp_path / "in", "-o", tmp_path / name, *wishes, *engine), capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 1, done.stderr
        reports[name] = json.loads(done.stdout)
        assert "raylet" not in done.stderr
    for report in reports.values():
        del report["summary"]["seconds"]
        for entry in report["files"]:
            del entry["seconds"]
            entry["output"] = Path(entry["output"]).name
    assert reports["ray"] == reports["alone"]
    for index in range(2):
        assert (tmp_path / "ray" / f"s{index}.tif").read_bytes() == (tmp_path / "alone" / f"s{index}.tif").read_bytes()


def test_ctrl_c_ends_the_command_and_its_workers_and_leaves_the_journals(slides, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command("restore", *slides[2:], "-o", f"{out}/", "--engine", "ray", "--workers", 2, "--coarse-only"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob(".*-journal"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "stopping after this row of tiles" in err
    lines, _ = read_lines(out / "pathorestore-jobs.jsonl")
    workers = {line["pid"] for line in lines if line["event"] == "started"}
    assert len(workers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert read_states(out).counts() == {"interrupted": 2}
    assert len(list(out.glob(".*-journal"))) == 2
