"""Which output belongs to which input, and a batch that one bad file does not end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pathorestore.pipelines.batch import DERIVED_SUFFIXES, SEARCHED_SUFFIXES, Done, Job, PlanError, explain, plan_outputs, run_batch
from pathorestore.pipelines.compute import ComputedOn, choose_device, choose_precision
from pathorestore.pipelines.image_file import ImageFileError, read_image_file
from pathorestore.pipelines.provenance import read_provenance
from pathorestore.pipelines.restore_file import RestoreFile
from pathorestore.pipelines.risk_files import risk_paths
from pathorestore.slide.focus_report import outputs_of


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def outputs(jobs: list[Job], folder: Path) -> list[str]:
    return [job.output.relative_to(folder).as_posix() for job in jobs]


stems = st.lists(st.sampled_from(["a", "b", "c", "sub/a", "sub/deep/b", "z z"]), min_size=1, unique=True)


@given(stems=stems, suffixes=st.lists(st.sampled_from([".png", ".JPG", ".tif", ".bmp"]), min_size=6, max_size=6))
def test_a_tree_is_mirrored_one_to_one_in_the_order_of_its_names(tmp_path, stems, suffixes):
    folder = tmp_path / "in"
    shutil.rmtree(folder, ignore_errors=True)
    names = [stem + suffix for stem, suffix in zip(stems, suffixes, strict=False)]
    touch(folder, *names)
    jobs = plan_outputs([folder], tmp_path / "out")
    assert [job.input.relative_to(folder).as_posix() for job in jobs] == sorted(names, key=lambda name: Path(name).parts)
    assert outputs(jobs, tmp_path / "out") == [
        name if not name.endswith(".bmp") else f"{name}.png" for name in sorted(names, key=lambda name: Path(name).parts)
    ]
    assert len({job.output for job in jobs}) == len(names)


def test_only_visible_images_are_taken_and_never_those_of_the_output_folder(tmp_path):
    touch(tmp_path, "a.png", "notes.txt", ".hidden.png", ".cache/b.png", "out/a.png", "out2/c.tiff")
    assert outputs(plan_outputs([tmp_path], tmp_path / "out"), tmp_path / "out") == ["a.png", "out2/c.tiff"]


def test_the_maps_in_an_output_folder_are_no_inputs_of_the_next_command_unless_named_one_by_one(tmp_path):
    touch(tmp_path / "in", "a.png", "a.risk.png", "A.RISK.TIFF", "a.png.qc.png", "sub/b.risk.tiff", "sub/b.tiff", "risk.png", "qc.png")
    assert outputs(plan_outputs([tmp_path / "in"], tmp_path / "out"), tmp_path / "out") == ["a.png", "qc.png", "risk.png", "sub/b.tiff"]
    assert outputs(plan_outputs([tmp_path / "in" / "a.risk.png"], tmp_path / "out"), tmp_path / "out") == ["a.risk.png"]
    touch(tmp_path / "maps", "a.risk.png")
    with pytest.raises(PlanError, match=r"holds no images.*maps left out"):
        plan_outputs([tmp_path / "maps"], tmp_path / "out")


def test_every_picture_that_is_written_beside_others_is_known_by_its_name():
    pictures = [*risk_paths(Path("a.png")), *outputs_of(Job(Path("a.png"), Path("a.png.qc.csv")))]
    assert {path.name for path in pictures if path.name.endswith(DERIVED_SUFFIXES)} == {
        path.name for path in pictures if path.suffix in SEARCHED_SUFFIXES
    }


def test_names_that_differ_in_suffix_only_stay_apart(tmp_path):
    touch(tmp_path / "in", "a.png", "a.jpg", "a.bmp", "a.tif")
    assert outputs(plan_outputs([tmp_path / "in"], tmp_path / "out"), tmp_path / "out") == ["a.bmp.png", "a.jpg", "a.png", "a.tif"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("out.tif", "out.tif"),
        ("there", "there/a.png"),
        ("new", "new/a.png"),
        ("new.dir/", "new.dir/a.png"),
        ("deep/er/out.jpg", "deep/er/out.jpg"),
    ],
)
def test_one_file_goes_to_a_file_or_into_a_folder(tmp_path, output, expected):
    touch(tmp_path, "a.png")
    (tmp_path / "there").mkdir()
    assert outputs(plan_outputs([tmp_path / "a.png"], f"{tmp_path}/{output}"), tmp_path) == [expected]


def test_a_suffix_that_cannot_be_written_is_kept_below_another(tmp_path):
    touch(tmp_path, "slide.svs", "noname")
    jobs = plan_outputs([tmp_path / "slide.svs", tmp_path / "noname"], tmp_path / "out")
    assert outputs(jobs, tmp_path / "out") == ["slide.svs.tiff", "noname.png"]


def test_the_same_input_named_twice_is_one_job(tmp_path):
    touch(tmp_path / "in", "a.png")
    assert len(plan_outputs([tmp_path / "in", tmp_path / "in" / "a.png", tmp_path / "in"], tmp_path / "out")) == 1


def test_a_missing_file_is_planned_so_that_the_others_are_done(tmp_path):
    touch(tmp_path, "a.png")
    assert len(plan_outputs([tmp_path / "gone.png", tmp_path / "a.png"], tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        ([], "out", "no input given"),
        (["a.png", "sub"], "out.png", "there are several inputs, so the output must be a folder"),
        (["sub"], "out.png", "the input is a folder, so the output must be a folder"),
        (["a.png", "sub/a.png"], "out", "would both be written to"),
        (["empty"], "out", "holds no images"),
        (["a.png"], "a.png", "is an input"),
        (["a.png"], ".", "is an input"),
        (["sub"], "sub", "is an input"),
        (["a.png"], "link.png", "is the input .* under another name"),
        (["a.png"], "hard.png", "is the input .* under another name"),
        (["a.png"], "linked", "is the input .* under another name"),
        (["a.png"], "out.gif", "'.gif' is not a format written here"),
        (["a.png"], "out.bmp", "BMP has no place for the provenance"),
        (["a.png", "b.png"], "a.png", "is a file"),
        (["a.png"], "blocker/out.png", "is a file, so nothing can be written below it"),
        (["sub"], "blocker/out", "is a file, so nothing can be written below it"),
    ],
)
def test_what_does_not_fit_together_is_said_before_any_work(tmp_path, inputs, output, words):
    touch(tmp_path, "a.png", "b.png", "sub/a.png", "blocker")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "a.png")
    (tmp_path / "linked").symlink_to(tmp_path)
    with pytest.raises(PlanError, match=words) as caught:
        plan_outputs([tmp_path / name for name in inputs], tmp_path / output)
    assert "\n" not in str(caught.value)


def test_one_input_must_not_become_the_output_of_another(tmp_path):
    touch(tmp_path / "in", "a.png")
    touch(tmp_path / "out", "a.png")
    with pytest.raises(PlanError, match="inputs are never replaced"):
        plan_outputs([tmp_path / "in" / "a.png", tmp_path / "out" / "a.png", tmp_path / "in"], tmp_path / "out")


def jobs_for(folder: Path, *names: str) -> list[Job]:
    return [Job(folder / name, folder / "out" / name) for name in names]


def failing(error: BaseException, *, at: str):
    def work(job: Job) -> Done:
        if job.input.name == at:
            raise error
        job.output.parent.mkdir(exist_ok=True)
        job.output.write_bytes(b"done")
        return Done(megapixels=2.0)

    return work


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImageFileError("b.png: is empty (0 bytes)"), "b.png: is empty"),
        (FileNotFoundError(2, "No such file or directory", "b.png"), "b.png: no such file or directory"),
        (PermissionError(13, "Permission denied", "b.png"), "b.png: permission denied"),
        (RuntimeError("shapes\ndo not match"), "b.png: unexpected RuntimeError: shapes do not match"),
        (KeyError("x"), "unexpected KeyError"),
        (MemoryError(), "try a smaller --tile"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 TB"), "try a smaller --tile"),
        (torch.OutOfMemoryError("CUDA out of memory"), "try a smaller --tile"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_one_bad_file_becomes_one_line_and_the_others_are_done(tmp_path, error, words):
    report = run_batch(jobs_for(tmp_path, "a.png", "b.png", "c.png"), failing(error, at="b.png"))
    assert [result.status for result in report.results] == ["restored", "failed", "restored"]
    assert report.exit_code == 1
    assert words in report.results[1].error
    assert "b.png" in report.results[1].error
    assert "\n" not in report.results[1].error


def test_a_failure_nobody_foresaw_keeps_its_traceback_and_a_foreseen_one_has_none(tmp_path):
    for error, expected in ((RuntimeError("bug"), True), (ImageFileError("x"), False), (OSError("x"), False)):
        report = run_batch(jobs_for(tmp_path, "a.png"), failing(error, at="a.png"))
        assert ("Traceback" in report.results[0].trace) == expected


def test_an_interruption_keeps_what_is_done_and_ends_with_130(tmp_path):
    report = run_batch(jobs_for(tmp_path, "a.png", "b.png", "c.png"), failing(KeyboardInterrupt(), at="b.png"))
    assert [result.input.name for result in report.results] == ["a.png"]
    assert (tmp_path / "out" / "a.png").is_file()
    assert (report.exit_code, report.interrupted, report.to_dict()["summary"]["not_run"]) == (130, True, 2)


def test_existing_outputs_are_refused_skipped_or_replaced(tmp_path):
    touch(tmp_path, "out/a.png")
    calls = []

    def work(job: Job) -> Done:
        calls.append(job)
        return Done(megapixels=1.0)

    jobs = jobs_for(tmp_path, "a.png")
    refused = run_batch(jobs, work)
    assert (refused.exit_code, calls) == (4, [])
    assert "--overwrite replaces it, --skip-existing leaves it" in refused.results[0].error
    assert [run_batch(jobs, work, existing="skip").exit_code, len(calls)] == [0, 0]
    assert [run_batch(jobs, work, existing="overwrite").exit_code, len(calls)] == [0, 1]


def test_the_report_is_json_and_its_sums_agree(tmp_path):
    heard = []
    report = run_batch(jobs_for(tmp_path, "a.png", "b.png"), failing(RuntimeError("x"), at="b.png"), on_result=heard.append)
    told = json.loads(json.dumps(report.to_dict()))
    assert tuple(heard) == report.results
    assert [entry["status"] for entry in told["files"]] == ["restored", "failed"]
    assert told["files"][0]["megapixels"] == told["summary"]["megapixels"] == 2.0
    assert told["summary"]["restored"] == told["summary"]["failed"] == told["summary"]["exit_code"] == 1
    assert sum(entry["seconds"] for entry in told["files"]) <= told["summary"]["seconds"]


def test_explaining_never_takes_more_than_a_line():
    for error in (ValueError("a\nb"), OSError("a\nb"), OSError(28, "No space left on device", "x"), Exception()):
        assert "\n" not in explain(error)
        assert explain(error)


class Inverter:
    """A restorer that is easy to check: black for white; `broken` turns the result into NaN under autocast."""

    tile_px = 64

    def __init__(self, *, broken: bool = False):
        self.broken, self.seeds = broken, []

    def restore(self, image: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
        self.seeds.append(seed)
        bad = self.broken and torch.is_autocast_enabled("cpu")
        return torch.full_like(image, float("nan")) if bad else 1 - image


def restore_file(**changes: object) -> RestoreFile:
    settings = {
        "restorer": Inverter(),
        "model_id": "inverter",
        "weights_sha256": None,
        "parameters": {"tile_px": 64},
        "clock": lambda: "2026-01-31T12:00:00+00:00",
    }
    return RestoreFile(**(settings | changes))


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_a_file_is_restored_and_says_how(tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    job = Job(save(tmp_path / "a.png", pixels), tmp_path / "out.png")
    done = restore_file(seed=7)(job)
    with Image.open(job.output) as image:
        assert np.array_equal(np.array(image), 255 - pixels)
    record = read_provenance(job.output)
    source = read_image_file(job.input)
    assert (record.model_id, record.seed, record.input_sha256) == ("inverter", 7, source.input_sha256)
    assert (record.created_utc, dict(record.parameters)) == ("2026-01-31T12:00:00+00:00", {"tile_px": 64})
    assert done == Done(megapixels=20e-6)


def test_the_same_file_gives_the_same_bytes_alone_and_in_company(tmp_path):
    rng = np.random.default_rng(0)
    jobs = [
        Job(save(tmp_path / f"{name}.png", rng.integers(0, 256, (6, 6, 3), np.uint8)), tmp_path / "out" / f"{name}.png") for name in "abc"
    ]
    run_batch(jobs, restore_file())
    together = [job.output.read_bytes() for job in jobs]
    run_batch(jobs[::-1], restore_file(overwrite=True), existing="overwrite")
    assert [job.output.read_bytes() for job in jobs] == together


def test_an_output_that_cannot_be_written_costs_no_restoration(tmp_path):
    inverter = Inverter()
    with pytest.raises(ImageFileError, match=r"'\.xyz' is not a format"):
        restore_file(restorer=inverter)(Job(save(tmp_path / "a.png", np.zeros((3, 3, 3), np.uint8)), tmp_path / "out.xyz"))
    assert inverter.seeds == []


def test_what_bfloat16_breaks_is_computed_again_in_float32():
    image = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    broken, sound = Inverter(broken=True), Inverter()
    assert torch.equal(ComputedOn(broken, device="cpu", precision="bf16").restore(image, seed=5), 1 - image)
    assert broken.seeds == [5, 5]
    ComputedOn(sound, device="cpu", precision="bf16").restore(image)
    ComputedOn(sound, device="cpu", precision="fp32").restore(image)
    assert len(sound.seeds) == 2


def test_device_and_precision_are_chosen_or_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (choose_device("auto"), choose_precision("auto", "cpu"), choose_precision("bf16", "cpu")) == ("cpu", "fp32", "bf16")
    with pytest.raises(ValueError, match="no CUDA device was found; use --device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert (choose_device("auto"), choose_precision("auto", "cuda")) == ("cuda", "bf16")
