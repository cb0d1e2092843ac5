"""`pathorestore fuse` as a user meets it: folders, lists and TIFF stacks in, images with their record out, bad stacks named."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from focal_stacks import save_stack, stack
from image_samples import SRGB
from PIL import Image

from pathorestore import cli
from pathorestore.functional.drift import shifted
from pathorestore.functional.fusion import FusionConfig, fuse_stack
from pathorestore.image import to_uint8
from pathorestore.metrics.fidelity import psnr
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.provenance import read_provenance

SCENE = {"planes": 5, "tilt_um": 2.4}


@pytest.fixture
def run(capsys):
    """Run a command line; returns exit code, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def stored(scene) -> torch.Tensor:
    """The planes as 8-bit files hold them."""
    return scene.planes.mul(255).round().div(255)


def pages(scene, dtype: type = np.uint8) -> np.ndarray:
    """The planes n h w 3 as integers."""
    return (scene.planes.permute(0, 2, 3, 1).double() * np.iinfo(dtype).max).round().numpy().astype(dtype)


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_each_field_of_a_tree_gets_its_target_and_the_rows_find_it(tmp_path, run):
    from pathorestore.data.focal_stack import mop_rows

    for slide, fov in (("a", "1"), ("a", "2"), ("b", "1")):
        save_stack(tmp_path / "in" / slide, fov, stack(seed=int(fov), **SCENE))
    code, out, err = run("fuse", tmp_path / "in", "-o", tmp_path / "in")
    assert (code, err) == (0, "")
    targets = [name for name in files_under(tmp_path / "in") if "Z_" in name]
    assert targets == ["a/Z_1.jpg", "a/Z_2.jpg", "b/Z_1.jpg"]
    assert out.count("fused ") == 4  # a line for each and one of the closing table
    assert {Path(row.target).name for row in mop_rows(tmp_path / "in")} == {"Z_1.jpg", "Z_2.jpg"}


def test_the_fused_file_is_the_fused_stack_sharper_than_any_plane(tmp_path, run):
    scene = stack(**SCENE)
    save_stack(tmp_path / "in", "1", scene, suffix=".png")
    assert run("fuse", tmp_path / "in", "-o", tmp_path / "fused.png")[0] == 0
    found = read_image_file(tmp_path / "fused.png")
    assert torch.equal(found.image, fuse_stack(stored(scene)).image.mul(255).round().div(255))
    assert psnr(found.image, scene.clean) > max(psnr(plane[None], scene.clean) for plane in scene.planes) + 5


def test_the_record_tells_of_the_planes_and_of_no_file_name(tmp_path, run):
    save_stack(tmp_path / "in", "Jane Doe", stack(**SCENE), suffix=".png")
    run("fuse", tmp_path / "in", "-o", tmp_path / "fused.tif")
    record = read_provenance(tmp_path / "fused.tif")
    assert record.notice == "fused from 5 planes of a focal stack, not for primary diagnosis"
    assert (record.parameters["planes"], record.parameters["plane_names"]) == (5, "00 01 02 03 04")
    assert record.parameters["selectivity"] == FusionConfig().selectivity
    assert "Jane" not in record.to_json()
    code, out, _ = run("info", tmp_path / "fused.tif")
    assert code == 0
    assert "fused from 5 planes" in out


def test_depth_pixel_size_and_profile_are_those_of_the_planes(tmp_path, run):
    for number, page in enumerate(pages(stack(**SCENE), np.uint16)):
        tifffile.imwrite(
            tmp_path / f"p{number}.tif", page, photometric="rgb", iccprofile=SRGB, resolution=(40_000, 40_000), resolutionunit="CENTIMETER"
        )
    paths = sorted(tmp_path.glob("p*.tif"))
    assert run("fuse", *paths, "-o", tmp_path / "fused.png")[0] == 0
    found = read_image_file(tmp_path / "fused.png")
    assert (found.bit_depth, found.mode, found.icc) == (16, "rgb", SRGB)
    assert found.pixel_um == pytest.approx(0.25)
    first, last = ([*paths], [*reversed(paths)])
    run("fuse", *last, "-o", tmp_path / "reversed.png", "--depth-map", tmp_path / "back.png")
    run("fuse", *first, "-o", tmp_path / "again.png", "--depth-map", tmp_path / "depth.png")
    depth, back = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("depth.png", "back.png"))
    assert np.abs(depth + back - 4 * 256).max() <= 1  # files are taken in the order in which they are named


