"""The manifest of jobs: nothing that is told gets lost, nothing but names is told of inputs, and the dead are not taken for living."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from slide_samples import Identity, tissue_pixels

from pathorestore import cli
from pathorestore.cli_slides import in_shard
from pathorestore.pipelines import assemble
from pathorestore.pipelines.assemble import ReadyRestorer, RestoreOptions
from pathorestore.pipelines.batch import Done, FileResult, Job, PlanError
from pathorestore.slide.job_states import read_states
from pathorestore.slide.jobs import MANIFEST_NAME, MOST_LINE_BYTES, JobLog, read_lines, run_logged


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line with a restorer that changes nothing; returns exit code, stdout and stderr."""

    def ready(options: RestoreOptions, **_: object) -> ReadyRestorer:
        made = {"restorer": Identity(), "system": Identity(), "device": "cpu", "precision": "fp32"}
        return ReadyRestorer(**made, model_id="identity", weights_sha256=None, parameters={})

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(assemble, "ready_restorer", ready)
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def save_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.fromarray(tissue_pixels(24, 20, seed=index)).save(path)
    return paths


def log_in(folder: Path) -> JobLog:
    return JobLog(folder=folder)


def add(folder: Path, **line: object) -> None:
    """A line as another process may have written it."""
    folder.mkdir(exist_ok=True)
    with (folder / MANIFEST_NAME).open("a") as file:
        file.write(
            json.dumps({"input": "a.svs", "host": socket.gethostname(), "pid": 1, "time": "2026-01-31T12:00:00+00:00"} | line) + "\n"
        )


def states_of(folder: Path) -> dict[str, str]:
    return {job.output: job.state for job in read_states(folder).jobs}


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def do(job: Job) -> Done:
    job.output.write_bytes(b"restored")
    return Done(megapixels=2.5)


def test_writers_at_once_lose_no_line(tmp_path):
    def write(worker: int) -> None:
        for index in range(100):
            log_in(tmp_path).started(Job(Path("a.svs"), tmp_path / f"{worker} {index}.tif"), 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    lines, unreadable = read_lines(tmp_path / MANIFEST_NAME)
    assert unreadable == 0
    assert len({line["output"] for line in lines}) == len(lines) == 800


def test_writers_in_processes_of_their_own_lose_no_line(tmp_path):
    told = (
        "import sys; from pathlib import Path\n"
        "from pathorestore.slide.jobs import JobLog, Job\n"
        "folder = Path(sys.argv[1])\n"
        "JobLog(folder=folder).plan([Job(Path('a.svs'), folder / f'{sys.argv[2]} {index}.tif') for index in range(500)], 'refuse')\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", told, str(tmp_path), str(index)]) for index in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    lines, unreadable = read_lines(tmp_path / MANIFEST_NAME)
    assert unreadable == 0
    assert len({line["output"] for line in lines}) == len(lines) == 1000


def test_a_torn_line_costs_nothing_but_itself(tmp_path):
    add(tmp_path, event="done", output="a.tif")
    with (tmp_path / MANIFEST_NAME).open("a") as file:
        file.write('{"event": "done", "outp')
    found = read_states(tmp_path)
    assert (states_of(tmp_path), found.unreadable) == ({"a.tif": "done"}, 1)
    log_in(tmp_path).interrupted(Job(Path("b.svs"), tmp_path / "b.tif"), 1)
    found = read_states(tmp_path)
    assert (states_of(tmp_path), found.unreadable) == ({"a.tif": "done", "b.tif": "interrupted"}, 1)


@pytest.mark.parametrize(
    "row", ["null", "7", "[]", '{"event": 3, "output": "a"}', '{"event": "done"}', "\\ud800", '{"event": "done", "output": ["a"]}']
)
def test_lines_that_make_no_sense_are_counted_and_left_out(tmp_path, row):
    add(tmp_path, event="done", output="a.tif", seconds="long", attempt=None)
    with (tmp_path / MANIFEST_NAME).open("a") as file:
        file.write(f"{row}\n")
    assert states_of(tmp_path) == {"a.tif": "done"}
    assert read_states(tmp_path).unreadable == 1


