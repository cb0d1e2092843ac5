"""Blurred patches: the blur is the one that it says it is, the table the same for the same seed, and no group on two sides."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pathorestore import cli
from pathorestore.data.drawing import CropConfig
from pathorestore.data.iqa import KINDS, LEVELS, Blur, BlurredCrops, BlurredPatches, IqaOptions, Patch, iqa_rows
from pathorestore.data.manifest import Row, read_manifest, write_manifest
from pathorestore.image import to_uint8

LEVEL = st.integers(0, LEVELS - 1)
CROPS = CropConfig(crop_px=32)


def _noise(height=72, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images, two of each of six patients."""
    home = tmp_path_factory.mktemp("images")
    for index in range(12):
        Image.fromarray(_noise(140, 200, index)).save(home / f"{index:02d}.png")
    return home


@pytest.fixture(scope="module")
def sharp():
    return [Row(path=f"{index:02d}.png", patient=f"p{index // 2}", slide=f"s{index}") for index in range(12)]


@pytest.fixture(scope="module")
def table(folder, sharp):
    return iqa_rows(sharp, IqaOptions(patch_px=64, per_image=2), folder=folder)


@pytest.mark.parametrize("k", range(LEVELS))
def test_box_blur_is_pillows_away_from_the_border_within_its_two_roundings(k):
    pixels = _noise()
    theirs = np.asarray(Image.fromarray(pixels).filter(ImageFilter.BoxBlur(k)), dtype=int)
    inside = slice(k, -k or None)
    assert np.abs(Blur(kind="box", k=k)(pixels).astype(int) - theirs)[inside, inside].max() <= 1


@pytest.mark.parametrize("k", range(LEVELS))
@pytest.mark.parametrize("kind", KINDS)
def test_both_blurs_are_scipys_in_its_reflect_mode_up_to_rounding(kind, k):
    from scipy.ndimage import gaussian_filter, uniform_filter

    pixels, blur = _noise(), Blur(kind=kind, k=k)
    wide = pixels.astype(float)
    if kind == "box":
        theirs = uniform_filter(wide, size=(2 * k + 1, 2 * k + 1, 1), mode="reflect")
    else:
        theirs = gaussian_filter(wide, sigma=(0.6 * k, 0.6 * k, 0), mode="reflect", truncate=4.0)
    assert np.abs(blur(pixels) - theirs).max() <= 0.501


def test_both_kinds_of_blur_have_about_the_same_width_at_the_same_level():
    point = np.zeros((129, 129, 3), dtype=np.uint8)
    point[64, 64] = 255  # spread over at most 441 pixels, so that rounding would eat it: taken as a line
    point[:, 64] = 255
    across = (np.arange(129) - 64) ** 2
    for k in range(2, LEVELS):
        box, gauss = (Blur(kind=kind, k=k)(point)[64, :, 0].astype(float) for kind in KINDS)
        widths = [np.sqrt((line * across).sum() / line.sum()) for line in (box, gauss)]
        assert widths[1] == pytest.approx(widths[0], rel=0.16)


@given(kind=st.sampled_from(KINDS), k=LEVEL, value=st.integers(0, 255))
def test_blur_leaves_a_flat_image_alone(kind, k, value):
    flat = np.full((40, 44, 3), value, dtype=np.uint8)
    assert np.array_equal(Blur(kind=kind, k=k)(flat), flat)


@given(kind=st.sampled_from(KINDS), k=LEVEL, key=st.integers(0, 1000))
def test_a_crop_is_cut_from_the_blurred_patch_however_little_of_it_was_blurred(kind, k, key):
    patch, generator = _noise(), np.random.default_rng(key)
    top, left = generator.integers(0, 72 - 32), generator.integers(0, 80 - 32)
    from pathorestore.data.iqa import _blurred_window

    blur = Blur(kind=kind, k=k)
    whole = blur(patch)[top : top + 32, left : left + 32].astype(int)
    assert np.abs(_blurred_window(patch, blur, top=top, left=left, side_px=32) - whole).max() <= 1  # float32 sums may round otherwise


