"""Everything that can go wrong with a slide, and what is left behind: never half a file, never another pixel, always a reason."""

import errno
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("openslide")
import tifffile
from slide_samples import OPTIONS, Identity, Lively, files_in, level_pixels, run_slide, slide_work, tissue_pixels, write_slide

from pathorestore import cli
from pathorestore.pipelines import lock
from pathorestore.pipelines.batch import BadResult, Job, JobLocked, run_batch
from pathorestore.pipelines.provenance import read_provenance
from pathorestore.pipelines.raster import ImageFileError
from pathorestore.slide import journal, pyramid, restore, room
from pathorestore.slide.journal import Journal, OtherSettings, sweep
from pathorestore.slide.restoring import Restoring
from pathorestore.slide.source import open_slide
from pathorestore.slide.tiles import Tile

JOURNAL = ".out.tif.pathorestore-journal"


@pytest.fixture
def slide(tmp_path):
    """A slide of 640 x 200 px with loss, as scanners write them."""
    return write_slide(tmp_path / "in.tif", tissue_pixels(640, 200), compression="jpeg")


def _run_one(source, target, work):
    """The result of one file of a batch."""
    return run_batch([Job(source, target)], work).results[0]


# --- inputs ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_a_truncated_slide_is_refused_before_any_work(tmp_path, slide, kept):
    data = slide.read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: int(len(data) * kept)])
    result = _run_one(tmp_path / "cut.tif", tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 3)
    assert "cut.tif" in result.error
    assert files_in(tmp_path) == ["cut.tif", "in.tif"]


def _damage(path: Path, tile: int) -> None:
    """Overwrite the data of a tile of the largest level."""
    with tifffile.TiffFile(path) as tiff:
        start, size = tiff.pages[0].dataoffsets[tile], tiff.pages[0].databytecounts[tile]
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\x5a" * size
    path.write_bytes(data)


@pytest.mark.parametrize("reader", ["openslide", "tifffile"])
def test_a_tile_that_cannot_be_decoded_is_named_or_left_out_on_request(tmp_path, reader):
    pixels = tissue_pixels(320, 200)
    source = tmp_path / ("in.tif" if reader == "openslide" else "in.ome.tif")
    write_slide(source, pixels, **({} if reader == "openslide" else {"levels": 1}))
    if reader == "tifffile":
        tifffile.imwrite(source, pixels, tile=(64, 64), photometric="rgb", compression="zlib", ome=True)
    _damage(source, 6)  # of 4 tiles a row: the one at x 128, y 64
    opened = open_slide(source)
    opened.close()
    assert opened.facts.reader == reader
    result = _run_one(source, tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 3)
    assert "x=128, y=64" in result.error
    assert "--on-bad-tile pass" in result.error
    assert not (tmp_path / "out.tif").exists()
    done = run_slide(source, tmp_path / "out.tif", wishes={"on_bad_tile": "pass"})
    assert any("1 of the slide's tiles" in note for note in done.notes)
    restored, expected = level_pixels(tmp_path / "out.tif"), pixels.copy()
    expected[64:128, 128:192] = 255
    assert np.array_equal(restored, expected)
    assert read_provenance(tmp_path / "out.tif").parameters["unreadable"] == 1
    beside = json.loads((tmp_path / "out.tif.provenance.json").read_text())
    assert beside["events"] == [{"kind": "unreadable", "y_px": 64, "x_px": 128}]


@pytest.mark.parametrize("mpp", [None, 25_400 / 72, 0.0001])
def test_a_pixel_size_that_cannot_be_is_taken_as_unknown(tmp_path, mpp):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(100, 100), mpp=mpp)
    done = run_slide(source, tmp_path / "out.tif")
    assert any("--mpp" in note for note in done.notes)
    assert read_provenance(tmp_path / "out.tif").pixel_um is None
    with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
        assert tiff.pages[0].tags["ResolutionUnit"].value == 1  # TIFF 6.0: no unit
    run_slide(source, tmp_path / "told.tif", wishes={"mpp": 0.5})
    assert open_slide(tmp_path / "told.tif").facts.mpp == pytest.approx(0.5, rel=1e-4)