def test_a_batch_tells_what_became_of_every_job(tmp_path):
    def work(job: Job) -> Done:
        if job.output.name == "bad.tif":
            raise ValueError("no tissue")
        if job.output.name == "stopped.tif":
            raise KeyboardInterrupt
        return do(job)

    jobs = [Job(Path(f"in/{name}.svs"), tmp_path / "deep" / f"{name}.tif") for name in ("bad", "good", "stopped", "later")]
    (tmp_path / "deep").mkdir()
    report = run_logged(jobs, work, log=log_in(tmp_path))
    assert report.exit_code == 130
    found = {job.output: job for job in read_states(tmp_path).jobs}
    assert {output: job.state for output, job in found.items()} == {
        "deep/bad.tif": "failed",
        "deep/good.tif": "done",
        "deep/stopped.tif": "interrupted",
        "deep/later.tif": "planned",
    }
    assert found["deep/good.tif"].megapixels == 2.5
    assert found["deep/good.tif"].worker == f"{socket.gethostname()}:{os.getpid()}"
    assert found["deep/bad.tif"].error == "bad.svs: no tissue"
    assert [found[f"deep/{name}.tif"].attempt for name in ("bad", "good", "later")] == [1, 1, 0]
    run_logged(jobs[:1], work, log=log_in(tmp_path))
    assert next(job.attempt for job in read_states(tmp_path).jobs if job.state == "failed") == 2


@pytest.mark.parametrize("existing", ["skip", "refuse"])
def test_a_second_run_does_not_undo_what_is_done(tmp_path, existing):
    job = Job(Path("a.svs"), tmp_path / "a.tif")
    run_logged([job], do, log=log_in(tmp_path))
    before = read_states(tmp_path)
    run_logged([job], do, log=log_in(tmp_path), existing=existing)
    assert read_states(tmp_path) == before
    assert before.exit_code == 0


def test_an_output_of_which_nothing_is_known_is_as_the_run_found_it(tmp_path):
    for name in ("skip", "refuse"):
        (tmp_path / f"{name}.tif").touch()
        run_logged([Job(Path("a.svs"), tmp_path / f"{name}.tif")], do, log=log_in(tmp_path), existing=name)
    assert states_of(tmp_path) == {"skip.tif": "done", "refuse.tif": "failed"}


def test_who_works_runs_and_who_is_gone_died(tmp_path):
    JobLog(folder=tmp_path).started(Job(Path("a.svs"), tmp_path / "mine.tif"), 1)
    add(tmp_path, event="started", output="gone.tif", pid=dead_process(), born=12345)
    add(tmp_path, event="started", output="another since.tif", pid=os.getpid(), born=1)  # the number of the process was given out again
    add(tmp_path, event="started", output="elsewhere.tif", host="node7", pid=os.getpid())
    add(tmp_path, event="started", output="locked.tif", pid=dead_process(), born=1, journal=".locked")
    add(tmp_path, event="started", output="unlocked.tif", pid=dead_process(), born=1, journal=".unlocked")
    (tmp_path / ".unlocked.lock").touch()
    with (tmp_path / ".locked.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert states_of(tmp_path) == {
            "mine.tif": "running",
            "gone.tif": "died",
            "another since.tif": "died",
            "elsewhere.tif": "started (node7)",
            "locked.tif": "running",
            "unlocked.tif": "died",
        }


def test_a_process_that_nobody_has_buried_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()  # ends with the process, which stays in the table until it is waited for
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    add(tmp_path, event="started", output="a.tif", pid=process.pid, born=1)
    assert states_of(tmp_path) == {"a.tif": "died"}
    process.wait()
    process.stdout.close()


def test_whoever_plans_a_job_does_not_hide_who_works_at_it(tmp_path):
    job = Job(Path("a.svs"), tmp_path / "a.tif")
    log_in(tmp_path).started(job, 1)
    assert log_in(tmp_path).plan([job], "refuse") == {job.output: 1}
    assert states_of(tmp_path) == {"a.tif": "running"}


