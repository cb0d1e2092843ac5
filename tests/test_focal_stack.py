"""Focal stacks on disk as rows of a manifest, and the labels that a stack tells of itself."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from focal_stacks import OPTICS, STEP_UM, save_stack, stack, tissue
from PIL import Image

from pathorestore.data.focal_stack import StackOptions, histech_rows, mop_rows, stack_labels
from pathorestore.data.image_cache import UnreadableImage
from pathorestore.data.manifest import read_manifest, write_manifest
from pathorestore.data.stack_files import find_stacks, plane_pattern
from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.functional.fusion import fuse_stack
from pathorestore.functional.noise import stream
from pathorestore.functional.optics import measured_ctf

SCENES = {"slide1/3": {"offset_um": 0.2}, "slide1/10": {"offset_um": -0.6, "seed": 1}, "slide 2/3": {"offset_um": 1.0, "planes": 8}}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Two slides of the layout with three fields in all, fused by us, planes as JPEG."""
    folder = tmp_path_factory.mktemp("mop")
    for name, choices in SCENES.items():
        scene = stack(perfect=True, **choices)
        slide, fov = name.split("/")
        save_stack(folder / slide, fov, scene, target=fuse_stack(scene.planes).image)
    return folder


@pytest.fixture
def mop(original, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "mop"))


def test_a_folder_of_stacks_becomes_rows_with_targets_and_true_labels(mop):
    rows = mop_rows(mop, plane_um=STEP_UM, mpp=0.25)
    assert len(rows) == 9 + 9 + 8
    for name, choices in SCENES.items():
        scene = stack(perfect=True, **choices)
        slide, fov = name.split("/")
        own = [row for row in rows if (row.slide, dict(row.extra)["fov"]) == (slide, fov)]
        assert [row.path for row in own] == [str(mop / slide / f"{fov}_{number:02d}.jpg") for number in range(len(scene.planes))]
        assert [dict(row.extra)["plane"] for row in own] == [f"{number:02d}" for number in range(len(scene.planes))]
        assert {row.target for row in own} == {str(mop / slide / f"Z_{fov}.jpg")}
        assert {(row.mpp, row.split) for row in own} == {(0.25, "train")}
        for row, z_um, ctf in zip(own, scene.defocus_um.tolist(), scene.ctf.tolist(), strict=True):
            assert row.z_um == pytest.approx(z_um, abs=0.3)
            assert row.ctf == pytest.approx(ctf, abs=0.05)


def test_rows_survive_a_manifest(mop):
    rows = mop_rows(mop)
    write_manifest(mop / "manifest.csv", rows)
    assert list(read_manifest(mop / "manifest.csv").rows) == rows


def test_a_slide_s_own_folder_will_do(mop):
    rows = mop_rows(mop / "slide 2")
    assert len(rows) == 8
    assert {row.slide for row in rows} == {"slide 2"}


@pytest.mark.parametrize("aberrated", [{}, {"noise_levels": 4.0}, {"tilt_um": 1.6, "relief_um": 0.2}, {"seed": 1}], ids=str)
@pytest.mark.parametrize("offset_um", [-1.1, 0.0, 0.3, 0.4])
def test_labels_hold_under_aberrations_noise_and_tilt(offset_um, aberrated):
    scene = stack(offset_um=offset_um, **aberrated)
    labels = stack_labels(scene.planes, fuse_stack(scene.planes).image, OPTICS, STEP_UM)
    assert labels.valid
    assert float((labels.z_um - scene.defocus_um).abs().max()) < 0.2
    assert float((labels.ctf - scene.ctf).abs().max()) < 0.2  # the simulator's value is that of an objective without aberrations
    assert labels.best_plane in scene.defocus_um.abs().topk(2, largest=False).indices.tolist()