def test_gray_planes_give_a_gray_image_and_mixed_ones_the_deepest(tmp_path, run):
    scene = pages(stack(**SCENE))
    for number, page in enumerate(scene):
        Image.fromarray(page[..., 1]).save(tmp_path / f"1_{number}.png")
    assert run("fuse", tmp_path, "-o", tmp_path / "gray.png")[0] == 0
    assert read_image_file(tmp_path / "gray.png").mode == "gray"
    tifffile.imwrite(tmp_path / "1_0.png", scene[0].astype(np.uint16) * 257, photometric="rgb")
    code, out, _ = run("fuse", tmp_path, "-o", tmp_path / "mixed.png")
    assert code == 0
    assert "planes differ in depth or colour" in out
    found = read_image_file(tmp_path / "mixed.png")
    assert (found.mode, found.bit_depth) == ("rgb", 16)


def test_the_depth_map_holds_256_levels_a_plane(tmp_path, run):
    scene = stack(**SCENE)
    save_stack(tmp_path / "in", "1", scene, suffix=".png")
    run("fuse", tmp_path / "in", "-o", tmp_path / "fused.png", "--depth-map", tmp_path / "depth.png")
    levels = np.asarray(Image.open(tmp_path / "depth.png"))
    assert levels.dtype == np.uint16
    expected = fuse_stack(stored(scene)).depth_index[0, 0].numpy()
    assert np.abs(levels / 256 - expected).max() <= 0.5 / 256 + 1e-4
    assert read_provenance(tmp_path / "depth.png").parameters["levels_per_plane"] == 256


def test_depth_maps_of_several_stacks_go_to_a_folder(tmp_path, run):
    for fov in "12":
        save_stack(tmp_path / "in", fov, stack(**SCENE))
    assert run("fuse", tmp_path / "in", "-o", tmp_path / "out", "--depth-map", tmp_path / "out")[0] == 0
    assert files_under(tmp_path / "out") == ["1_depth.png", "2_depth.png", "Z_1.jpg", "Z_2.jpg"]


def write_imagej(path: Path, planes: np.ndarray) -> None:
    tifffile.imwrite(path, planes, imagej=True, metadata={"axes": "ZYXS"})