@pytest.mark.parametrize("length", [10, 5000, 100_000])
@pytest.mark.parametrize("sign", ["x", "é", "\n", '"', "切"])
def test_a_line_is_short_enough_for_one_write_however_long_the_error(tmp_path, length, sign):
    result = FileResult(input=Path("a.svs"), output=tmp_path / f"{sign * 70}.tif", status="failed", error=sign * length)
    log_in(tmp_path).ended(result, 1)
    assert len((tmp_path / MANIFEST_NAME).read_bytes()) <= MOST_LINE_BYTES
    (job,) = read_states(tmp_path).jobs
    assert job.error.startswith(sign * 10)
    assert job.output == f"{sign * 70}.tif"


def test_a_name_that_is_no_text_comes_back_as_it_was(tmp_path):
    name = os.fsdecode(b"\xff\xfe.tif")
    log_in(tmp_path).interrupted(Job(Path("a.svs"), tmp_path / name), 1)
    assert [job.output for job in read_states(tmp_path).jobs] == [name]


def test_a_disk_that_runs_full_ends_no_batch(tmp_path, monkeypatch):
    jobs = [Job(Path(name), tmp_path / name) for name in "ab"]

    def fill_the_disk_first(job: Job) -> Done:
        def refuse(handle: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", refuse)
        raise OSError(28, "No space left on device", str(job.output))

    report = run_logged(jobs, fill_the_disk_first, log=log_in(tmp_path))
    monkeypatch.undo()
    assert [result.error for result in report.results] == [f"{tmp_path / name}: no space left on device" for name in "ab"]


def test_a_manifest_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=MANIFEST_NAME):
        log_in(tmp_path / "out").plan([Job(Path("a.svs"), tmp_path / "out" / "a.tif")], "refuse")
    assert not (tmp_path / "precious").exists()