def test_pixels_that_are_not_square_have_no_one_size(tmp_path):
    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        options = {"tile": (64, 64), "photometric": "rgb", "metadata": None, "resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}
        writer.write(tissue_pixels(100, 100), **options)
    done = run_slide(tmp_path / "in.tif", tmp_path / "out.tif")
    assert any("0.5 um down" in note for note in done.notes)


@pytest.mark.parametrize("mpp", [0.0, -1.0, 40.0, float("nan")])
def test_an_absurd_pixel_size_is_refused(mpp):
    with pytest.raises(ValueError, match="--mpp"):
        slide_work(wishes={"mpp": mpp})


def test_what_was_not_scanned_is_not_black(tmp_path):
    rgba = np.concatenate([tissue_pixels(128, 128), np.full((128, 128, 1), 255, np.uint8)], axis=2)
    rgba[:64, :, :] = 0
    rgba[64:96, :, 3] = 128
    tifffile.imwrite(
        tmp_path / "in.tif", rgba, tile=(64, 64), photometric="rgb", extrasamples=["unassalpha"], compression="zlib", metadata=None
    )
    source = open_slide(tmp_path / "in.tif")
    seen = source.read(0, 0, 128, 128)
    source.close()
    assert (seen[:64] == 255).all()
    assert np.array_equal(seen[96:], rgba[96:, :, :3])


def test_inks_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", np.zeros((128, 128, 4), np.uint8), tile=(64, 64), photometric="separated", metadata=None)
    result = _run_one(tmp_path / "in.tif", tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 3)
    assert "SEPARATED" in result.error


def test_a_slide_that_claims_to_be_huge_is_refused_by_its_header(tmp_path):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(100, 100), levels=1)
    data = bytearray(source.read_bytes())
    with tifffile.TiffFile(source) as tiff:
        for name in ("ImageWidth", "ImageLength"):
            tag = tiff.pages[0].tags[name]
            data[tag.valueoffset : tag.valueoffset + tag.count * 2] = (60_000).to_bytes(2, "little")
    (tmp_path / "bomb.tif").write_bytes(data)
    result = _run_one(tmp_path / "bomb.tif", tmp_path / "out.tif", slide_work(wishes={"max_pixels": 10**8}))
    assert (result.status, result.code) == ("failed", 3)
    assert "--max-pixels" in result.error or "no slide" in result.error


@pytest.mark.parametrize("content", [b"", b"not a slide at all", b"II*\0\x08\0\0\0\xff\xff"])
def test_what_is_no_slide_is_refused_by_name(tmp_path, content):
    (tmp_path / "in.svs").write_bytes(content)
    result = _run_one(tmp_path / "in.svs", tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 3)
    assert "in.svs" in result.error
    assert files_in(tmp_path) == ["in.svs"]


def test_a_slide_that_is_not_there(tmp_path):
    result = _run_one(tmp_path / "gone.svs", tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 3)
    assert "gone.svs" in result.error


# --- outputs --------------------------------------------------------------------------------------------------------------------------


def test_an_output_that_exists_stays_unless_it_may_be_replaced(tmp_path, slide):
    (tmp_path / "out.tif").write_bytes(b"mine")
    with pytest.raises(ImageFileError, match="exists already"):
        run_slide(slide, tmp_path / "out.tif")
    assert (tmp_path / "out.tif").read_bytes() == b"mine"
    run_slide(slide, tmp_path / "out.tif", overwrite=True)
    assert level_pixels(tmp_path / "out.tif").shape == (640, 200, 3)
    with pytest.raises(ImageFileError, match="is the input itself"):
        run_slide(slide, slide, overwrite=True)


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path, slide):
    def appear(status):
        if status.phase == "write":
            (tmp_path / "out.tif").write_bytes(b"another's")

    result = _run_one(slide, tmp_path / "out.tif", slide_work(on_status=appear))
    assert (result.status, result.code) == ("failed", 4)
    assert "exists by now" in result.error
    assert (tmp_path / "out.tif").read_bytes() == b"another's"


