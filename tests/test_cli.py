"""The command as a user meets it: weird files, clear lines, exit codes, and nothing half-written."""

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from argparse import _HelpAction
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from jsonargparse import ArgumentParser
from PIL import Image

import pathorestore
from pathorestore import cli
from pathorestore.pipelines import assemble, info
from pathorestore.pipelines.assemble import ReadyRestorer, RestoreOptions
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.provenance import read_provenance
from pathorestore.slide.jobs import MANIFEST_NAME


class Sharpener:
    """A real, if simple, restorer: an unsharp mask of 3 x 3 px. It fails, if told to, on images of one width."""

    tile_px = 256

    def __init__(self, *, fails_at_width: int = -1):
        self.fails_at_width = fails_at_width

    def restore(self, image: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
        if image.shape[-1] == self.fails_at_width:
            raise RuntimeError("kernel and input do not match")
        smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return (2 * image - smooth).clamp(0, 1)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line with the sharpener for a model; returns exit code, stdout and stderr."""
    restorer = Sharpener()

    def ready(options: RestoreOptions, **_: object) -> ReadyRestorer:
        parameters = {"tile_px": options.tile_px, "coarse_only": options.coarse_only}
        made = {"restorer": restorer, "system": restorer, "device": "cpu", "precision": "fp32"}
        return ReadyRestorer(**made, model_id="sharpener", weights_sha256=None, parameters=parameters)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(assemble, "ready_restorer", ready)
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    call.restorer = restorer
    return call


def pixels_of(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(height).integers(0, np.iinfo(dtype).max, (height, width, channels), endpoint=True).astype(dtype)


def fill_with_odd_files(folder: Path) -> None:
    """Every kind of image that is unusual and sound."""
    folder.mkdir()
    rgb = Image.fromarray(pixels_of(20, 24))
    rgb.save(folder / "rgb.png")
    rgb.save(folder / "rgb.jpg")
    rgb.save(folder / "rgb.bmp")
    rgb.save(folder / "rgb.tif", compression="tiff_lzw")
    rgb.convert("L").save(folder / "gray.png")
    rgb.convert("L").save(folder / "gray.jpeg")
    rgb.quantize(16).save(folder / "palette.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("CMYK").save(folder / "cmyk.tif")
    rgb.convert("1").save(folder / "bilevel.png")
    Image.fromarray(pixels_of(20, 24, 4)).save(folder / "alpha.png")
    rgb.save(folder / "really-a-png.jpg", "PNG")
    tifffile.imwrite(folder / "deep.tif", pixels_of(20, 24, 3, np.uint16), photometric="rgb")
    tifffile.imwrite(folder / "deep gray.tif", pixels_of(20, 24, 1, np.uint16)[..., 0])
    for height, width in ((1, 1), (31, 17), (1, 5000), (5000, 1)):
        Image.fromarray(pixels_of(height, width)).save(folder / f"{width}x{height}.png")


BAD = {
    "empty.png": "is empty (0 bytes)",
    "text.png": "is not an image",
    "cut.png": "damaged or truncated PNG",
    "cut.jpg": "damaged or truncated JPEG",
    "cut.tif": "is truncated",
    "bomb.png": "--max-pixels 2500000000",
    "float.tif": "float32 samples",
    "stack.tif": "3 images of the same size",
    "gone.png": "no such file or directory",
    "dangling.png": "no such file or directory",
}


def fill_with_bad_files(folder: Path) -> None:
    """Every kind of file that must fail alone."""
    folder.mkdir()
    picture = Image.fromarray(pixels_of(20, 24))
    for name in ("cut.png", "cut.jpg", "cut.tif"):
        picture.save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-60] if name == "cut.tif" else content[: len(content) // 2])
    tifffile.imwrite(folder / "cut.tif", pixels_of(20, 24), photometric="rgb")
    (folder / "cut.tif").write_bytes((folder / "cut.tif").read_bytes()[:-60])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("hello")
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = (
        struct.pack(">I", len(item) - 4) + item + struct.pack(">I", zlib.crc32(item)) for item in (header, b"IDAT" + zlib.compress(b"x"))
    )
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    tifffile.imwrite(folder / "float.tif", np.zeros((8, 8), np.float32))
    tifffile.imwrite(folder / "stack.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")


def files_under(folder: Path) -> list[str]:
    """Names of all files below a folder but its manifest of jobs."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not (path.is_dir() or path.name == MANIFEST_NAME))


def test_every_odd_but_sound_file_is_restored(tmp_path, run):
    fill_with_odd_files(tmp_path / "in")
    code, out, err = run("restore", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    for path in (tmp_path / "in").iterdir():
        target = tmp_path / "out" / (path.name if path.suffix != ".bmp" else f"{path.name}.png")
        source, restored = read_image_file(path), read_image_file(target)
        assert restored.image.shape == source.image.shape
        assert (restored.bit_depth, restored.mode, restored.has_alpha) == (
            source.bit_depth,
            source.mode,
            source.has_alpha and target.suffix != ".jpg",
        )
        assert read_provenance(target).model_id == "sharpener"
    assert out.count("\nrestored") + out.startswith("restored") == 19
    assert "CMYK converted to RGB without an ICC profile" in out


def test_every_bad_file_fails_alone_with_one_line_and_leaves_nothing_behind(tmp_path, run):
    fill_with_bad_files(tmp_path / "in")
    Image.fromarray(pixels_of(20, 24)).save(tmp_path / "in" / "good.png")
    Image.fromarray(pixels_of(20, 24)).save(tmp_path / "in" / "zz last.png")
    code, out, err = run("restore", tmp_path / "in", tmp_path / "in" / "gone.png", "-o", tmp_path / "out")
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == len(BAD)
    for name, words in BAD.items():
        (line,) = (line for line in lines if f"{name}: " in line)
        assert line.startswith("pathorestore: error: ")
        assert words in line
    assert files_under(tmp_path / "out") == ["good.png", "zz last.png"]
    assert "restored      2" in out
    assert f"failed       {len(BAD)}" in out


def test_a_failure_of_the_restorer_is_one_line_and_a_traceback_on_demand(tmp_path, run):
    for width in (8, 9):
        Image.fromarray(pixels_of(8, width)).save(tmp_path / f"{width}.png")
    run.restorer.fails_at_width = 8
    words = ("restore", tmp_path / "8.png", tmp_path / "9.png", "-o", tmp_path / "out")
    code, _, err = run(*words)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "8.png: unexpected RuntimeError: kernel and input do not match" in err
    assert files_under(tmp_path / "out") == ["9.png"]
    code, _, err = run(*words, "--overwrite", "--verbose")
    assert "Traceback" in err


def test_the_limit_on_pixels_can_be_raised(tmp_path, run):
    Image.fromarray(pixels_of(10, 20)).save(tmp_path / "a.png")
    words = ("restore", tmp_path / "a.png", "-o", tmp_path / "out.png")
    code, _, err = run(*words, "--max-pixels", 199)
    assert code == 3
    assert "allow it with --max-pixels 200" in err
    assert run(*words, "--max-pixels", 200)[0] == 0


def test_json_is_alone_on_stdout_and_tells_every_file(tmp_path, run):
    fill_with_bad_files(tmp_path / "in")
    Image.fromarray(pixels_of(20, 24)).save(tmp_path / "in" / "good.png")
    code, out, err = run("restore", tmp_path / "in", "-o", tmp_path / "out", "--json")
    told = json.loads(out)
    assert told["summary"]["exit_code"] == code == 1
    assert {Path(entry["input"]).name: entry["status"] for entry in told["files"]} == {
        "good.png": "restored",
        **dict.fromkeys(set(BAD) - {"gone.png"}, "failed"),
    }
    assert "good.png" in err


def test_quiet_prints_failures_only(tmp_path, run):
    Image.fromarray(pixels_of(8, 8)).save(tmp_path / "a.png")
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "out.png", "--quiet") == (0, "", "")
    code, out, err = run("restore", tmp_path / "a.png", "-o", tmp_path / "out.png", "-q")
    assert (code, out) == (4, "")
    assert "exists already" in err


def test_a_second_run_refuses_skips_or_overwrites(tmp_path, run):
    Image.fromarray(pixels_of(8, 8)).save(tmp_path / "a.png")
    words = ("restore", tmp_path / "a.png", "-o", tmp_path / "out.png")
    assert [run(*words)[0], run(*words)[0], run(*words, "--skip-existing")[0], run(*words, "--overwrite")[0]] == [0, 4, 0, 0]


def test_a_folder_may_be_the_output_of_one_file(tmp_path, run):
    Image.fromarray(pixels_of(8, 8)).save(tmp_path / "a.png")
    (tmp_path / "there").mkdir()
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "there")[0] == 0
    assert files_under(tmp_path / "there") == ["a.png"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["restore", "a.png"], "-o/--output"),
        (["restore", "-o", "out"], "INPUT"),
        (["restore", "a.png", "-o", "a.png"], "inputs are never replaced"),
        (["restore", "a.png", "b.png", "-o", "out.png"], "there are several inputs, so the output must be a folder"),
        (["restore", "folder", "-o", "out"], "holds no images"),
        (["restore", "a.png", "-o", "b.png/deep/out.png"], "is a file, so nothing can be written below it"),
        (["restore", "a.png", "-o", "out", "--tile", "100"], "--tile 100 must be a positive multiple of 64 px; try --tile 128"),
        (["restore", "a.png", "-o", "out", "--tile", "0"], "try --tile 64"),
        (["restore", "a.png", "-o", "out", "--tile", "big"], "--tile"),
        (["restore", "a.png", "-o", "out", "--overlap", "128"], "--overlap 128 must lie in 0..127"),
        (["restore", "a.png", "-o", "out", "--overlap", "-1"], "--overlap -1"),
        (["restore", "a.png", "-o", "out", "--steps", "0"], "--steps 0 must be at least 1"),
        (["restore", "a.png", "-o", "out", "--steps", "2", "--coarse-only"], "--steps belongs to the second stage"),
        (["restore", "a.png", "-o", "out", "--seed", "-1"], "--seed -1 must not be negative"),
        (["restore", "a.png", "-o", "out", "--device", "tpu"], "choose from 'auto', 'cpu', 'cuda'"),
        (["restore", "a.png", "-o", "out", "--revision", "main"], "--revision belongs to a hub repository"),
        (["restore", "a.png", "-o", "out", "--overwrite", "--skip-existing"], "not allowed with argument --overwrite"),
        (["restore", "a.png", "-o", "out", "--til", "64"], "unrecognized arguments: --til 64"),
        (["mend", "a.png"], "invalid choice: 'mend'"),
        ([], "name a command: restore, upscale, enhance, stain, demo"),
        (["restore", "a.png", "-o", "out.gif"], "'.gif' is not a format written here"),
        (["simulate", "a.png", "-o", "out", "--z", "near"], "--z: Expected a float. Got value: near"),
        (["simulate", "a.png", "-o", "out", "--z", "1", "1.0001"], "names a focus position twice"),
        (["simulate", "a.png", "-o", "out", "--z", "nan"], "--z: Expected a float. Got value: nan"),
        (["simulate", "a.png", "-o", "out", "--pixel-um", "0"], "must be a positive number"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(tmp_path, run, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels_of(8, 8)).save("a.png")
    Image.fromarray(pixels_of(8, 8)).save("b.png")
    Path("folder").mkdir()
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("pathorestore: error: ")
    assert expected in err
    assert files_under(tmp_path) == ["a.png", "b.png"]


def test_a_model_that_is_none_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels_of(8, 8)).save("a.png")
    pickled = tmp_path / "pickled"
    (pickled / "coarse").mkdir(parents=True)
    torch.save({"weight": torch.zeros(1)}, pickled / "coarse" / "model.safetensors")
    (pickled / "file").write_bytes(b"")
    for model in ("no/such/folder", "owner/name", "nonsense", str(pickled), str(pickled / "file")):
        code = cli.main(["restore", "a.png", "-o", "out.png", "--model", model])
        out, err = capsys.readouterr()
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(f"pathorestore: error: {model}")
    assert not Path("out.png").exists()