@pytest.mark.parametrize("relative", [False, True])
def test_of_an_input_nothing_is_kept_but_its_name(tmp_path, run, monkeypatch, relative):
    inputs = tmp_path / "Jane Doe 1950"
    save_images(inputs / "scan", 1)
    (inputs / "scan" / "torn.png").write_bytes(b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    source = Path("Jane Doe 1950/scan") if relative else inputs / "scan"
    code, _, err = run("restore", source, source / "gone.tif", "-o", "out")
    assert code == 1
    assert "Jane Doe" in err  # on the terminal, not in the file
    text = (tmp_path / "out" / MANIFEST_NAME).read_text()
    assert "Doe" not in text
    assert str(tmp_path) not in text
    assert {job.output: job.state for job in read_states(tmp_path / "out").jobs} == {
        "0.png": "done",
        "torn.png": "failed",
        "gone.tif": "failed",
    }


def test_the_command_tells_how_a_folder_stands(tmp_path, run):
    save_images(tmp_path / "in", 2)
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out", "-q")[0] == 0
    code, out, err = run("jobs", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["output", "state", "attempt", "seconds", "Mpx", "worker", "since", "(UTC)", "error"]
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [["0.png", "done", "1"], ["1.png", "done", "1"]]
    assert out.splitlines()[-1] == "2 jobs: 2 done"
    add(tmp_path / "out", event="quarantined", output="c\x1b[31m.tif", error="2 workers died over it")
    code, out, _ = run("jobs", tmp_path / "out")
    assert code == 1
    assert "\x1b" not in out
    code, out, _ = run("jobs", tmp_path / "out", "--json")
    told = json.loads(out)
    assert code == 1
    assert told["summary"] | {"seconds": 0} == {
        "jobs": 3,
        "done": 2,
        "quarantined": 1,
        "megapixels": pytest.approx(0.001, abs=1e-3),
        "seconds": 0,
        "unreadable_lines": 0,
    }


@pytest.mark.parametrize(
    ("events", "code"),
    [
        (["done"], 0),
        (["done", "planned"], 75),
        (["planned", "failed"], 1),
        (["interrupted"], 1),
        (["quarantined", "done"], 1),
        (["started"], 1),
    ],
)
def test_the_exit_code_tells_done_from_left_and_from_wrong(tmp_path, run, events, code):
    for index, event in enumerate(events):
        add(tmp_path / "out", event=event, output=f"{index}.tif", pid=dead_process(), born=1)
    assert run("jobs", tmp_path / "out")[0] == code


def test_a_folder_without_a_manifest_is_one_clear_line(tmp_path, run):
    code, out, err = run("jobs", tmp_path)
    assert (code, out) == (2, "")
    assert err.splitlines() == [f"pathorestore: error: {tmp_path}: holds no {MANIFEST_NAME}; give the output folder of a run of restore"]
    with pytest.raises(PlanError):
        read_states(tmp_path / "nowhere")


def test_a_single_file_leaves_no_manifest(tmp_path, run):
    (path,) = save_images(tmp_path / "in", 1)
    assert run("restore", path, "-o", tmp_path / "out.png")[0] == 0
    assert sorted(item.name for item in tmp_path.iterdir()) == ["in", "out.png"]


names = st.lists(st.text("abc é切.-\n", min_size=1, max_size=8), unique=True, max_size=30)


@given(names=names, parts=st.integers(1, 5), data=st.data())
def test_every_job_is_in_one_shard_whatever_the_order_and_the_place_of_the_folder(names, parts, data):
    names = [name for name in names if name not in (".", "..")]
    here = [Job(Path("in") / name, Path("out") / "deep" / name) for name in names]
    there = [Job(Path("/data") / name, Path("/mnt/other/out") / "deep" / name) for name in data.draw(st.permutations(names))]
    shards = [in_shard(here, f"{part}/{parts}", "out") for part in range(parts)]
    assert sorted(str(job.output) for shard in shards for job in shard) == sorted(str(job.output) for job in here)
    for part, shard in enumerate(shards):
        assert {job.output.name for job in in_shard(there, f"{part}/{parts}", "/mnt/other/out/")} == {job.output.name for job in shard}


def test_shards_are_even_and_stay_as_they_are():
    jobs = [Job(Path(f"{index}.svs"), Path(f"out/{index}.tif")) for index in range(1000)]
    sizes = [len(in_shard(jobs, f"{part}/4", "out")) for part in range(4)]
    assert sizes == [250, 249, 258, 243]  # as first released: a folder half done by one version is finished by the next


@pytest.mark.parametrize("shard", ["2/2", "1", "/", "a/b", "-1/2", "0/0", "1/2/3", "½/2"])
def test_a_shard_that_is_none_is_one_clear_line(tmp_path, run, shard):
    save_images(tmp_path / "in", 1)
    code, _, err = run("restore", tmp_path / "in", "-o", tmp_path / "out", f"--shard={shard}")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "--shard" in err


def test_the_shards_of_a_folder_do_everything_once(tmp_path, run):
    paths = save_images(tmp_path / "in", 9)
    done = []
    for part in range(2):
        code, out, _ = run("restore", tmp_path / "in", "-o", tmp_path / "out", "--shard", f"{part}/2", "--json")
        assert code == 0
        done.append([Path(entry["output"]).name for entry in json.loads(out)["files"]])
    assert all(done)
    assert sorted(done[0] + done[1]) == [path.name for path in paths]
    lines, _ = read_lines(tmp_path / "out" / MANIFEST_NAME)
    assert sorted(line["output"] for line in lines if line["event"] == "started") == [path.name for path in paths]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "2"], "--engine ray"),
        (["--address", "auto"], "--engine ray"),
        (["--engine", "ray", "--workers", "0"], "--workers 0"),
        (["--engine", "ray", "--json-progress"], "--json-progress"),
    ],
)
def test_wishes_for_many_machines_that_do_not_fit_are_one_line(tmp_path, run, words, told):
    save_images(tmp_path / "in", 1)
    code, _, err = run("restore", tmp_path / "in", "-o", tmp_path / "out", *words)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert told in err


def test_ray_wants_a_folder(tmp_path, run):
    (path,) = save_images(tmp_path / "in", 1)
    code, _, err = run("restore", path, "-o", tmp_path / "out.png", "--engine", "ray")
    assert code == 2
    assert "writes into a folder" in err


def test_without_ray_its_extra_is_named(tmp_path, run, monkeypatch):
    save_images(tmp_path / "in", 1)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = run("restore", tmp_path / "in", "-o", tmp_path / "out", "--engine", "ray")
    assert code == 2
    assert err.splitlines() == ['pathorestore: error: --engine ray needs Ray; pip install "pathorestore[ray]"']