def test_a_link_is_no_way_to_write_elsewhere(tmp_path, slide):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.tif").symlink_to(tmp_path / "elsewhere" / "secret.tif")
    with pytest.raises(ImageFileError, match="exists already"):
        run_slide(slide, tmp_path / "out.tif")
    run_slide(slide, tmp_path / "out.tif", overwrite=True)
    assert not (tmp_path / "out.tif").is_symlink()
    assert files_in(tmp_path / "elsewhere") == []


def test_names_stay_inside_the_output_folder(tmp_path):
    odd = tmp_path / "in" / "ünï 切片" / "ß œ ..tif"
    odd.parent.mkdir(parents=True)
    write_slide(odd, tissue_pixels(70, 70))
    long = tmp_path / "in" / ("n" * 240 + ".tif")
    write_slide(long, tissue_pixels(70, 70))
    code = cli.main(["restore", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--coarse-only", "--tile", "64", "--overlap", "8"])
    assert code == 0
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.tif")) == sorted(
        ["n" * 240 + ".tif", "ünï 切片/ß œ ..tif"]
    )


def test_a_folder_that_cannot_be_written_to_is_refused_first(tmp_path, slide, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(room.tempfile, "NamedTemporaryFile", refuse)  # tests may run as root, who may write everywhere
    result = _run_one(slide, tmp_path / "out" / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 4)
    assert "cannot be written to" in result.error


def test_a_disk_that_will_be_too_small_is_refused_first(tmp_path, slide, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    result = _run_one(slide, tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 4)
    assert "no room" in result.error
    assert files_in(tmp_path) == ["in.tif"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a tmpfs takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_no_output_and_the_work_goes_on_later(tmp_path, small_disk, monkeypatch):
    monkeypatch.setattr(restore, "check_room", lambda *_: None)  # the guess was too low
    noise = np.random.default_rng(0).integers(0, 256, (1400, 512, 3)).astype(np.uint8)
    source = write_slide(tmp_path / "in.tif", noise)
    result = _run_one(source, small_disk / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 4)
    assert "No space left" in result.error or "no space left" in result.error
    assert "out.tif" not in files_in(small_disk)
    assert any(name.endswith("journal") for name in files_in(small_disk))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    passes = []
    slide_work(on_status=passes.append)(Job(source, small_disk / "out.tif"))
    assert np.array_equal(level_pixels(small_disk / "out.tif"), noise)
    assert files_in(small_disk) == ["out.tif", "out.tif.provenance.json"]


# --- the model ------------------------------------------------------------------------------------------------------------------------


class Nans(Identity):
    """Gives NaN for tiles whose mean red is high, at first or always."""

    def __init__(self, *, cured_by_fp32: bool = False):
        super().__init__()
        self.cured_by_fp32 = cured_by_fp32

    @property
    def stages(self):
        return (self._sometimes,)

    def _sometimes(self, current, degraded, context, noise):
        bad = degraded[:, 0].mean(dim=(1, 2), keepdim=True)[:, None] > 0.9
        if self.cured_by_fp32 and not torch.is_autocast_enabled("cpu"):
            bad = torch.zeros_like(bad)
        return torch.where(bad, torch.nan, current)


@pytest.fixture
def bright_spot(tmp_path):
    """A slide with one bright tile, and its pixels."""
    pixels = tissue_pixels(200, 200)
    pixels[48:112, 96:160] = 250
    return write_slide(tmp_path / "in.tif", pixels), pixels


def test_a_result_that_is_not_finite_ends_the_slide_with_its_place(tmp_path, bright_spot):
    source, _ = bright_spot
    result = _run_one(source, tmp_path / "out.tif", slide_work(Nans()))
    assert (result.status, result.code) == ("failed", 5)
    assert "x=96, y=48" in result.error
    with pytest.raises(BadResult, match="--on-bad-tile pass"):
        run_slide(source, tmp_path / "out.tif", Nans())
    assert not (tmp_path / "out.tif").exists()


def test_a_result_that_is_not_finite_is_passed_on_and_told_on_request(tmp_path, bright_spot):
    source, pixels = bright_spot
    done = run_slide(source, tmp_path / "out.tif", Nans(), wishes={"on_bad_tile": "pass"})
    assert np.array_equal(level_pixels(tmp_path / "out.tif"), pixels)
    assert any("no finite result" in note for note in done.notes)
    assert read_provenance(tmp_path / "out.tif").parameters["not_finite"] == 1


def test_bfloat16_that_overflows_is_computed_again_in_single_precision(tmp_path, bright_spot):
    source, pixels = bright_spot
    done = run_slide(source, tmp_path / "out.tif", Nans(cured_by_fp32=True), precision="bf16")
    assert np.array_equal(level_pixels(tmp_path / "out.tif"), pixels)
    assert any("computed in fp32" in note for note in done.notes)


class Hungry(Lively):
    """Runs out of memory on batches larger than two."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.sizes = most, []

    def prepare(self, degraded):
        self.sizes.append(len(degraded))
        if len(degraded) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().prepare(degraded)


def test_a_device_without_enough_memory_gets_smaller_batches(tmp_path, slide, monkeypatch):
    runner = Restoring(system=(hungry := Hungry(2))).runner(replace(OPTIONS, batch_size=8), 8, lambda _: None)
    runner.device = "meta-like"
    monkeypatch.setattr(type(runner), "_computed", _counted_on_cpu)
    pixels = tissue_pixels(64, 64 * 7)
    tiles = [Tile(0, x, np.ascontiguousarray(pixels[:, x : x + 64])) for x in range(0, 64 * 7, 64)]
    results = list(runner.run(0, tiles, []))
    assert hungry.sizes == [7, 4, 2, 2, 2, 1]
    assert all(np.array_equal(result, runner.levels.from_pixels(tile.pixels)) for result, tile in zip(results, tiles, strict=True))
    hungry.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        list(runner.run(0, tiles, []))


def _counted_on_cpu(runner, stage, tiles, current, precision):
    images = torch.cat([torch.from_numpy(tile.pixels).permute(2, 0, 1)[None].float() / 255 for tile in tiles])
    runner.restorer.prepare(images)
    return images


# --- interruptions --------------------------------------------------------------------------------------------------------------------


def test_changed_settings_do_not_go_on_with_the_old_work(tmp_path, slide):
    with pytest.raises(KeyboardInterrupt):
        run_slide(slide, tmp_path / "out.tif", stop=lambda: True)
    assert JOURNAL in files_in(tmp_path)
    for changes in ({"seed": 1}, {"wishes": {"overlap_px": 24}}, {"model_id": "other"}, {"weights_sha256": "0" * 64}):
        result = _run_one(slide, tmp_path / "out.tif", slide_work(**changes))
        assert (result.status, result.code) == ("failed", 2)
        assert "--no-resume" in result.error
    run_slide(slide, tmp_path / "out.tif", seed=1, wishes={"resume": False})
    assert read_provenance(tmp_path / "out.tif").seed == 1


def test_a_changed_slide_does_not_go_on_with_the_old_work(tmp_path, slide):
    with pytest.raises(KeyboardInterrupt):
        run_slide(slide, tmp_path / "out.tif", stop=lambda: True)
    when = slide.stat()
    write_slide(slide, tissue_pixels(640, 200, seed=1), compression="jpeg")
    os.utime(slide, ns=(when.st_atime_ns, when.st_mtime_ns))
    with pytest.raises(OtherSettings, match="input was"):
        run_slide(slide, tmp_path / "out.tif")


def test_two_processes_do_not_write_one_output(tmp_path, slide):
    other = Journal(tmp_path / JOURNAL, {})
    result = _run_one(slide, tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 6)
    assert f"process {os.getpid()}" in result.error
    with pytest.raises(JobLocked):
        run_slide(slide, tmp_path / "out.tif")
    other.discard()
    run_slide(slide, tmp_path / "out.tif")


def test_a_failure_leaves_the_journal_free_for_the_next_run(tmp_path, slide):
    def fail(status):
        raise RuntimeError("something nobody foresaw")

    with pytest.raises(RuntimeError):
        run_slide(slide, tmp_path / "out.tif", on_status=fail)
    run_slide(slide, tmp_path / "out.tif")
    assert files_in(tmp_path) == ["in.tif", "out.tif", "out.tif.provenance.json"]


def test_a_journal_that_is_garbage_is_told_apart(tmp_path, slide):
    (tmp_path / JOURNAL).write_bytes(b"garbage" * 1000)
    with pytest.raises(OtherSettings, match="--no-resume"):
        run_slide(slide, tmp_path / "out.tif")
    run_slide(slide, tmp_path / "out.tif", wishes={"resume": False})


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from slide_samples import Lively, run_slide
source, target, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
print("ready", flush=True)
run_slide(source, target, Lively(), on_status=lambda status: time.sleep(pause))
"""


def _killed_until_done(source: Path, target: Path, moments: list[float], *, pause: float) -> int:
    """Run in processes that are killed after so long; returns how many were."""
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    killed = 0
    for moment in [*moments, 600.0]:
        with subprocess.Popen([sys.executable, "-c", script, source, target, str(pause)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            try:
                assert child.wait(timeout=moment) == 0
                return killed
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
        killed += 1  # noqa: SIM113
        if target.exists():  # killed after the name was given: whole, then, and only the journal is left
            sweep(room.journal_path(target, None), target)
            return killed
    raise AssertionError("never done")


@pytest.mark.parametrize("moments", [[0.3, 0.5]])
def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes(tmp_path, moments):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(1200, 200))
    run_slide(source, tmp_path / "whole.tif", Lively())
    killed = _killed_until_done(source, tmp_path / "out.tif", moments, pause=0.02)
    assert killed == len(moments)
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert files_in(tmp_path) == ["in.tif", "out.tif", "out.tif.provenance.json", "whole.tif", "whole.tif.provenance.json"]


@pytest.mark.slow
def test_twenty_kills_at_any_moment_change_no_byte(tmp_path):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(2500, 300))
    start = time.perf_counter()
    run_slide(source, tmp_path / "whole.tif", Lively())
    once = time.perf_counter() - start
    moments = np.random.default_rng(0).uniform(0.0, max(once, 1.0), 20).tolist()
    total = 0
    for attempt in range(20):
        target = tmp_path / f"out{attempt}.tif"
        total += _killed_until_done(source, target, [moments[attempt]], pause=0.0)
        assert target.read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert total >= 10
    assert not [name for name in files_in(tmp_path) if name.endswith((".part", "journal", ".lock"))]


def test_ctrl_c_finishes_the_row_and_a_second_one_does_not_wait(tmp_path, capsys):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(900, 200))
    words = [sys.executable, "-m", "pathorestore", "restore", str(source), "-o", str(tmp_path / "out.tif"), "--coarse-only", "--all-tiles"]
    words += ["--tile", "64", "--overlap", "8", "--json-progress"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as child:
        assert child.stderr is not None
        first = json.loads(child.stderr.readline())
        assert (first["phase"], first["done"]) == ("tiles", 1)
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
        assert child.wait(timeout=60) == 130
    assert "stopping after this row" in rest
    assert not (tmp_path / "out.tif").exists()
    with closing(sqlite3.connect(tmp_path / JOURNAL)) as connection:
        assert connection.execute("select level, line from lines").fetchall() == [(0, 0)]


def test_one_bad_slide_does_not_stop_the_rest(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    write_slide(folder / "a.tif", tissue_pixels(100, 100))
    (folder / "b.svs").write_bytes(b"no slide")
    Image.fromarray(tissue_pixels(60, 70)).save(folder / "c.png")
    code = cli.main(["restore", str(folder), "-o", str(tmp_path / "out"), "--coarse-only", "--tile", "64", "--overlap", "8", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 1
    assert [(Path(item["output"]).name, item["status"], item["code"]) for item in told["files"]] == [
        ("a.tif", "restored", 0),
        ("b.svs.tiff", "failed", 3),
        ("c.png", "restored", 0),
    ]


def test_a_torn_slide_of_a_scanner_is_not_read_by_whoever_still_can(tmp_path, capsys):
    with tifffile.TiffWriter(tmp_path / "in.svs") as writer:
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg", "metadata": None}
        writer.write(tissue_pixels(200, 300), description="Aperio Image Library v11\n300x200 (64x64)|MPP = 0.25", **options)
        writer.write(tissue_pixels(50, 75), photometric="rgb", compression="jpeg", metadata=None, description="Aperio\nthumbnail")
    with tifffile.TiffFile(tmp_path / "in.svs") as tiff:
        torn = tiff.pages[1].offset + 10  # in the index of the thumbnail, behind all of the slide's own data
        assert torn > max(tiff.pages[0].dataoffsets)
    (tmp_path / "in.svs").write_bytes((tmp_path / "in.svs").read_bytes()[:torn])
    result = _run_one(tmp_path / "in.svs", tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 3)
    assert not (tmp_path / "out.tif").exists()


def test_a_dry_run_tells_what_the_run_would(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    write_slide(folder / "a.tif", tissue_pixels(100, 100))
    (folder / "b.svs").write_bytes(b"no slide")
    words = ["--coarse-only", "--tile", "64", "--overlap", "8", "--dry-run"]
    assert cli.main(["restore", str(folder), "-o", str(tmp_path / "out"), *words]) == 1
    out, err = capsys.readouterr()
    assert "100 x 100" in out
    assert "b.svs" not in out
    assert "b.svs: is no slide" in err
    assert cli.main(["restore", str(folder / "b.svs"), "-o", str(tmp_path / "o.tif"), *words]) == 3
    assert cli.main(["restore", str(folder / "a.tif"), "-o", str(tmp_path / "o.tif"), *words, "--region", "0,0,999,9"]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("--region", "0,0,9,9"), ("--mpp", "0.5"), ("--compression", "jpeg"), ("--geojson",)])
def test_options_for_slides_are_not_passed_over_on_images(tmp_path, capsys, words):
    Image.fromarray(tissue_pixels(60, 70)).save(tmp_path / "a.png")
    assert cli.main(["restore", str(tmp_path / "a.png"), "-o", str(tmp_path / "o.png"), "--coarse-only", *words]) == 2
    assert f"{words[0]} is for slides" in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


# --- what a closer look found -----------------------------------------------------------------------------------------------------------


def test_a_region_inside_even_tissue_is_restored(tmp_path):
    noise = np.random.default_rng(0).normal(0, 3, (900, 900, 3))
    pixels = np.clip(np.array([205, 150, 185]) + noise, 0, 255).astype(np.uint8)
    pixels[:200], pixels[:, :200] = 243, 243
    work = slide_work(wishes={"all_tiles": False, "region": (400, 400, 300, 300)})
    estimate = work.estimate(write_slide(tmp_path / "in.tif", pixels))
    assert estimate.tiles == estimate.all_tiles
    glass = slide_work(wishes={"all_tiles": False, "region": (0, 0, 900, 150)}).estimate(tmp_path / "in.tif")
    assert glass.tiles == 0


@pytest.mark.parametrize("restorer", [Identity(), Lively()], ids=["one stage", "two stages"])
@pytest.mark.parametrize("region", [None, (30, 50, 150, 350)])
def test_a_bad_tile_is_one_tile_and_a_resumed_run_knows_it(tmp_path, region, restorer):
    pixels = tissue_pixels(600, 200)
    source = write_slide(tmp_path / "in.tif", pixels)
    _damage(source, 13)  # of 4 tiles a row: the one at x 64, y 192, in the midst of which a resumed run begins to read
    wishes = {"on_bad_tile": "pass", "region": region}
    run_slide(source, tmp_path / "whole.tif", restorer, wishes=wishes)
    with pytest.raises(KeyboardInterrupt):
        run_slide(source, tmp_path / "cut.tif", restorer, wishes=wishes, stop=lambda: True)
    run_slide(source, tmp_path / "cut.tif", restorer, wishes=wishes)
    assert (tmp_path / "cut.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    run_slide(source, tmp_path / "same.tif", wishes=wishes)
    x, y = (region or (0, 0))[:2]
    seen, expected = level_pixels(tmp_path / "same.tif"), pixels.copy()
    expected[192:256, 64:128] = 255
    assert np.array_equal(seen, expected[y : y + len(seen), x : x + seen.shape[1]])
    events = json.loads((tmp_path / "cut.tif.provenance.json").read_text())["events"]
    assert events == [{"kind": "unreadable", "y_px": 192 - y, "x_px": 64 - x}]


def test_a_run_that_let_bad_tiles_pass_is_not_finished_as_one_that_did_not(tmp_path):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(600, 200))
    _damage(source, 1)
    with pytest.raises(KeyboardInterrupt):
        run_slide(source, tmp_path / "out.tif", wishes={"on_bad_tile": "pass"}, stop=lambda: True)
    with pytest.raises(OtherSettings, match="1 bad tiles"):
        run_slide(source, tmp_path / "out.tif")


def test_colours_or_planes_apart_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "in.ome.tif", tissue_pixels(100, 130).transpose(2, 0, 1), tile=(64, 64), ome=True, metadata={"axes": "CYX"})
    result = _run_one(tmp_path / "in.ome.tif", tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 3)
    assert "planes apart" in result.error


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparent_pixels_show_white_in_every_reader(tmp_path, dtype):
    top = np.iinfo(dtype).max
    rgba = np.zeros((128, 128, 4), dtype)
    rgba[64:] = top // 3
    rgba[64:, :, 3] = top
    options = {"tile": (64, 64), "photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "zlib"}
    tifffile.imwrite(tmp_path / "in.ome.tif", rgba, ome=True, metadata={"axes": "YXS"}, **options)
    done = run_slide(tmp_path / "in.ome.tif", tmp_path / "out.tif")
    restored = level_pixels(tmp_path / "out.tif")
    assert (restored[:64] == top).all()
    assert (restored[64:] == top // 3).all()
    assert any("transparent" in note for note in done.notes)
    if dtype == np.uint8:
        Image.fromarray(rgba).save(tmp_path / "in.png")
        run_slide(tmp_path / "in.png", tmp_path / "png.tif")
        assert np.array_equal(level_pixels(tmp_path / "png.tif"), restored)


def test_an_image_in_one_strip_is_decoded_once(tmp_path, monkeypatch):
    pixels = np.tile(tissue_pixels(100, 50), (50, 1, 1))
    tifffile.imwrite(tmp_path / "in.ome.tif", pixels, rowsperstrip=5000, photometric="rgb", compression="zlib", ome=True)
    source = open_slide(tmp_path / "in.ome.tif")
    decoded = []
    once = type(source)._decoded
    monkeypatch.setattr(type(source), "_decoded", lambda self, index: decoded.append(index) or once(self, index))
    rows = np.concatenate([source.read(y, 0, min(256, 5000 - y), 50) for y in range(0, 5000, 256)])
    source.close()
    assert np.array_equal(rows, pixels)
    assert decoded == [0]
    monkeypatch.setattr("pathorestore.slide.readers._MOST_PIECE_PX", 1000)
    with pytest.raises(ImageFileError, match="in pieces of 50 x 5000 px"):
        open_slide(tmp_path / "in.ome.tif")


def test_the_journal_is_for_its_owner_only(tmp_path, slide):
    with pytest.raises(KeyboardInterrupt):
        run_slide(slide, tmp_path / "out.tif", stop=lambda: True)
    for name in files_in(tmp_path):
        if name.startswith(JOURNAL):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_lock_on_a_file_that_is_gone_is_no_lock(tmp_path, slide, monkeypatch):
    flock = lock.fcntl.flock

    def slow(handle, how):
        flock(handle, how)
        (tmp_path / (JOURNAL + ".lock")).unlink()  # another process, done, removes it between our opening and our locking

    monkeypatch.setattr(lock.fcntl, "flock", slow)
    with pytest.raises(JobLocked):
        run_slide(slide, tmp_path / "out.tif")


def test_a_system_that_cannot_lock_is_told_apart_from_a_locked_job(tmp_path, slide, monkeypatch):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    result = _run_one(slide, tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 4)
    assert "cannot be locked: No locks available" in result.error


def test_a_sound_journal_on_a_failing_disk_is_not_called_garbage(tmp_path, slide, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run_slide(slide, tmp_path / "out.tif", stop=lambda: True)

    def fail(*_, **__):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(journal.sqlite3, "connect", fail)
    result = _run_one(slide, tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 4)
    assert "--no-resume" not in result.error


def test_a_file_system_without_links_replaces_nothing_either(tmp_path, slide, monkeypatch):
    def no_links(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(pyramid.os, "link", no_links)

    def appear(status):
        if status.phase == "write" and not status.done:
            (tmp_path / "out.tif").write_bytes(b"another's")

    result = _run_one(slide, tmp_path / "out.tif", slide_work(on_status=appear))
    assert (result.status, result.code) == ("failed", 4)
    assert (tmp_path / "out.tif").read_bytes() == b"another's"
    (tmp_path / "out.tif").unlink()
    run_slide(slide, tmp_path / "out.tif")
    assert level_pixels(tmp_path / "out.tif").shape == (640, 200, 3)


def test_a_journal_is_swept_away_only_when_its_output_was_written(tmp_path, slide):
    with pytest.raises(KeyboardInterrupt):
        run_slide(slide, tmp_path / "out.tif", stop=lambda: True)
    kept = tmp_path / JOURNAL
    sweep(kept, tmp_path / "out.tif")
    (tmp_path / "out.tif").write_bytes(b"another's")
    sweep(kept, tmp_path / "out.tif")
    assert kept.exists()
    with closing(sqlite3.connect(kept)) as connection, connection:
        connection.execute("insert into meta values ('written', 'out.tif')")
    held = lock.lock_file(kept.with_name(f"{JOURNAL}.lock"), kept)
    sweep(kept, tmp_path / "out.tif")
    assert kept.exists()  # somebody is at work on it
    os.close(held)
    sweep(kept, tmp_path / "out.tif")
    assert files_in(tmp_path) == ["in.tif", "out.tif"]


def test_what_a_run_killed_while_writing_left_is_taken_away(tmp_path, slide):
    left = tmp_path / ".out.tif.pathorestore-part"
    left.write_bytes(b"half a slide")
    run_slide(slide, tmp_path / "out.tif")
    assert files_in(tmp_path) == ["in.tif", "out.tif", "out.tif.provenance.json"]


def test_a_slide_is_never_seen_without_its_record(tmp_path, slide, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error", str(tmp_path / "out.tif.provenance.json"))

    monkeypatch.setattr(restore, "write_atomic", fail)
    result = _run_one(slide, tmp_path / "out.tif", slide_work())
    assert (result.status, result.code) == ("failed", 4)
    assert not (tmp_path / "out.tif").exists()
    monkeypatch.undo()
    run_slide(slide, tmp_path / "out.tif")
    assert (tmp_path / "out.tif.provenance.json").exists()


def test_long_names_that_begin_alike_stay_apart(tmp_path, slide):
    names = [("n" * 200) + end for end in ("a.tif", "b.tif")]
    assert len({room.journal_path(tmp_path / name, None) for name in names}) == 2
    for name in names:
        run_slide(slide, tmp_path / name)
    assert len([name for name in files_in(tmp_path) if name.endswith(".provenance.json")]) == 2