def test_help_is_complete_and_fast():
    """Every option of every command says what it is for, and no help needs torch."""
    for fill, summary in cli._FILLERS.values():
        parser = ArgumentParser()
        fill(parser)
        assert summary
        assert all(isinstance(action, _HelpAction) or action.help for action in parser._actions)
    code = """
import sys
from pathorestore.cli import main
codes = [main([*command, "--help"]) for command in ([], ["restore"], ["demo"], ["info"], ["simulate"])]
assert [*codes, main(["--version"]), main(["mend"])] == [0] * 6 + [2]
assert not {"torch", "PIL", "cv2"} & sys.modules.keys()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "--skip-existing" in ran.stdout
    assert pathorestore.__version__ in ran.stdout


def test_a_file_name_that_is_no_text_or_no_line_is_still_one_line(tmp_path, run):
    names = [b"bad \xff.png", b"two\nlines.png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"")
    code, out, err = run("restore", tmp_path, "-o", tmp_path / "out", "--json")
    assert (code, len(err.splitlines())) == (1, 2 + 3)
    assert len(json.loads(out)["files"]) == 2


def test_the_package_is_a_command_too():
    ran = subprocess.run([sys.executable, "-m", "pathorestore", "--version"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, f"pathorestore {pathorestore.__version__}")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_queue_s_stop_keep_finished_files_and_nothing_else(tmp_path, run, sent):
    for name in "ab":
        Image.fromarray(pixels_of(8, 8)).save(tmp_path / f"{name}.png")
    waits = threading.Event()

    def restore(image: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
        if waits.is_set():
            os.kill(os.getpid(), sent)
            time.sleep(5)
        waits.set()
        return image

    run.restorer.restore = restore
    # a shell starts background jobs with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, out, err = run("restore", tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "--skip-existing goes on from here" in err
    assert files_under(tmp_path / "out") == ["a.png"]
    assert "not run       1" in out


def test_info_reads_back_how_a_file_was_made(tmp_path, run):
    Image.fromarray(pixels_of(8, 8)).save(tmp_path / "a.png")
    run("restore", tmp_path / "a.png", "-o", tmp_path / "out.tif", "--seed", 5)
    code, out, _ = run("info", tmp_path / "out.tif")
    assert code == 0
    for words in ("sharpener", "AI-restored, not for primary diagnosis", "seed            5", "tile_px=256"):
        assert words in out
    assert json.loads(run("info", tmp_path / "out.tif", "--json")[1])["seed"] == 5


@pytest.mark.parametrize(
    ("name", "words"), [("a.png", "carries no provenance"), ("gone.png", "no such file"), ("text.png", "is not an image")]
)
def test_info_on_other_files_says_so_and_exits_with_1(tmp_path, run, name, words):
    Image.fromarray(pixels_of(8, 8)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("hello")
    code, out, err = run("info", tmp_path / name)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert words in err


def test_info_lists_versions_devices_and_the_licence_of_each_model(tmp_path, run, monkeypatch):
    folder = tmp_path / "mop-test"
    (folder / "coarse").mkdir(parents=True)
    (folder / "system.json").write_text("{}")
    (folder / "README.md").write_text('---\nlicense: "apache-2.0"\ntags: ["a"]\n---\n\n# A test model\n\ntext\n')
    (folder / "coarse" / "model.safetensors").write_bytes(bytes(1_000_000))
    found = info.installation(tmp_path)
    monkeypatch.setattr(info, "installation", lambda: found)
    code, out, _ = run("info")
    assert code == 0
    for words in (
        f"pathorestore {pathorestore.__version__}",
        f"torch {torch.__version__}",
        "cpu, ",
        "mop-test: A test model, licence apache-2.0, 1.0 MB",
    ):
        assert words in out
    assert json.loads(run("info", "--json")[1])["models"][0]["parts"] == ["coarse"]


def test_simulate_writes_planes_clean_and_table_that_agree(tmp_path, run, nuclei_image):
    pixels = (nuclei_image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()[:48, :64]
    Image.fromarray(pixels).save(tmp_path / "tile.png")
    code, out, err = run("simulate", tmp_path / "tile.png", "-o", tmp_path / "stack", "--z", "-1.6", "0", "3.2", "--seed", 3)
    assert (code, err) == (0, "")
    assert "pixel size unknown, 0.25 um assumed" in out
    names = ["tile_z+0.000um.png", "tile_z+3.200um.png", "tile_z-1.600um.png"]
    assert files_under(tmp_path / "stack") == ["tile_clean.png", "tile_stack.csv", *names]
    rows = list(csv.DictReader((tmp_path / "stack" / "tile_stack.csv").read_text().splitlines()))
    assert [float(row["z_um"]) for row in rows] == [-1.6, 0.0, 3.2]
    assert [abs(float(row["defocus_um"]) - float(row["z_um"])) < 1e-6 for row in rows] == [True] * 3
    assert float(rows[1]["ctf"]) > float(rows[0]["ctf"]) > float(rows[2]["ctf"])
    clean = read_image_file(tmp_path / "stack" / "tile_clean.png")
    errors = [float((read_image_file(tmp_path / "stack" / row["plane"]).image - clean.image).square().mean()) for row in rows]
    assert errors[1] < errors[0] < errors[2]
    assert clean.pixel_um == pytest.approx(0.25)
    record = read_provenance(tmp_path / "stack" / rows[2]["plane"])
    assert (record.parameters["z_um"], record.seed, record.notice) == (3.2, 3, "simulated from another image, not for diagnosis")


def test_simulate_is_decided_by_its_seed_and_refuses_to_replace(tmp_path, run):
    Image.fromarray(pixels_of(40, 40)).save(tmp_path / "tile.png")
    words = ("simulate", tmp_path / "tile.png", "--z", "1", "--setting", "scanner", "--pixel-um", "0.3")
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(*words, "-o", tmp_path / folder, "--seed", seed)[0] == 0
    a, b, c = (read_image_file(tmp_path / folder / "tile_z+1.000um.png") for folder in "abc")
    assert torch.equal(a.image, b.image)
    assert not torch.equal(a.image, c.image)
    assert a.pixel_um == pytest.approx(0.3)
    code, _, err = run(*words, "-o", tmp_path / "a")
    assert code == 1
    assert "exists already" in err
    assert run(*words, "-o", tmp_path / "a", "--overwrite")[0] == 0


def test_simulate_obeys_setting_and_pixel_size(tmp_path, run):
    Image.fromarray(pixels_of(40, 40)).save(tmp_path / "tile.png")
    choices = {"ideal": (), "scanner": ("--setting", "scanner"), "coarse": ("--pixel-um", "0.5")}
    for folder, words in choices.items():
        assert run("simulate", tmp_path / "tile.png", "--z", "1", "-o", tmp_path / folder, *words)[0] == 0
    planes = [read_image_file(tmp_path / folder / "tile_z+1.000um.png").image for folder in choices]
    assert not torch.equal(planes[0], planes[1])
    assert not torch.equal(planes[0], planes[2])


def test_simulate_names_a_bad_image(tmp_path, run):
    (tmp_path / "text.png").write_text("hello")
    code, _, err = run("simulate", tmp_path / "text.png", "-o", tmp_path / "out")
    assert (code, len(err.splitlines())) == (1, 1)
    assert not (tmp_path / "out").exists()


def test_the_demo_without_scikit_image_names_the_extra(tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    code, out, err = run("demo", "-o", tmp_path)
    assert (code, out) == (2, "")
    assert 'pip install "pathorestore[demo]"' in err