@pytest.mark.parametrize(("kind", "k"), [("motion", 1), ("box", -1), ("gauss", LEVELS)])
def test_a_blur_that_is_not_in_the_scale_is_refused(kind, k):
    with pytest.raises(ValueError, match="unknown"):
        Blur(kind=kind, k=k)


def test_every_patch_has_eleven_levels_of_each_kind_and_the_score_counts_down_from_ten(table):
    levels = defaultdict(list)
    for row in table:
        cells = dict(row.extra)
        assert int(cells["score"]) == 10 - int(cells["k"])
        levels[cells["patch"], cells["blur"]].append(int(cells["k"]))
    assert len(levels) == 12 * 2 * 2
    assert all(found == list(range(11)) for found in levels.values())


def test_the_table_depends_on_the_seed_alone(folder, sharp, table):
    options = IqaOptions(patch_px=64, per_image=2)
    assert iqa_rows(sharp, options, folder=folder) == table
    other = iqa_rows(sharp, IqaOptions(patch_px=64, per_image=2, seed=1), folder=folder)
    assert {dict(row.extra)["patch"] for row in other} != {dict(row.extra)["patch"] for row in table}


def test_the_patches_of_an_image_do_not_depend_on_the_other_images(folder, sharp, table):
    alone = iqa_rows(sharp[5:6], IqaOptions(patch_px=64, per_image=2), folder=folder)
    assert [row.extra for row in alone] == [row.extra for row in table if row.path == sharp[5].path]


def test_patches_of_an_image_do_not_overlap(folder, sharp):
    rows = iqa_rows(sharp[:1], IqaOptions(kinds=("box",), patch_px=64, per_image=99), folder=folder)
    covered = Counter()
    for patch in {Patch.of(row) for row in rows if dict(row.extra)["k"] == "0"}:
        covered.update((y, x) for y in range(patch.y_px, patch.y_px + 64) for x in range(patch.x_px, patch.x_px + 64))
    assert set(covered.values()) == {1}
    assert len(covered) == 2 * 3 * 64 * 64


@given(seed=st.integers(0, 10_000))
def test_no_group_is_in_two_splits_whatever_the_seed(folder, sharp, seed):
    splits = defaultdict(set)
    options = IqaOptions(kinds=("box",), patch_px=128, per_image=1, seed=seed)
    for row in iqa_rows(sharp, options, folder=folder):
        splits[row.patient].add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert Counter(split for found in splits.values() for split in found) == {"train": 4, "val": 1, "test": 1}


def test_splits_that_a_manifest_tells_are_kept_and_a_torn_group_is_refused(folder, sharp):
    from dataclasses import replace

    told = [replace(row, split="test" if row.patient == "p3" else "train") for row in sharp]
    made = iqa_rows(told, IqaOptions(kinds=("box",), patch_px=64, per_image=1), folder=folder)
    assert {row.patient for row in made if row.split == "test"} == {"p3"}
    torn = [replace(row, split="test" if row.path == "06.png" else "train") for row in sharp]
    with pytest.raises(ValueError, match=r"row 8 \(06\.png\): patient leak: patient 'p3' is in split test.*split anew with --split 8:1:1"):
        iqa_rows(torn, IqaOptions(patch_px=64), folder=folder)
    assert iqa_rows(torn, IqaOptions(patch_px=64, ratio=(8, 1, 1)), folder=folder)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"patient": "P1"}, {"patient": " p1"}, "patient leak"),
        ({"slide": "S1"}, {"slide": "s1 "}, "slide leak"),
        ({"patient": "P1", "slide": "S1"}, {"slide": "S1"}, "slide leak"),
        ({"patient": "P1"}, {"patient": "P2", "path": "00.png"}, "listed twice"),
        ({}, {"path": "./00.png"}, "listed twice"),
        ({"patient": "7"}, {"slide": "7"}, ""),
        ({"patient": "P1", "slide": "1"}, {"patient": "P2", "slide": "1"}, ""),
    ],
)
def test_whatever_lies_in_two_of_the_splits_that_are_kept_is_refused_and_only_that(folder, first, second, reason):
    rows = [Row(**({"path": "00.png"} | first)), Row(**({"path": "01.png", "split": "val"} | second))]
    options = IqaOptions(kinds=("box",), patch_px=64, per_image=1)
    if not reason:
        assert {row.split for row in iqa_rows(rows, options, folder=folder)} == {"train", "val"}
        return
    with pytest.raises(ValueError, match=rf"row 3 .*{reason}"):
        iqa_rows(rows, options, folder=folder)


