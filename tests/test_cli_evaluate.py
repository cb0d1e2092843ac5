"""`pathorestore evaluate`, from the command line to the files."""

import base64
import csv
import json
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from tissue_files import save, tissue

from pathorestore.cli import main
from pathorestore.evaluation.journal import JOURNAL
from pathorestore.pipelines.iste import ISTE, ISTEConfig

HOSTILE = "<script>alert(1)<script>"
FEW = ("--metrics", "psnr", "ssim", "nuclei_objects", "--pictures", "2", "-q")


@pytest.fixture
def folders(tmp_path):
    """Twelve clean tiles, their degraded selves, and two folders of restored ones, one better than the other."""
    for seed in range(12):
        clean = tissue(seed, 96, 96).astype(float)
        name = f"{HOSTILE if seed == 0 else 'tile'}{seed}.png"
        rng = np.random.default_rng(seed)
        noise = rng.normal(0, 1, clean.shape)
        for folder, deviation in (("clean", 0), ("degraded", 20), ("worse", 12), ("better", 4)):
            save(tmp_path / folder / name, np.clip(clean + deviation * noise, 0, 255).astype(np.uint8))
    return tmp_path


def run(folders, *words, out="out"):
    places = ("--clean", str(folders / "clean"), "--degraded", str(folders / "degraded"), "-o", str(folders / out))
    return main(["evaluate", *places, *words])


def both(folders):
    return "--restored", f"worse={folders / 'worse'}", "--restored", f"better={folders / 'better'}"


