"""`pathorestore qc` as a user meets it: files, folders and slides in; tables, pictures and outlines out, bad files named."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from slide_samples import write_slide
from tissue_files import save, tissue

from pathorestore import cli
from pathorestore.atomic import write_atomic
from pathorestore.degradations.optical import simulate_stack
from pathorestore.degradations.recipes import Setting
from pathorestore.image import from_uint8, to_uint8
from pathorestore.pipelines import geojson
from pathorestore.slide import focus_report
from pathorestore.slide.focus_verdict import Thresholds


@pytest.fixture
def run(capsys):
    """Run a command line; returns exit code, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def three(name: str) -> list[str]:
    return [f"{name}.qc.{suffix}" for suffix in ("csv", "geojson", "png")]


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "qc.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {row["file"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def out_of_focus(pixels: np.ndarray, z_um: float) -> np.ndarray:
    stack = simulate_stack(from_uint8(pixels), torch.tensor([z_um]), setting=Setting.ideal(), generator=torch.Generator().manual_seed(0))
    return to_uint8(stack.planes)


def test_a_tree_of_images_and_slides_becomes_a_tree_of_results_and_one_table(tmp_path, run):
    sharp = tissue(1, 300, 400)
    save(tmp_path / "in" / "near.png", sharp)
    save(tmp_path / "in" / "deep" / "far.png", out_of_focus(sharp, 4.0))
    write_slide(tmp_path / "in" / "deep" / "slide.tif", sharp, levels=2, mpp=0.25)
    code, out, err = run("qc", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    names = ["near.png", "deep/far.png", "deep/slide.tif"]
    assert files_under(tmp_path / "out") == sorted(["qc.csv", *(part for name in names for part in three(name))])
    rows = table(tmp_path / "out")
    assert set(rows) == set(names)
    assert rows["deep/far.png"]["verdict"] == "rescan"
    assert float(rows["deep/far.png"]["median_um"]) > 3 > float(rows["near.png"]["median_um"])
    assert (rows["near.png"]["mpp_assumed"], rows["deep/slide.tif"]["mpp_assumed"]) == ("True", "False")
    assert rows["deep/slide.tif"]["median_um"] == rows["near.png"]["median_um"]
    assert "rescan: " in out
    assert out.count("judged ") == 4  # a line for each and one of the closing table


def test_the_outlines_are_valid_cover_the_image_and_repeat_the_table(tmp_path, run):
    save(tmp_path / "a.png", tissue(2, 330, 520))
    assert run("qc", tmp_path / "a.png", "-o", tmp_path / "out", "--tile", "128")[0] == 0
    read = json.loads((tmp_path / "out" / "a.png.qc.geojson").read_text())
    assert read["type"] == "FeatureCollection"
    with (tmp_path / "out" / "a.png.qc.csv").open(newline="") as file:
        tiles = list(csv.DictReader(file))
    assert len(tiles) == len(read["features"]) == 3 * 4
    area = 0
    for tile, found in zip(tiles, read["features"], strict=True):
        (outline,) = found["geometry"]["coordinates"]
        xs, ys = zip(*outline, strict=True)
        assert outline[0] == outline[-1]
        assert (min(xs), min(ys)) == (int(tile["x_px"]), int(tile["y_px"]))
        assert max(xs) <= 520
        assert max(ys) <= 330
        area += (max(xs) - min(xs)) * (max(ys) - min(ys))
        properties = found["properties"]
        assert properties["classification"]["name"] == tile["verdict"]
        assert properties["measurements"]["Defocus um"] == pytest.approx(float(tile["defocus_um"]))
        assert all(isinstance(value, float) for value in properties["measurements"].values())
    assert area == 330 * 520


def test_the_picture_opens(tmp_path, run):
    save(tmp_path / "a.png", tissue(2))
    run("qc", tmp_path / "a.png", "-o", tmp_path / "out")
    with Image.open(tmp_path / "out" / "a.png.qc.png") as picture:
        picture.load()
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert min(picture.size) > 400


def test_a_bad_file_fails_alone_with_one_line_and_stands_in_the_table(tmp_path, run):
    save(tmp_path / "in" / "good.png", tissue(3))
    (tmp_path / "in" / "junk.png").write_bytes(b"no image")
    (tmp_path / "in" / "torn.svs").write_bytes(b"II*\0torn")
    save(tmp_path / "in" / "small.png", tissue(3, 20, 20))
    code, out, err = run("qc", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 1
    assert len(err.splitlines()) == 3
    assert all(line.startswith("pathorestore: error: ") for line in err.splitlines())
    assert files_under(tmp_path / "out") == sorted([*three("good.png"), "qc.csv"])
    rows = table(tmp_path / "out")
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "good.png": rows["good.png"]["verdict"],
        **dict.fromkeys(("junk.png", "torn.svs", "small.png"), ""),
    }
    assert "at least 32 px" in rows["small.png"]["error"]
    assert "failed      3" in out


def test_json_tells_the_same_as_the_table(tmp_path, run):
    save(tmp_path / "in" / "good.png", tissue(3))
    (tmp_path / "in" / "junk.png").write_bytes(b"no image")
    code, out, _ = run("qc", tmp_path / "in", "-o", tmp_path / "out", "--json")
    told = json.loads(out)
    good, junk = told["files"]
    row = table(tmp_path / "out")["good.png"]
    assert told["summary"]["exit_code"] == code == 1
    assert junk["qc"] is None
    assert (good["status"], junk["status"], told["summary"]["judged"], "restored" in told["summary"]) == ("judged", "failed", 1, False)
    assert good["qc"]["verdict"] == row["verdict"]
    assert f"{good['qc']['median_um']:.3f}" == row["median_um"]
    assert good["qc"]["weights_sha256"] == row["weights_sha256"]
    assert "0.29 um" in good["qc"]["uncertainty"]
    assert told["summary"]["verdicts"][row["verdict"]] == 1
    again = json.loads(run("qc", tmp_path / "in", "-o", tmp_path / "out", "--json", "--skip-existing")[1])
    assert again["files"][0]["status"] == "skipped"
    assert again["files"][0]["qc"]["verdict"] == row["verdict"]


def test_a_second_run_refuses_skips_or_overwrites_and_the_table_keeps_what_was_found(tmp_path, run):
    save(tmp_path / "a.png", tissue(3))
    words = ("qc", tmp_path / "a.png", "-o", tmp_path / "out")
    assert [run(*words)[0], run(*words)[0], run(*words, "--skip-existing")[0], run(*words, "--overwrite")[0]] == [0, 4, 0, 0]
    before = table(tmp_path / "out")
    assert before["a.png"]["error"] == ""
    save(tmp_path / "b.png", tissue(4))
    assert run("qc", tmp_path / "b.png", "-o", tmp_path / "out")[0] == 0
    after = table(tmp_path / "out")
    assert set(after) == {"a.png", "b.png"}
    assert after["a.png"] == before["a.png"]
    (tmp_path / "out" / "qc.csv").unlink()
    assert run(*words, "--skip-existing")[0] == 0
    assert table(tmp_path / "out")["a.png"]["verdict"] == before["a.png"]["verdict"]
    (tmp_path / "out" / "a.png.qc.csv").unlink()
    code, _, err = run(*words)
    assert code == 4
    assert "a.png.qc.png: exists already" in err
    assert table(tmp_path / "out")["a.png"]["verdict"] == before["a.png"]["verdict"]


@pytest.mark.parametrize("left", [["png"], ["png", "geojson"]])
def test_what_a_killed_run_left_without_its_table_is_judged_anew_by_skip_existing(tmp_path, run, left):
    save(tmp_path / "a.png", tissue(3))
    (tmp_path / "out").mkdir()
    for kind in left:
        (tmp_path / "out" / f"a.png.qc.{kind}").write_text("old")
    words = ("qc", tmp_path / "a.png", "-o", tmp_path / "out")
    code, _, err = run(*words)
    assert (code, "--skip-existing replace it" in err) == (4, True)
    assert run(*words, "--skip-existing")[0] == 0
    assert files_under(tmp_path / "out") == sorted([*three("a.png"), "qc.csv"])
    assert b"old" not in [(tmp_path / "out" / name).read_bytes() for name in three("a.png")]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("fails_at", [1, 2, 3])
@pytest.mark.parametrize("error", [OSError(28, "no space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_a_run_that_is_stopped_while_it_writes_leaves_all_three_files_or_none_and_can_be_taken_up(
    tmp_path, run, monkeypatch, error, fails_at, existing
):
    save(tmp_path / "a.png", tissue(3, 64, 64))
    words = ("qc", tmp_path / "a.png", "-o", tmp_path / "out")
    if existing:
        assert run(*words)[0] == 0
        for name in three("a.png"):
            (tmp_path / "out" / name).write_text(f"mine {name}")
    calls = []

    def fail(path: Path, data: bytes) -> None:
        calls.append(path.name)
        if len(calls) == fails_at:
            raise error
        write_atomic(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(focus_report, "write_atomic", fail)
        patched.setattr(geojson, "write_atomic", fail)
        assert run(*words, *["--overwrite"] * existing)[0] in (4, 130)
    there = {name: (tmp_path / "out" / name).read_text() for name in three("a.png") if (tmp_path / "out" / name).exists()}
    assert there == ({name: f"mine {name}" for name in three("a.png")} if existing else {})
    assert run(*words, "--skip-existing")[0] == 0


@pytest.mark.parametrize("name", ["<script>alert(1)<", "two\nlines", "=cmd|' calc'!A0", 'comma, "quote"', "\u00b5m \U0001f52c", "x" * 240])
def test_hostile_names_stay_one_row_one_line_and_no_markup(tmp_path, run, name):
    save(tmp_path / "in" / f"{name}.png", tissue(3))
    (tmp_path / "in" / "bad\nname.png").write_bytes(b"")
    code, _, err = run("qc", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 1
    assert len(err.splitlines()) == 1
    rows = table(tmp_path / "out")
    assert len(rows) == 2
    assert len(files_under(tmp_path / "out")) == 4
    json.loads(next((tmp_path / "out").glob("*.geojson")).read_text())
    (row,) = (row for row in rows.values() if row["verdict"])
    assert row["error"] == ""


def test_a_name_that_is_no_text_is_judged_and_written(tmp_path, run):
    import os

    folder = tmp_path / "in"
    save(folder / "a.png", tissue(3))
    try:
        (folder / "a.png").rename(folder / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this disk takes names of text only")
    for words in ((), ("--overwrite",), ("--skip-existing",)):
        assert run("qc", folder, "-o", tmp_path / "out", *words)[0] == 0
        (name,) = table(tmp_path / "out")
        assert name == "\\udcff.png"


def test_a_name_with_a_carriage_return_stays_one_row_run_after_run(tmp_path, run):
    save(tmp_path / "in" / "a\rb.png", tissue(3, 64, 64))
    for words in ((), ("--overwrite",)):
        assert run("qc", tmp_path / "in", "-o", tmp_path / "out", *words)[0] == 0
        assert list(table(tmp_path / "out")) == ["a\\rb.png"]


def test_every_nth_tile_is_judged_alone(tmp_path, run):
    save(tmp_path / "a.png", tissue(2, 448, 448))
    assert run("qc", tmp_path / "a.png", "-o", tmp_path / "all", "--tile", "64")[0] == 0
    assert run("qc", tmp_path / "a.png", "-o", tmp_path / "few", "--tile", "64", "--every", "4")[0] == 0
    every, few = (
        {tuple(line.split(",")[:4]): line for line in (tmp_path / name / "a.png.qc.csv").read_text().splitlines()[1:]}
        for name in ("all", "few")
    )
    assert len(few) == 4
    assert set(few) < set(every)
    assert sum(abs(float(few[box].split(",")[4]) - float(every[box].split(",")[4])) < 0.002 for box in few) == 4


def test_the_options_have_the_defaults_of_the_thresholds():
    told = cli._parser().parse_args(["qc", "a.png", "-o", "out"]).qc
    assert (told.fine_ctf, told.rescan_um) == (Thresholds().fine_ctf, Thresholds().rescan_um)


def test_thresholds_are_options(tmp_path, run):
    save(tmp_path / "a.png", tissue(2))
    verdicts = []
    for number, words in enumerate((("--fine-ctf", "0.01"), ("--fine-ctf", "1"), ("--rescan-um", "0.01"))):
        assert run("qc", tmp_path / "a.png", "-o", tmp_path / str(number), *words)[0] == 0
        verdicts.append(table(tmp_path / str(number))["a.png"]["verdict"])
    assert verdicts == ["fine", "restore", "rescan"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["qc", "a.png"], "-o/--output"),
        (["qc", "-o", "out"], "INPUT"),
        (["qc", "a.png", "-o", "out.csv"], "the output must be a folder"),
        (["qc", "a.png", "-o", "."], "inputs are never replaced"),
        (["qc", "empty", "-o", "out"], "holds no images"),
        (["qc", "a.png", "-o", "a.png/out"], "is a file, so nothing can be written below it"),
        (["qc", "a.png", "-o", "taken"], "no table of this version of qc"),
        (["qc", "a.png", "-o", "out", "--every", "0"], "--every 0 must be at least 1"),
        (["qc", "a.png", "-o", "out", "--every", "some"], "--every"),
        (["qc", "a.png", "-o", "out", "--tile", "20"], "--tile 20 must be at least 64"),
        (["qc", "a.png", "-o", "out", "--mpp", "0"], "--mpp 0.0 must lie in"),
        (["qc", "a.png", "-o", "out", "--fine-ctf", "2"], "--fine-ctf 2.0 must lie"),
        (["qc", "a.png", "-o", "out", "--rescan-um", "-1"], "--rescan-um -1.0 must be"),
        (["qc", "a.png", "-o", "out", "--overwrite", "--skip-existing"], "not allowed with argument --overwrite"),
        (["qc", "a.png", "-o", "out", "--revision", "main"], "--revision belongs to a hub repository"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(tmp_path, run, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "qc.csv").write_text("my,own\ntable,here\n")
    save(tmp_path / "a.png", tissue(1, 64, 64))
    before = files_under(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("pathorestore: error: ")
    assert expected in err
    assert files_under(tmp_path) == before


def test_an_input_is_never_written_to_even_through_a_link(tmp_path, run):
    picture = save(tmp_path / "in" / "a.png", tissue(1, 64, 64))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png.qc.png").hardlink_to(picture)
    before = picture.read_bytes()
    code, _, err = run("qc", tmp_path / "in", "-o", tmp_path / "out", "--overwrite")
    assert code == 2
    assert "inputs are never replaced" in err
    assert picture.read_bytes() == before


def test_the_limit_on_pixels_and_a_missing_file_are_errors_about_the_input(tmp_path, run):
    save(tmp_path / "a.png", tissue(1, 64, 64))
    code, _, err = run("qc", tmp_path / "a.png", "-o", tmp_path / "out", "--max-pixels", 64 * 64 - 1)
    assert code == 3
    assert "--max-pixels 4096" in err
    code, _, err = run("qc", tmp_path / "none.png", "-o", tmp_path / "out")
    assert code == 3
    assert "no such file" in err


def test_slides_without_openslide_name_the_remedy(tmp_path, run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openslide", None)
    (tmp_path / "a.svs").write_bytes(b"II*\0")
    save(tmp_path / "b.png", tissue(1, 64, 64))
    code, _, err = run("qc", tmp_path / "a.svs", tmp_path / "b.png", "-o", tmp_path / "out")
    assert code == 1
    assert 'pip install "pathorestore[slides]"' in err
    assert "unexpected" not in err
    assert table(tmp_path / "out")["b.png"]["verdict"]


def test_another_model_is_named_and_its_errors_called_unknown(tmp_path, run):
    from pathorestore.pipelines.mop import default_folder

    save(tmp_path / "a.png", tissue(1, 64, 64))
    code, out, _ = run("qc", tmp_path / "a.png", "-o", tmp_path / "out", "--model", default_folder(), "--json")
    assert code == 0
    assert json.loads(out)["files"][0]["qc"]["uncertainty"] == ""
    system = table(tmp_path / "out")["a.png"]
    assert run("qc", tmp_path / "a.png", "-o", tmp_path / "alone", "--model", default_folder() / "defocus")[0] == 0
    alone = table(tmp_path / "alone")["a.png"]
    assert (system["model"], alone["model"]) == ("mop-tiny", "defocus")
    assert (system["weights_sha256"], system["median_um"]) == (alone["weights_sha256"], alone["median_um"])