@pytest.mark.parametrize("offset_um", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("against", ["fused", "clean", "nothing"])
def test_without_aberrations_labels_are_exact_whatever_the_target(offset_um, against):
    scene = stack(offset_um=offset_um, perfect=True)
    target = {"fused": fuse_stack(scene.planes).image, "clean": scene.clean, "nothing": None}[against]
    labels = stack_labels(scene.planes, target, OPTICS, STEP_UM)
    assert float((labels.z_um - scene.defocus_um).abs().max()) < 0.05
    assert float((labels.ctf - scene.ctf).abs().max()) < 0.05


def test_a_tilted_field_is_labelled_by_its_mean_height():
    scene = stack(offset_um=0.3, tilt_um=3.2, relief_um=0.4)
    labels = stack_labels(scene.planes, fuse_stack(scene.planes).image, OPTICS, STEP_UM)
    assert float((labels.z_um - scene.defocus_um).abs().max()) < 0.2


def test_the_reversed_stack_has_distances_of_the_other_sign():
    scene = stack(offset_um=0.3)
    labels, reversed_ = (stack_labels(planes, scene.clean, OPTICS, STEP_UM) for planes in (scene.planes, scene.planes.flip(0)))
    assert torch.allclose(reversed_.z_um, -labels.z_um.flip(0), atol=1e-4)
    assert torch.allclose(reversed_.ctf, labels.ctf.flip(0), atol=1e-5)


def test_distances_are_in_the_unit_of_the_spacing():
    scene = stack(offset_um=0.3)
    one, two = (stack_labels(scene.planes, scene.clean, OPTICS, spacing).z_um for spacing in (STEP_UM, 2 * STEP_UM))
    assert torch.allclose(two, 2 * one)


def test_a_blank_field_and_one_that_ends_before_its_focus_are_invalid():
    blank = (0.9 + 0.01 * torch.randn(5, 3, 96, 96, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert not stack_labels(blank, blank.mean(0, keepdim=True), OPTICS, STEP_UM).valid
    beyond = stack(offset_um=5.2, perfect=True)
    assert not stack_labels(beyond.planes, beyond.clean, OPTICS, STEP_UM).valid
    at_the_end = stack(offset_um=3.2, perfect=True)
    labels = stack_labels(at_the_end.planes, at_the_end.clean, OPTICS, STEP_UM)
    assert (labels.valid, labels.best_plane) == (True, 0)


def test_tiles_are_chosen_where_there_is_something_to_see():
    """One tile of fifteen is textured, and it shares its part of the field with a blank one."""
    scene = stack(offset_um=0.2, planes=5, perfect=True)
    planes, clean = (torch.full((len(images), 3, 768, 1280), 0.95) for images in (scene.planes, scene.clean))
    for large, images in ((planes, scene.planes), (clean, scene.clean)):
        large[..., 288:480, 288:480] = images
    labels = stack_labels(planes, clean, OPTICS, STEP_UM)
    assert labels.valid
    assert float((labels.z_um - scene.defocus_um).abs().max()) < 0.3


def test_a_stack_in_which_nothing_goes_out_of_focus_is_invalid():
    planes = stack(perfect=True).clean + 0.005 * torch.randn(9, 3, 192, 192, generator=stream(1))
    assert not stack_labels(planes.clamp(0, 1), None, OPTICS, STEP_UM).valid


def test_frequencies_that_hold_noise_alone_are_left_out_of_the_ctf():
    """A soft picture, as an oversampled scan gives it: nearly all of its band is noise, which no blur takes away."""
    soft, softer = (gaussian_blur(tissue(0), sigma_px=sigma) for sigma in (2.5, 8.0))
    noise = 0.004 * torch.randn(3, 3, 192, 192, generator=stream(2))
    measured = measured_ctf(torch.cat([soft, softer]) + noise[:2], soft + noise[2:], OPTICS)
    assert float(measured.value[0]) > 0.9
    assert float(measured.value[1]) < 0.2
    assert not measured.valid.any()


@pytest.mark.parametrize(("count", "target_px"), [(1, 64), (3, 60)])
def test_what_makes_no_stack_is_refused(count, target_px):
    with pytest.raises(ValueError, match="at least two planes, all of one size"):
        stack_labels(torch.rand(count, 3, 64, 64), torch.rand(1, 3, target_px, 64), OPTICS, STEP_UM)


def test_planes_without_labels_have_none(mop):
    for path in (mop / "slide 2").glob("*.jpg"):
        Image.new("RGB", (96, 96), (240, 235, 240)).save(path)
    rows = [row for row in mop_rows(mop) if row.slide == "slide 2"]
    assert {(row.z_um, row.ctf) for row in rows} == {(None, None)}


# lists


def test_lists_win_over_the_stack_and_name_the_split(mop):
    (mop / "train.txt").write_text("slide1/3_00.jpg 0.25 -1.5\nslide1/3_01.jpg 0.5 0\n\n")
    (mop / "test_list.txt").write_text(f"{mop / 'slide 2'}/3_07.jpg .125 7\n")
    (mop / "readme.txt").write_text("no list at all")
    rows = {Path(row.path).relative_to(mop).as_posix(): row for row in mop_rows(mop, plane_um=STEP_UM)}
    assert [(rows[name].ctf, rows[name].z_um) for name in ("slide1/3_00.jpg", "slide1/3_01.jpg")] == [(0.25, -1.5), (0.5, 0.0)]
    assert (rows["slide 2/3_07.jpg"].ctf, rows["slide 2/3_07.jpg"].z_um) == (0.125, 7.0)
    assert rows["slide1/3_04.jpg"].z_um == pytest.approx(0.2, abs=0.3)
    assert {row.split for name, row in rows.items() if name.startswith("slide1")} == {"train"}
    assert {row.split for name, row in rows.items() if name.startswith("slide 2")} == {"test"}


def test_unlisted_planes_share_the_split_of_their_field_before_that_of_their_slide(mop):
    (mop / "val.txt").write_text("slide1/3_00.jpg 0.1 1\n")
    (mop / "test.txt").write_text("slide1/10_00.jpg 0.1 1\nslide 2/3_00.jpg 0.1 1\n")
    (mop / "train.txt").write_text("slide 2/3_01.jpg 0.1 1\n")
    rows = {Path(row.path).relative_to(mop).as_posix(): row.split for row in mop_rows(mop)}
    assert {split for name, split in rows.items() if name.startswith("slide1/3_")} == {"val"}
    assert {split for name, split in rows.items() if name.startswith("slide1/10_")} == {"test"}
    assert [rows[f"slide 2/3_{number:02d}.jpg"] for number in range(3)] == ["test", "train", "train"]


def test_lists_may_come_from_elsewhere_and_count_planes(mop, tmp_path):
    list_ = tmp_path / "labels"
    list_.write_text("/home/authors/data/slide1/10_03.jpg 0.5 -2\n")
    options = StackOptions(plane_um=STEP_UM, distance_um=STEP_UM, lists=(list_,))
    (row,) = [row for row in mop_rows(mop, options=options) if row.path.endswith("10_03.jpg")]
    assert (row.z_um, row.split) == (pytest.approx(-2 * STEP_UM), "train")


def test_a_field_that_is_listed_whole_is_not_measured(mop):
    (mop / "val.txt").write_text("".join(f"slide1/3_{number:02d}.jpg 0.5 {number}\n" for number in range(9)))
    (mop / "slide1" / "3_05.jpg").write_bytes(b"no image")
    rows = [row for row in mop_rows(mop) if dict(row.extra)["fov"] == "3" and row.slide == "slide1"]
    assert [row.z_um for row in rows] == list(range(9))
    assert {row.split for row in rows} == {"val"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("slide1/3_00.jpg 0.5", "expected `path ctf distance`"),
        ("slide1/3_00.jpg 0,5 1", "expected `path ctf distance`"),
        ("slide1/3_00.jpg 0.5 far", "expected `path ctf distance`"),
        ("slide1/3_00.jpg 1.5 0", "expected a ctf in \\[0, 1\\]"),
        ("slide1/3_00.jpg nan 0", "expected a ctf in \\[0, 1\\]"),
        ("slide1/3_00.jpg 0.5 inf", "finite distance"),
        ("slide1/3_99.jpg 0.5 0", "slide1/3_99.jpg is no plane"),
        ("3_00.jpg 0.5 0", "3_00.jpg is no plane"),
        ("slide1/3_08.jpg 0.5 0", "is listed before, in .*train.txt, line 1"),
    ],
)
def test_a_line_that_is_none_is_named_with_file_and_number(mop, line, words):
    (mop / "train.txt").write_text(f"slide1/3_08.jpg 0.5 0\n\n{line}\n")
    with pytest.raises(ValueError, match=f"train.txt, line 3: .*{words}"):
        mop_rows(mop)


def test_a_list_that_is_no_text_is_named(mop):
    (mop / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"train.txt: is no UTF-8 text"):
        mop_rows(mop)


# targets


def test_a_missing_target_is_an_error_that_names_the_command_which_makes_it(mop):
    (mop / "slide1" / "Z_10.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"field 10 has no fused target Z_10, as 1 of 3 fields; .*`pathorestore fuse .* -o .*`"):
        mop_rows(mop)


def test_the_sharpest_plane_stands_for_a_missing_target_on_request(mop):
    (mop / "slide1" / "Z_10.jpg").unlink()
    (mop / "slide 2" / "Z_3.jpg").unlink()
    (mop / "test.txt").write_text("".join(f"slide 2/3_{number:02d}.jpg 0.5 {number - 2}\n" for number in range(8)))
    rows = mop_rows(mop, options=StackOptions(missing_target="best_plane"))
    targets = {(row.slide, dict(row.extra)["fov"]): Path(row.target).name for row in rows}
    best = int(stack(perfect=True, **SCENES["slide1/10"]).defocus_um.abs().argmin())
    assert targets == {("slide1", "3"): "Z_3.jpg", ("slide1", "10"): f"10_{best:02d}.jpg", ("slide 2", "3"): "3_02.jpg"}
    measured = [row for row in rows if dict(row.extra)["fov"] == "10"]
    for row, z_um in zip(measured, stack(perfect=True, **SCENES["slide1/10"]).defocus_um.tolist(), strict=True):
        assert row.z_um == pytest.approx(z_um, abs=0.3)


@pytest.mark.parametrize("name", ["3_05.jpg", "Z_3.jpg"])
def test_a_plane_of_another_size_is_named(mop, name):
    Image.new("RGB", (100, 90)).save(mop / "slide1" / name)
    with pytest.raises(UnreadableImage, match=f"{name}: .*it is not of the size of 3_00.jpg"):
        mop_rows(mop)


def test_a_lonely_plane_and_a_broken_one_are_named(mop):
    Image.new("RGB", (96, 96)).save(mop / "slide1" / "5_00.jpg")
    Image.new("RGB", (96, 96)).save(mop / "slide1" / "Z_5.jpg")
    with pytest.raises(UnreadableImage, match=r"5_00.jpg: .*its stack has no other plane"):
        mop_rows(mop)
    (mop / "slide1" / "5_00.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"5_00\.jpg"):
        mop_rows(mop)


@pytest.mark.parametrize("wrong", [{"plane_um": 0.0}, {"mpp": -1.0}, {"distance_um": 0.0}, {"missing_target": "none"}])
def test_options_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StackOptions(**wrong)


# names


@pytest.mark.parametrize(
    ("pattern", "stem", "fov", "plane"),
    [
        ("{fov}_{plane}", "a_b_07", "a_b", "07"),
        ("{fov}_z{plane}um", "tile_z-1.600um", "tile", "-1.600"),
        ("{fov}_z{plane}um", "tile_z+0.800um", "tile", "+0.800"),
        ("{fov}{plane}", "fov12", "fov", "12"),
        ("p{plane} of {fov}", "p3 of x", "x", "3"),
    ],
)
def test_patterns_read_the_field_and_the_number(pattern, stem, fov, plane):
    match = plane_pattern(pattern).fullmatch(stem)
    assert (match["fov"], match["plane"]) == (fov, plane)


@pytest.mark.parametrize("pattern", ["", "plane", "{fov}", "{plane}{plane}", "{z}_{plane}", "{plane", "a/{plane}", "{fov}{fov}{plane}"])
def test_a_pattern_that_is_none_is_refused(pattern):
    with pytest.raises(ValueError, match="is none; expected a file name"):
        plane_pattern(pattern)


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def test_planes_are_in_the_order_of_their_numbers_whatever_these_look_like(tmp_path):
    touch(tmp_path, "t_z-1.600um.png", "t_z+0.800um.png", "t_z+0.000um.png", "t_z-0.800um.png", "t_clean.png", "Z_t.png", ".t_z+9um.png")
    (found,) = find_stacks(tmp_path, "{fov}_z{plane}um")
    assert found.numbers == ("-1.600", "-0.800", "+0.000", "+0.800")
    assert found.target == tmp_path / "Z_t.png"
    touch(tmp_path / "many", *(f"1_{number}.png" for number in range(12)))
    assert find_stacks(tmp_path / "many")[0].numbers == tuple(map(str, range(12)))


def test_without_a_field_in_the_pattern_each_folder_is_one_stack(tmp_path):
    for name in ("a", "b"):
        touch(tmp_path / name, "0.png", "1.png")
    assert [(found.fov, len(found.planes)) for found in find_stacks(tmp_path, "{plane}")] == [("a", 2), ("b", 2)]


def test_a_folder_without_planes_says_what_it_holds(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no images"):
        find_stacks(tmp_path)
    touch(tmp_path, "one.png", "Z_1.png")
    with pytest.raises(FileNotFoundError, match=r"fits the pattern \{fov\}_\{plane\}: it holds Z_1.png, one.png"):
        find_stacks(tmp_path)
    with pytest.raises(NotADirectoryError, match="is no folder"):
        find_stacks(tmp_path / "one.png")


def test_two_files_of_one_plane_are_refused(tmp_path):
    touch(tmp_path, "1_01.png", "1_1.png")
    with pytest.raises(ValueError, match="are both plane"):
        find_stacks(tmp_path)


# 3DHistech


@pytest.fixture
def histech(tmp_path) -> Path:
    pixels = np.zeros((16, 16, 3), np.uint8)
    for split, names in (("train", ("a", "b")), ("test", ("a", "c"))):
        for role in ("lq", "gt"):
            for name in names:
                (tmp_path / split / role).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / split / role / f"{name}.png")
    (tmp_path / "test" / "3D_anno.csv").write_text("name,label\na.png,1\nc,0\n")
    return tmp_path


def test_3dhistech_pairs_keep_their_authors_split_and_labels(histech):
    rows = histech_rows(histech)
    told = [(Path(row.path).relative_to(histech).as_posix(), Path(row.target).relative_to(histech).as_posix(), row.split) for row in rows]
    assert told == [
        ("test/lq/a.png", "test/gt/a.png", "test"),
        ("test/lq/c.png", "test/gt/c.png", "test"),
        ("train/lq/a.png", "train/gt/a.png", "train"),
        ("train/lq/b.png", "train/gt/b.png", "train"),
    ]
    assert [row.extra for row in rows] == [(("label", "1"),), (("label", "0"),), (), ()]
    assert replace(rows[0], extra=()) != rows[2]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,label\nnobody,1\n", "3D_anno.csv, line 2: nobody names no patch"),
        ("name,label\na,\n", "3D_anno.csv, line 2: got name 'a' and label ''"),
        ("file,class\na,1\n", "3D_anno.csv, line 1: got columns file, class"),
        ("", "3D_anno.csv, line 1: got columns none"),
    ],
)
def test_labels_that_fit_no_patch_are_named(histech, table, words):
    (histech / "test" / "3D_anno.csv").write_text(table)
    with pytest.raises(ValueError, match=words):
        histech_rows(histech)