def rows_in(folder):
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_several_restored_folders_are_compared_in_one_report(folders, capsys):
    assert run(folders, *both(folders), *FEW, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["methods"] == ["degraded", "worse", "better"]
    claims = {one["other"]: one["verdict"] for one in summary["comparisons"] if one["column"] == "psnr_db"}
    assert claims == {"degraded": "better", "worse": "better"}
    assert len(rows_in(folders / "out")) == 36
    assert {path.name for path in (folders / "out").iterdir()} >= {
        "report.html",
        "scores.csv",
        "scores.parquet",
        "summary.json",
        "tables.md",
    }


class Tags(HTMLParser):
    """The tags of a page, and how often each occurs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)


def test_a_file_called_script_does_not_become_one(folders):
    assert run(folders, *both(folders), *FEW) == 0
    page = (folders / "out" / "report.html").read_text(encoding="utf-8")
    for seed in (0,):
        for folder in ("clean", "degraded", "worse", "better"):
            (folders / folder / f"{HOSTILE}{seed}.png").rename(folders / folder / f"plain{seed}.png")
    assert run(folders, *both(folders), *FEW, out="plain") == 0
    tags = []
    for text in (page, (folders / "plain" / "report.html").read_text(encoding="utf-8")):
        parser = Tags()
        parser.feed(text)
        tags.append(parser.seen)
    assert tags[0] == tags[1]
    assert HOSTILE not in page


def test_the_same_command_measures_nothing_twice(folders, monkeypatch):
    assert run(folders, *both(folders), *FEW) == 0
    before = (folders / "out" / "scores.csv").read_bytes()
    monkeypatch.setattr("pathorestore.metrics.fidelity.psnr", lambda *_: pytest.fail("measured again"))
    assert run(folders, *both(folders), *FEW) == 0
    assert (folders / "out" / "scores.csv").read_bytes() == before


def test_another_command_on_the_same_folder_is_refused_until_it_may_overwrite(folders, capsys):
    assert run(folders, *both(folders), *FEW) == 0
    assert run(folders, *both(folders), *FEW, "--crop", "64") == 2
    assert "crop_px was 0, is 64" in capsys.readouterr().err
    assert run(folders, *both(folders), *FEW, "--crop", "64", "--overwrite") == 0


def test_a_folder_of_something_else_is_left_alone(folders, capsys):
    save(folders / "out" / "precious.png", tissue(0))
    assert run(folders, *both(folders), *FEW) == 2
    assert "holds files of something else" in capsys.readouterr().err
    assert [path.name for path in (folders / "out").iterdir()] == ["precious.png"]


def test_one_bad_file_is_told_and_the_others_are_judged(folders, capsys):
    (folders / "worse" / "tile5.png").write_bytes(b"broken")
    (folders / "better" / "tile6.png").unlink()
    assert run(folders, *both(folders), *FEW) == 1
    told = capsys.readouterr().err
    assert "tile5.png, worse: " in told
    assert "tile6.png, better: " in told
    rows = rows_in(folders / "out")
    assert len(rows) == 36
    assert sum(bool(row["error"]) for row in rows) == 2
    assert main(["evaluate", "--help"]) == 0


def test_simulated_defocus_is_evaluated_with_tuned_baselines(folders):
    words = ("--simulate", "0.8", "2.4", "--limit", "2", "--baseline", "degraded", "unsharp", "wiener", "--reference", "Wiener, PSF known")
    assert main(["evaluate", "--clean", str(folders / "clean"), "-o", str(folders / "out"), *words, *FEW]) == 0
    summary = json.loads((folders / "out" / "summary.json").read_text())
    psnr = {one["method"]: one["interval"]["mean"] for one in summary["scores"] if one["column"] == "psnr_db"}
    assert psnr["degraded"] < psnr["unsharp mask"] < psnr["Wiener, PSF known"]
    assert {(one["low"], one["high"]) for one in summary["bins"]} == {(0.8, 0.8), (2.4, 2.4)}


def test_upscalers_are_judged_on_images_that_were_made_smaller(folders, tmp_path, capsys):
    torch.manual_seed(0)
    network = ISTE.of(ISTEConfig.tiny())
    torch.nn.init.normal_(network.decoder.pixel[-1].weight, std=0.01)
    network.save_pretrained(tmp_path / "mine")
    words = ("--reduce", "2", "2.7", "--limit", "2", "--baseline", "degraded", "unsharp", "--model", f"mine={tmp_path / 'mine'}")
    assert main(["evaluate", "--clean", str(folders / "clean"), "-o", str(folders / "out"), *words, *FEW]) == 0
    summary = json.loads((folders / "out" / "summary.json").read_text())
    assert summary["methods"] == ["bicubic", "unsharp mask", "mine"]
    psnr = {one["method"]: one["interval"]["mean"] for one in summary["scores"] if one["column"] == "psnr_db"}
    # an untrained network spoils what it adds to; a tuned mask is never worse than none
    assert psnr["mine"] < psnr["bicubic"] - 0.01
    assert psnr["unsharp mask"] >= psnr["bicubic"]
    assert summary["axis"]["field"] == "scale"
    assert {(one["low"], one["high"]) for one in summary["bins"]} == {(2, 2), (2.7, 2.7)}
    assert any("x2.7: " in note for note in summary["notes"])
    assert {(row["scale"], row["z_um"]) for row in rows_in(folders / "out")} == {("2.0", ""), ("2.7", "")}
    assert "by scale" in (folders / "out" / "tables.md").read_text()
    page = (folders / "out" / "report.html").read_text()
    assert "By scale" in page
    again = ("--blur", "0", *words)
    assert main(["evaluate", "--clean", str(folders / "clean"), "-o", str(folders / "out"), *again, *FEW]) == 2
    assert "blur" in capsys.readouterr().err
    assert main(["evaluate", "--clean", str(folders / "clean"), "-o", str(folders / "sharp"), *again, *FEW]) == 0
    sharp = json.loads((folders / "sharp" / "summary.json").read_text())
    assert next(one["interval"]["mean"] for one in sharp["scores"] if one["column"] == "psnr_db") > psnr["bicubic"]


def test_a_model_is_run_on_degraded_images(folders):
    assert run(folders, "--coarse", "coarse=default", *FEW, "--limit", "1", "--tile", "128") == 0
    (_, row) = rows_in(folders / "out")
    assert row["method"] == "coarse"
    assert float(row["psnr_db"]) > 10
    run_facts = json.loads((folders / "out" / "summary.json").read_text())["run"]
    assert run_facts["methods"]["coarse"]["model"] == "mop-tiny"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--metrics", "beauty"), "'beauty' is no metric; expected some of psnr"),
        (("--restored", "worse"), "must be NAME=VALUE"),
        (("--restored", "degraded=."), "named twice"),
        (("--reference", "best"), "is none of the methods"),
        (("--baseline", "wiener"), "add --simulate or leave it out"),
        (("--segmenter", "magic"), "expected watershed"),
        (("--segmenter", "precomputed=nowhere", "--metrics", "nuclei"), "none of the chosen metrics"),
        (("--simulate", "1.0"), "--degraded belongs to --clean"),
        (("--reduce", "2"), "--degraded belongs to --clean"),
        (("--reduce", "2", "--simulate", "1.0"), "give one of them"),
        (("--blur", "0"), "--blur belongs to --reduce"),
        (("--level", "patch", "--patch", "3"), "at least 16 px"),
        (("--limit", "0"), "--limit 0 must be at least 1"),
        (("--facts", "nowhere.csv"), "nowhere.csv"),
        (("--setting", "shifted"), "--setting belongs to --simulate"),
        (("--tune-on", "."), "--tune-on belongs to --simulate"),
        (("--risk",), "--risk judges the risk maps of models"),
        (("--segmenter", "precomputed=.", "--crop", "64"), "label maps made elsewhere fit whole images"),
        (("--iqa", "nowhere", "--metrics", "niqe"), "none of the chosen metrics can be had: niqe: nowhere"),
    ],
)
def test_wishes_that_do_not_fit_are_told_in_one_line(folders, capsys, monkeypatch, words, told):
    monkeypatch.chdir(folders / "degraded")
    given = [word for word in FEW if "--metrics" not in words or word not in ("--metrics", "psnr", "ssim", "nuclei_objects")]
    assert run(folders, *given, *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert not (folders / "out" / "report.html").exists()


def test_images_made_elsewhere_do_not_go_with_simulated_ones(folders, capsys):
    words = ("--clean", str(folders / "clean"), "--simulate", "1.0", *both(folders), "-o", str(folders / "out"))
    assert main(["evaluate", *words, *FEW]) == 2
    assert "--restored images are of one degraded image each" in capsys.readouterr().err


def test_an_output_among_the_inputs_is_refused_before_it_becomes_one_of_them(folders, capsys):
    assert run(folders, *both(folders), *FEW, out="clean/judged") == 2
    assert "whose images are judged; name a folder outside with -o" in capsys.readouterr().err
    assert not (folders / "clean" / "judged").exists()


def test_a_method_is_added_later_without_measuring_the_others_again(folders, capsys):
    assert run(folders, *both(folders), *FEW) == 0
    import pathorestore.evaluation.run as module

    before = {(row["case"], row["method"]): row["psnr_db"] for row in rows_in(folders / "out")}
    seen = []
    real = module.Evaluation._measured

    def watch(self, row, image, case):
        seen.append(row.method)
        return real(self, row, image, case)

    module.Evaluation._measured = watch
    try:
        assert run(folders, *both(folders), "--restored", f"third={folders / 'worse'}", *FEW) == 0
    finally:
        module.Evaluation._measured = real
    assert set(seen) == {"third"}
    after = {(row["case"], row["method"]): row["psnr_db"] for row in rows_in(folders / "out")}
    assert before.items() < after.items()


def test_pictures_follow_images_that_changed(folders):
    assert run(folders, *both(folders), *FEW) == 0
    first = (folders / "out" / "report.html").read_text()
    for path in (folders / "better").iterdir():
        save(path, tissue(99, 96, 96))
    assert run(folders, *both(folders), *FEW) == 0
    kept = {one.read_bytes() for one in (folders / "out" / "pictures").iterdir()}
    page = (folders / "out" / "report.html").read_text()
    pictures = set(re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)) - set(re.findall(r"base64,([A-Za-z0-9+/=]+)", first))
    assert pictures
    assert all(base64.b64decode(one) in kept for one in pictures)


def test_label_maps_made_elsewhere_are_used_and_a_missing_one_costs_its_metric_only(folders):
    maps = folders / "maps"
    maps.mkdir()
    for number in range(1, 12):
        labels = np.zeros((96, 96), np.int32)
        labels[20:40, 20:40] = 1
        np.save(maps / f"tile{number}.npy", labels)
    words = ("--segmenter", f"precomputed={maps}", "--metrics", "psnr", "nuclei", "--pictures", "0", "-q")
    assert run(folders, *both(folders), *words) == 0
    rows = [row for row in rows_in(folders / "out") if row["method"] == "better"]
    assert [bool(row["psnr_db"]) for row in rows] == [True] * 12
    assert [bool(row["l1_texture"]) for row in rows].count(False) == 1


def test_the_distance_of_sets_can_be_had_alone(folders, capsys):
    assert run(folders, *both(folders), "--metrics", "frechet", "--pictures", "0", "-q", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    distances = {method: value for _, method, value, _ in summary["set_scores"]}
    assert distances["better"] < distances["worse"] < distances["degraded"]
    assert summary["columns"] == []


def test_nothing_named_is_told():
    assert main(["evaluate", "-o", "out"]) == 2


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_table(folders):
    words = ["evaluate", "--clean", str(folders / "clean"), "--degraded", str(folders / "degraded"), *both(folders), *FEW]
    program = "import sys; from pathorestore.cli import main; sys.exit(main(sys.argv[1:]))"
    running = subprocess.Popen([sys.executable, "-c", program, *words, "-o", str(folders / "out")])
    while kept(folders / "out") < 7:
        time.sleep(0.02)
        assert running.poll() is None
    running.kill()
    running.wait()
    assert not (folders / "out" / "scores.csv").exists()
    assert 7 <= kept(folders / "out") < 36
    assert run(folders, *both(folders), *FEW) == 0
    assert run(folders, *both(folders), *FEW, out="whole") == 0
    assert (folders / "out" / "scores.csv").read_bytes() == (folders / "whole" / "scores.csv").read_bytes()


def kept(folder):
    """Rows that a journal holds."""
    try:
        with closing(sqlite3.connect(f"file:{folder / JOURNAL}?mode=ro", uri=True)) as connection:
            return connection.execute("select count(*) from rows").fetchone()[0]
    except sqlite3.Error:
        return 0


SCALE = """
import re, sys
from pathlib import Path
from pathorestore.cli import main
code = main(["evaluate", "--clean", sys.argv[1], "--degraded", sys.argv[2], "--metrics", "psnr", "ssim", "gmsd", "-o", sys.argv[3],
             "--limit", sys.argv[4], "-q", "--pictures", "4"])
# not ru_maxrss, which a child inherits from whoever started it
print(code, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
def test_a_thousand_pairs_need_no_more_memory_than_a_hundred(tmp_path):
    for number in range(1000):
        pixels = tissue(number % 7, 256, 256)
        save(tmp_path / "clean" / f"{number:04}.png", pixels)
        save(tmp_path / "degraded" / f"{number:04}.png", pixels // 2)
    peaks = []
    for count in (100, 1000):
        words = [sys.executable, "-c", SCALE, str(tmp_path / "clean"), str(tmp_path / "degraded"), str(tmp_path / f"o{count}"), str(count)]
        code, peak = map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-2:])
        assert code == 0
        peaks.append(peak)
    print(f"peak MiB: {peaks}")
    assert peaks[1] - peaks[0] < 60