def write_pages(path: Path, planes: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as file:
        for plane in planes:
            file.write(plane, photometric="rgb", contiguous=False, metadata=None, compression="zlib")


def write_ome(path: Path, planes: np.ndarray) -> None:
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    tifffile.imwrite(path, planes, photometric="rgb", ome=True, metadata={"axes": "ZYXS", **sizes})


def write_ome_channels(path: Path, planes: np.ndarray) -> None:
    tifffile.imwrite(path, np.moveaxis(planes, -1, 1), photometric="minisblack", ome=True, metadata={"axes": "ZCYX"})


def write_ome_channels_first(path: Path, planes: np.ndarray) -> None:
    tifffile.imwrite(path, np.moveaxis(planes, -1, 0), photometric="minisblack", ome=True, metadata={"axes": "CZYX"})


def write_alpha(path: Path, planes: np.ndarray) -> None:
    opaque = np.concatenate([planes, np.full_like(planes[..., :1], 255)], -1)
    tifffile.imwrite(path, opaque, photometric="rgb", extrasamples=["unassalpha"])


@pytest.mark.parametrize("write", [write_imagej, write_pages, write_ome, write_ome_channels, write_ome_channels_first, write_alpha])
def test_a_tiff_stack_gives_what_its_planes_give_as_files(tmp_path, run, write):
    scene = stack(**SCENE)
    write(tmp_path / "stack.tif", pages(scene))
    code, _, err = run("fuse", tmp_path / "stack.tif", "-o", tmp_path / "fused.png")
    assert (code, err) == (0, "")
    found = read_image_file(tmp_path / "fused.png")
    assert torch.equal(found.image, fuse_stack(stored(scene)).image.mul(255).round().div(255))
    assert found.pixel_um == (pytest.approx(0.25) if write is write_ome else None)
    assert read_provenance(tmp_path / "fused.png").parameters["plane_names"] == "1 2 3 4 5"


def test_bits_and_inverted_gray_of_a_tiff_stack_are_read(tmp_path, run):
    gray = pages(stack(**SCENE))[..., 1]
    tifffile.imwrite(tmp_path / "white.tif", 255 - gray, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "black.tif", gray, photometric="minisblack")
    for name in ("white", "black"):
        assert run("fuse", tmp_path / f"{name}.tif", "-o", tmp_path / f"{name}.png")[0] == 0
    white, black = (read_image_file(tmp_path / f"{name}.png") for name in ("white", "black"))
    assert torch.equal(white.image, black.image)


def test_alignment_undoes_drift_and_says_so(tmp_path, run):
    scene = stack(**SCENE)
    drift = torch.tensor([[-3.0, 2.0], [-1.5, 1.0], [0.0, 0.0], [1.5, -1.0], [3.0, -2.0]])
    save_stack(tmp_path / "in", "1", scene._replace(planes=shifted(scene.planes, drift)), suffix=".png")
    assert run("fuse", tmp_path / "in", "-o", tmp_path / "plain.png")[0] == 0
    code, out, _ = run("fuse", tmp_path / "in", "-o", tmp_path / "aligned.png", "--align")
    assert code == 0
    assert "lateral drift of up to 3." in out
    inner = (..., slice(8, -8), slice(8, -8))
    plain, aligned = (
        float(psnr(read_image_file(tmp_path / name).image[inner], scene.clean[inner])) for name in ("plain.png", "aligned.png")
    )
    assert aligned > plain + 3
    assert read_provenance(tmp_path / "aligned.png").parameters["align"] is True


def test_the_planes_that_simulate_writes_fuse_by_their_pattern(tmp_path, run):
    Image.fromarray(to_uint8(stack().clean)).save(tmp_path / "tile.png")
    run("simulate", tmp_path / "tile.png", "-o", tmp_path / "s", "--z", "-1.6", "-0.8", "0", "0.8", "1.6")
    words = ("fuse", tmp_path / "s", "-o", tmp_path / "fused.png", "--pattern", "{fov}_z{plane}um")
    assert run(*words)[0] == 0
    assert read_provenance(tmp_path / "fused.png").parameters["plane_names"] == "-1.600 -0.800 +0.000 +0.800 +1.600"
    sharp = read_image_file(tmp_path / "s" / "tile_z+0.000um.png").image
    assert psnr(read_image_file(tmp_path / "fused.png").image, sharp) > 45


def fill_with_bad_stacks(folder: Path) -> dict[str, str]:
    """One sound stack between bad ones; returns what must be said of each of these."""
    scene = stack(**SCENE)
    for fov in ("1", "3", "5", "7", "9"):
        save_stack(folder, fov, scene)
    Image.new("RGB", (64, 60)).save(folder / "1_03.jpg")
    (folder / "3_02.jpg").write_bytes(b"")
    (folder / "5_04.jpg").write_bytes((folder / "5_04.jpg").read_bytes()[:-2000])
    for number in (1, 2, 3, 4):
        (folder / f"7_{number:02d}.jpg").unlink()
    return {
        "1_03.jpg": "has 64 x 60 px, 1_00.jpg has 192 x 192; planes of one stack are equal",
        "3_02.jpg": "is empty (0 bytes)",
        "5_04.jpg": "damaged or truncated JPEG",
        "7_00.jpg": "holds one plane, and a stack has two or more",
    }


def test_a_bad_stack_fails_alone_with_one_line_and_leaves_nothing_behind(tmp_path, run):
    bad = fill_with_bad_stacks(tmp_path / "in")
    code, out, err = run("fuse", tmp_path / "in", "-o", tmp_path / "out", "--depth-map", tmp_path / "maps")
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == len(bad)
    for name, words in bad.items():
        (line,) = (line for line in lines if name in line.split(": ")[2])
        assert line.startswith("pathorestore: error: ")
        assert words in line
    assert files_under(tmp_path / "out") == ["Z_9.jpg"]
    assert files_under(tmp_path / "maps") == ["9_depth.png"]
    assert "failed      4" in out


def test_json_tells_every_stack(tmp_path, run):
    fill_with_bad_stacks(tmp_path / "in")
    code, out, _ = run("fuse", tmp_path / "in", "-o", tmp_path / "out", "--json")
    told = json.loads(out)
    assert told["summary"]["exit_code"] == code == 1
    assert {Path(entry["input"]).name: entry["status"] for entry in told["files"]} == {
        **dict.fromkeys(("1", "3", "5", "7_00.jpg"), "failed"),
        "9": "fused",
    }


def test_a_second_run_refuses_skips_or_overwrites(tmp_path, run):
    save_stack(tmp_path / "in", "1", stack(**SCENE))
    words = ("fuse", tmp_path / "in", "-o", tmp_path / "out" / "fused.png")
    assert [run(*words)[0], run(*words)[0], run(*words, "--skip-existing")[0], run(*words, "--overwrite")[0]] == [0, 4, 0, 0]
    maps = ("--depth-map", tmp_path / "out" / "fused-depth.png")
    assert run(*words, "--overwrite", *maps)[0] == 0
    (tmp_path / "out" / "fused.png").unlink()
    code, _, err = run(*words, *maps)
    assert code == 4
    assert "fused-depth.png: exists already" in err
    assert files_under(tmp_path / "out") == ["fused-depth.png"]


def test_the_limit_on_pixels_counts_all_planes(tmp_path, run):
    scene = stack(**SCENE)
    save_stack(tmp_path / "in", "1", scene)
    write_pages(tmp_path / "stack.tif", pages(scene))
    total = 5 * 192 * 192
    for given in ("in", "stack.tif"):
        words = ("fuse", tmp_path / given, "-o", tmp_path / f"{given}.png", "--max-pixels")
        code, _, err = run(*words, total - 1)
        assert code == 3
        assert f"--max-pixels {total}" in err
        assert run(*words, total)[0] == 0


@pytest.mark.parametrize(
    ("name", "planes", "options", "words"),
    [
        ("one.tif", (1, 16, 16, 3), {"photometric": "rgb"}, "holds a single plane"),
        ("times.ome.tif", (2, 3, 16, 16, 3), {"photometric": "rgb", "metadata": {"axes": "TZYXS"}}, "holds several stacks (T 2 x Z 3"),
        (
            "dyes.ome.tif",
            (3, 5, 16, 16),
            {"photometric": "minisblack", "metadata": {"axes": "ZCYX"}},
            "expected planes of rows and columns",
        ),
    ],
)
def test_tiffs_that_hold_no_focal_stack_say_what_they_hold(tmp_path, run, name, planes, options, words):
    tifffile.imwrite(tmp_path / name, np.zeros(planes, np.uint8), **options)
    code, out, err = run("fuse", tmp_path / name, "-o", tmp_path / "out.png", "-q")
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert words in err
    assert name in err


def test_a_stack_of_floats_and_a_torn_one_are_refused(tmp_path, run):
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((3, 16, 16), np.float32), photometric="minisblack")
    write_pages(tmp_path / "torn.tif", np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8))
    whole = (tmp_path / "torn.tif").read_bytes()
    (tmp_path / "torn.tif").write_bytes(whole[: len(whole) // 2])
    for name, words in (("float.tif", "float32 samples"), ("torn.tif", "torn.tif: ")):
        code, _, err = run("fuse", tmp_path / name, "-o", tmp_path / "out.png")
        assert (code, len(err.splitlines())) == (3, 1)
        assert words in err
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fuse", "one"], "-o/--output"),
        (["fuse", "-o", "out"], "STACK"),
        (["fuse", "empty", "-o", "out"], "it holds no images"),
        (["fuse", "two", "-o", "out", "--pattern", "{fov}-{plane}"], "no name of an image fits the pattern {fov}-{plane}"),
        (["fuse", "two", "-o", "out", "--pattern", "{fov}"], "pattern '{fov}' is none"),
        (["fuse", "two", "-o", "out", "--pattern", "plane??"], "pattern 'plane??' is none"),
        (["fuse", "two", "-o", "out.png"], "there are 2 stacks, so the output must be a folder"),
        (["fuse", "two", "-o", "out", "--depth-map", "depth.png"], "there are 2 stacks, so the output must be a folder"),
        (["fuse", "one", "-o", "out.gif"], "'.gif' is not a format written here"),
        (["fuse", "one", "-o", "out.png", "--depth-map", "depth.jpg"], "a depth map needs 16 bits"),
        (["fuse", "one", "-o", "out.png", "--depth-map", "out.png"], "would be written twice"),
        (["fuse", "one", "-o", "one/1_01.png"], "is a plane of the stack, and inputs are never replaced"),
        (["fuse", "one", "two", "-o", "out.png"], "is a folder among other inputs"),
        (["fuse", "one/1_00.png", "one/1_00.png", "-o", "out.png"], "is named twice"),
        (["fuse", "one", "-o", "one/1_00.png/deep/out.png"], "is a file, so nothing can be written below it"),
        (["fuse", "one", "-o", "out.png", "--overwrite", "--skip-existing"], "not allowed with argument --overwrite"),
        (["fuse", "one", "-o", "out.png", "--max-pixels", "many"], "--max-pixels"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(tmp_path, run, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder, fovs in (("one", "1"), ("two", "12")):
        for fov in fovs:
            save_stack(tmp_path / folder, fov, stack(**SCENE), suffix=".png")
    before = files_under(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("pathorestore: error: ")
    assert expected in err
    assert files_under(tmp_path) == before


def test_files_that_do_not_exist_fail_in_the_run(tmp_path, run):
    code, _, err = run("fuse", tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out.png")
    assert (code, len(err.splitlines())) == (3, 1)
    assert "a.png: no such file or directory" in err