def test_rows_that_are_left_out_leak_nothing(folder):
    rows = [Row(path="00.png", patient="P1"), Row(path="01.png", target="02.png", patient="P1", split="val")]
    rows += [Row(path="03.png", patient="P2", split="val")]
    made = iqa_rows(rows, IqaOptions(kinds=("box",), patch_px=64, per_image=1), folder=folder)
    assert {row.path for row in made} == {"00.png", "03.png"}


def test_blank_and_small_images_and_those_with_a_target_are_left_out_and_said_so(tmp_path):
    glass = np.random.default_rng(0).normal(240, 2, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(glass).save(tmp_path / "glass.png")
    Image.fromarray(_noise(40, 40)).save(tmp_path / "small.png")
    Image.fromarray(_noise(64, 64)).save(tmp_path / "tissue.png")
    rows = [Row(path="glass.png"), Row(path="small.png"), Row(path="tissue.png"), Row(path="tissue.png", target="glass.png")]
    heard = []
    made = iqa_rows(rows, IqaOptions(kinds=("box",), patch_px=64), folder=tmp_path, note=heard.append)
    assert {row.path for row in made} == {"tissue.png"}
    assert len(made) == LEVELS
    assert heard == ["2 of 3 images are smaller than a patch of 64 px, or blank, and left out"]
    with pytest.raises(ValueError, match="no patch of 64 px fits"):
        iqa_rows(rows[:2], IqaOptions(patch_px=64), folder=tmp_path)


def test_the_table_comes_back_from_a_file_as_it_was(tmp_path, table):
    write_manifest(tmp_path / "iqa.csv", table)
    assert list(read_manifest(tmp_path / "iqa.csv").rows) == table


def test_crops_depend_on_seed_and_key_alone_and_lie_within_their_blurred_patch(folder, table):
    first, second = (BlurredCrops(table, CROPS, folder=folder, seed=3) for _ in range(2))
    one = first[7]
    _ = second[0]
    again = second[7]
    assert torch.equal(one.image, again.image)
    assert one.score == again.score
    assert one.image.shape == (3, 32, 32)
    assert not torch.equal(one.image, first[8].image)
    assert {round(10 * first[key].score.item()) for key in range(120)} == set(range(11))


def test_a_whole_patch_is_the_blurred_square_of_its_image_with_its_score(folder, table):
    index = next(i for i, row in enumerate(table) if dict(row.extra)["k"] == "3")
    item, patch = BlurredPatches(table, folder=folder)[index], Patch.of(table[index], folder)
    sharp = np.asarray(Image.open(patch.path))[patch.y_px :, patch.x_px :][:64, :64]
    assert np.array_equal(to_uint8(item.image), patch.blur(sharp))
    assert item.score.item() == pytest.approx(0.7)


@pytest.mark.parametrize("wrong", [{"crop_px": 65}, {"margin_px": 4}, {"zoom": (1.0, 2.0)}, {"target_mpp": 0.5}])
def test_crops_that_would_change_the_level_of_blur_are_refused(folder, table, wrong):
    with pytest.raises(ValueError, match="not resized"):
        BlurredCrops(table, CropConfig(**({"crop_px": 32} | wrong)), folder=folder)


def test_rows_of_another_table_and_files_that_changed_are_refused(folder, table):
    with pytest.raises(ValueError, match="iqa-build"):
        Patch.of(Row(path="00.png"))
    moved = Patch.of(table[0], folder)._replace(x_px=190)
    with pytest.raises(ValueError, match="do not hold the patch"):
        moved.pixels(_noise(140, 200))


@pytest.mark.parametrize("wrong", [{"kinds": ()}, {"kinds": ("motion",)}, {"patch_px": 16}, {"per_image": 0}])
def test_options_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IqaOptions(**wrong)


@pytest.fixture
def build(capsys):
    """Run a command line; returns exit code, stdout and stderr."""

    def call(*words):
        code = cli.main(["iqa-build", *(str(word) for word in words)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


SMALL = ("--patch", 64, "--per-image", 1)


def test_the_command_takes_a_folder_or_a_manifest_and_never_overwrites_unasked(folder, sharp, tmp_path, build):
    out = tmp_path / "iqa.csv"
    code, told, err = build(folder, "-o", out, "--kind", "gauss", *SMALL)
    assert (code, err) == (0, "")
    rows = read_manifest(out).rows
    assert len(rows) == 12 * 11
    assert {dict(row.extra)["blur"] for row in rows} == {"gauss"}
    assert "132 rows (train 110, val 11, test 11) of 12 patches" in told
    assert f"next: pathorestore fit --config clip_iqa_gauss_tiny --data.manifest {out}" in told
    before = out.read_bytes()
    code, _, err = build(folder, "-o", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "iqa.csv: exists already; --overwrite replaces it" in err
    assert out.read_bytes() == before
    write_manifest(tmp_path / "sharp.csv", [Row(path=str(folder / row.path), patient=row.patient) for row in sharp])
    assert build(tmp_path / "sharp.csv", "-o", out, *SMALL, "--overwrite")[0] == 0
    made = read_manifest(out)
    assert len(made.rows) == 12 * 2 * 11
    assert Path(made.resolve(made.rows[0].path)).is_file()


def test_a_damaged_image_is_passed_over_by_name_with_exit_code_1_and_the_rest_is_done(folder, tmp_path, build):
    (tmp_path / "in").mkdir()
    for index in range(3):
        (tmp_path / "in" / f"{index}.png").write_bytes((folder / f"{index:02d}.png").read_bytes())
    (tmp_path / "in" / "1.png").write_bytes((folder / "01.png").read_bytes()[:2000])
    code, told, err = build(tmp_path / "in", "-o", tmp_path / "iqa.csv", *SMALL)
    assert (code, err) == (1, "")
    (note,) = [line for line in told.splitlines() if line.startswith("note: passed over")]
    assert "1.png: cannot be read" in note
    assert "on_unreadable" not in note
    assert {Path(row.path).name for row in read_manifest(tmp_path / "iqa.csv").rows} == {"0.png", "2.png"}
    for name in ("0.png", "2.png"):
        (tmp_path / "in" / name).write_bytes(b"nothing")
    code, _, err = build(tmp_path / "in", "-o", tmp_path / "none.csv", *SMALL)
    assert code == 2
    assert "any of 3 sharp images, 3 of which cannot be read" in err
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(("split", "missing"), [("train", "validation"), ("val", "training")])
def test_a_table_that_cannot_be_trained_on_says_what_is_missing_and_names_no_command(folder, tmp_path, build, split, missing):
    write_manifest(tmp_path / "m.csv", [Row(path=str(folder / "00.png"), split=split), Row(path=str(folder / "01.png"), split="test")])
    code, told, _ = build(tmp_path / "m.csv", "-o", tmp_path / "iqa.csv", *SMALL)
    assert code == 0
    assert f"note: no row is left for {missing}, " in told
    assert "next:" not in told
    code, told, _ = build(tmp_path / "m.csv", "-o", tmp_path / "iqa.csv", *SMALL, "--split", "9:1:0", "--overwrite")
    assert "next: pathorestore fit" in told, "the remedy that is named helps"


def test_a_manifest_with_a_patient_in_two_splits_is_one_clear_line(folder, tmp_path, build):
    rows = [Row(path=str(folder / "00.png"), patient="P"), Row(path=str(folder / "01.png"), patient="P", split="val")]
    write_manifest(tmp_path / "m.csv", rows)
    code, _, err = build(tmp_path / "m.csv", "-o", tmp_path / "iqa.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "patient 'P' is in split val here (row 3) and in split train (row 2)" in err
