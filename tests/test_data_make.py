"""A folder becomes a manifest: what is recognised, what is joined, and that nobody ends up on both sides of a split."""

import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tissue_files import save, tissue

from pathorestore.data.check import check_manifest
from pathorestore.data.defects import CheckOptions
from pathorestore.data.facts import Facts
from pathorestore.data.layouts import CLEAN, DEGRADED, recognise
from pathorestore.data.make import MakeOptions, make_manifest, placed
from pathorestore.data.manifest import SPLITS, Manifest, Row, read_manifest, write_manifest
from pathorestore.data.splits import folder_split, parse_ratio, split_groups, with_splits

DOT = np.zeros((8, 8, 3), np.uint8)


def images(folder: Path, *names: str) -> Path:
    for name in names:
        save(folder / name, DOT)
    return folder


def made(folder: Path, **options) -> tuple[list[Row], list[str]]:
    notes: list[str] = []
    return make_manifest(folder, MakeOptions(**options), note=notes.append), notes


def names_of(rows: list[Row], folder: Path) -> list[str]:
    return [Path(row.path).relative_to(folder).as_posix() for row in rows]


def splits_of(rows: list[Row], folder: Path) -> dict[str, str]:
    return dict(zip(names_of(rows, folder), (row.split for row in rows), strict=True))


def test_every_image_of_a_folder_gets_a_row_and_hidden_files_none(tmp_path):
    images(tmp_path, "b.png", "a.JPG", "deep/c.tif", ".hidden.png", ".cache/d.png", "._b.png")
    (tmp_path / "notes.txt").write_text("no image")
    rows, notes = made(tmp_path)
    assert names_of(rows, tmp_path) == ["a.JPG", "b.png", "deep/c.tif"]
    assert "recognised as sharp images" in notes[0]


def test_a_link_to_a_folder_is_followed_and_a_circle_is_not(tmp_path):
    images(tmp_path / "far", "a.png")
    images(tmp_path / "near", "b.png")
    (tmp_path / "near" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "self").symlink_to(tmp_path / "near")
    assert names_of(made(tmp_path / "near")[0], tmp_path / "near") == ["b.png", "far/a.png"]


@pytest.mark.parametrize("degraded", sorted(DEGRADED))
@pytest.mark.parametrize("clean", ["clean", "GT"])
def test_pairs_are_matched_by_stem_and_the_lonely_are_named(tmp_path, degraded, clean):
    images(tmp_path / degraded, "one.png", "deep/two.jpg", "alone.png")
    images(tmp_path / clean, "one.tif", "deep/two.png", "widowed.png")
    images(tmp_path, "aside.png")
    rows, notes = made(tmp_path)
    assert [(Path(row.path).relative_to(tmp_path).as_posix(), Path(row.target).relative_to(tmp_path).as_posix()) for row in rows] == [
        (f"{degraded}/deep/two.jpg", f"{clean}/deep/two.png"),
        (f"{degraded}/one.png", f"{clean}/one.tif"),
    ]
    told = "\n".join(notes)
    for words in (
        f"want of a clean one of the same stem: {degraded}/alone.png",
        f"{clean}/widowed.png",
        "neither of degraded nor of clean ones: aside.png",
    ):
        assert words in told


@pytest.mark.parametrize("order", ["{split}/{role}", "{role}/{split}", "clean/{split}/{role}"])
def test_pairs_keep_the_split_of_their_folders_whatever_comes_first(tmp_path, order):
    for split in ("train", "val"):
        for role in ("lq", "hq"):
            images(tmp_path / order.format(split=split, role=role), "a.png")
    rows, _ = made(tmp_path)
    assert sorted(row.split for row in rows) == ["train", "val"]
    assert all(f"{row.split}" in row.path and row.split in row.target for row in rows)


def test_two_images_for_one_place_in_a_pair_and_no_pairs_at_all_are_errors(tmp_path):
    images(tmp_path, "lq/a.png", "gt/b.png")
    with pytest.raises(FileNotFoundError, match="holds no pairs"):
        made(tmp_path)
    images(tmp_path, "gt/a.png", "hq/a.png")
    with pytest.raises(ValueError, match="both the clean image of a"):
        made(tmp_path)


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["a.png", "b_01.png"], "sharp"),
        (["lq/a.png", "gt/a.png"], "paired"),
        (["clean/a.png"], "sharp"),
        (["S1/3_00.jpg", "S1/3_01.jpg", "S1/Z_3.jpg"], "mop"),
        (["S1/3_00.jpg", "S2/Z_3.jpg"], "sharp"),
    ],
)
def test_a_layout_is_recognised_by_its_names(tmp_path, names, layout):
    assert recognise(images(tmp_path, *names)) == layout


def test_the_3dhistech_set_and_slides_and_nothing_are_recognised(tmp_path):
    (tmp_path / "slides").mkdir()
    with pytest.raises(FileNotFoundError, match="neither images"):
        recognise(tmp_path)
    (tmp_path / "slides" / "a.SVS").write_bytes(b"")
    assert recognise(tmp_path) == "slides"
    (tmp_path / "3D_anno.csv").write_text("")
    assert recognise(images(tmp_path, "a.png")) == "3dhistech"


@pytest.mark.parametrize("folder", sorted(CLEAN))
def test_clean_folders_alone_are_sharp_images(tmp_path, folder):
    assert recognise(images(tmp_path / folder, "a.png").parent) == "sharp"


def test_slides_tell_their_pixel_size_and_odd_ones_are_named(tmp_path):
    pytest.importorskip("openslide")
    import tifffile

    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
    pixels = np.full((256, 256, 3), 200, np.uint8)
    tifffile.imwrite(tmp_path / "known.svs", pixels, resolution=(40_000, 40_000), resolutionunit="CENTIMETER", **options)
    tifffile.imwrite(tmp_path / "mute.tif", pixels, **options)
    (tmp_path / "broken.ndpi").write_bytes(b"slide")
    images(tmp_path, "photo.tiff")
    rows, notes = made(tmp_path, layout="slides", mpp=0.5)
    assert [(row.slide, row.mpp) for row in rows] == [("broken", 0.5), ("known", pytest.approx(0.25)), ("mute", 0.5)]
    assert any("cannot be read" in line and "broken.ndpi" in line for line in notes)
    assert any("--mpp does: mute.tif" in line for line in notes)


def test_a_slide_among_images_is_left_out_and_named(tmp_path):
    images(tmp_path, "a.png")
    (tmp_path / "wsi").mkdir()
    (tmp_path / "wsi" / "b.svs").write_bytes(b"")
    rows, notes = made(tmp_path)
    assert names_of(rows, tmp_path) == ["a.png"]
    assert any("wsi/b.svs" in line for line in notes)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/a.png", "train"),
        ("S1/Validation/a.png", "val"),
        ("testing/train/a.png", "test"),
        ("trains/a.png", None),
        ("train.png", None),
    ],
)
def test_folders_tell_the_split_the_outermost_first(name, split):
    assert folder_split(Path(name)) == split


def test_folders_named_for_splits_are_honoured_and_the_rest_is_left_out_and_counted(tmp_path):
    images(tmp_path, "train/a.png", "train/b.png", "valid/c.png", "other/d.png", "e.png")
    rows, notes = made(tmp_path)
    assert splits_of(rows, tmp_path) == {"train/a.png": "train", "train/b.png": "train", "valid/c.png": "val"}
    assert "e.png (1), other (1)" in notes[-1]


NAMES = st.lists(st.text(min_size=1, max_size=6), unique=True, min_size=1, max_size=60)
SHARES = st.tuples(*[st.integers(0, 9)] * 3).filter(any)


@example(names=["a", "b"], ratio=(1, 5, 5), seed=0)
@given(names=NAMES, ratio=SHARES, seed=st.integers(0, 5))
def test_groups_are_split_in_the_ratio_and_no_split_of_positive_share_is_empty_if_there_are_enough(names, ratio, seed):
    of = split_groups(names, ratio, seed=seed)
    assert of == split_groups(reversed(names), ratio, seed=seed)
    assert of.keys() == set(names)
    counts = Counter(of.values())
    for split, share in zip(SPLITS, ratio, strict=True):
        assert share or not counts[split]
        if share and (len(names) >= 3 or split == "train"):
            assert counts[split] >= 1
        assert abs(counts[split] - len(names) * share / sum(ratio)) <= 2


@given(count=st.integers(30, 200), ratio=st.tuples(*[st.integers(1, 9)] * 3))
def test_another_seed_is_another_split_and_a_late_group_moves_few(count, ratio):
    names = [str(number) for number in range(count)]
    of = split_groups(names, ratio, seed=0)
    assert of != split_groups(names, ratio, seed=1)
    more = split_groups([*names, "a name that comes late"], ratio, seed=0)
    assert sum(of[name] != more[name] for name in names) <= 4


@given(data=st.data(), seed=st.integers(0, 9))
def test_no_patient_slide_or_target_is_ever_on_both_sides(tmp_path, data, seed):
    group = st.sampled_from(["", "a", "A ", "b", "c", "d", "e"])
    rows = [
        Row(path=f"{number}.png", patient=patient, slide=slide if patient else "", target=target if not patient else "")
        for number, (patient, slide, target) in enumerate(data.draw(st.lists(st.tuples(group, group, group), min_size=1, max_size=20)))
    ]
    write_manifest(tmp_path / "m.csv", rows)
    split = with_splits(rows, [None] * len(rows), (6, 2, 2), seed=seed)
    kinds = {one.kind for one in check_manifest(Manifest(tmp_path / "m.csv", tuple(split)), CheckOptions(workers=1))}
    assert kinds <= {"missing file"}


def test_patients_stay_together_else_slides_else_targets_else_files(tmp_path):
    names = [f"P{patient}/S{slide}/{number}.png" for patient in range(6) for slide in range(2) for number in range(3)]
    images(tmp_path, *names)
    rows, _ = made(tmp_path, patient_regex=r"P(\d)/")
    assert {row.patient for row in rows} == set("012345")
    for patient in "012345":
        assert len({row.split for row in rows if row.patient == patient}) == 1
    assert {row.split for row in rows} == set(SPLITS)
    alone = made(tmp_path)[0]
    assert any(len({row.split for row in alone if f"P{patient}/" in row.path}) > 1 for patient in range(6)), (
        "without patients, files are split"
    )


def test_a_folder_that_was_moved_is_split_as_before(tmp_path):
    names = [f"{number}.png" for number in range(12)]
    splits = []
    for place in ("here", "some/where/else"):
        images(tmp_path / place, *names)
        splits.append([(Path(row.path).name, row.split) for row in made(tmp_path / place)[0]])
    assert splits[0] == splits[1]


def test_the_patient_is_the_named_group_or_the_first_of_the_path(tmp_path):
    images(tmp_path, "set1/case-07_x.png", "set2/odd.png")
    first, notes = made(tmp_path, patient_regex=r"set(\d)/case-(?P<patient>\d+)")
    assert [row.patient for row in first] == ["07", ""]
    assert "1 of 2 files, such as set2/odd.png" in notes[-1]
    assert [row.patient for row in made(tmp_path, patient_regex=r"set(\d)")[0]] == ["1", "2"]
    with pytest.raises(ValueError, match=r"names no patient in any of 2 paths, such as set1/case-07_x\.png"):
        made(tmp_path, patient_regex=r"patient(\d+)")


def facts(folder: Path, text: str, **options) -> Facts:
    (folder / "facts.csv").write_text(text)
    return Facts(path=folder / "facts.csv", **options)


def test_facts_are_joined_by_path_or_bare_name_and_kept_where_they_meet_the_conditions(tmp_path):
    images(tmp_path, "in/a.png", "in/b.png", "in/c.png", "in/d.png")
    table = (
        "file,group,licence,stain,mpp,split\nin/a.png,P1,Free,H&E,0.25,\nb.png,P2,free,IHC,,\nin/c.png,P3,closed,,,\nin/gone.png,,free,,,\n"
    )
    joined, notes = made(
        tmp_path / "in", facts=facts(tmp_path, table, patient_column="group", where=(("licence", "free"),)), stain="PAS", mpp=0.5
    )
    assert [(Path(row.path).name, row.patient, row.stain, row.mpp) for row in joined] == [
        ("a.png", "P1", "H&E", 0.25),
        ("b.png", "P2", "IHC", 0.5),
    ]
    told = "\n".join(notes)
    for words in ("do not say licence=free: 1", "left out, since nothing says licence=free: 1", "fit no file of this folder: 1"):
        assert words in told
    every, notes = made(tmp_path / "in", facts=facts(tmp_path, table), stain="PAS")
    assert [row.stain for row in every] == ["H&E", "IHC", "PAS", "PAS"]
    assert any("kept as they are: 1" in line for line in notes)


def test_facts_about_a_target_are_facts_about_its_image(tmp_path):
    images(tmp_path, "lq/a.png", "gt/a.png")
    (row,) = made(tmp_path, facts=facts(tmp_path, "path,patient\ngt/a.png,P1\n"))[0]
    assert row.patient == "P1"


def test_a_split_in_the_facts_goes_before_folders_and_folders_before_the_ratio(tmp_path):
    images(tmp_path, "train/a.png", "train/b.png", "c.png")
    rows, _ = made(tmp_path, facts=facts(tmp_path, "path,split\ntrain/a.png,test\n"))
    assert splits_of(rows, tmp_path) == {"train/a.png": "test", "train/b.png": "train"}


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("name,stain\na.png,H&E\n", {}, "row 1: got columns name, stain, expected a column path or file"),
        ("file,stain\nz.png,H&E\n", {}, "fits none of 3 files"),
        ("file,mpp\na.png,fine\n", {}, "row 2, column mpp: got 'fine'"),
        ("file,split\na.png,validation\n", {}, "row 2, column split: got 'validation'"),
        ("file\na.png\n./a.png\n", {}, "row 3: names './a.png' again after row 2"),
        ("file\nb.png\n", {}, "write names relative to the CSV"),
        ("file\na.png\n", {"patient_column": "case"}, "no column 'case' for --patient-column; its columns are file"),
        ("file\na.png\n", {"where": (("licence", "x"),)}, "no column 'licence' for --where"),
        ("file,licence\na.png,y\n", {"where": (("licence", "x"),)}, "none has facts that say licence=x"),
        ("", {}, "is empty"),
    ],
)
def test_facts_that_cannot_be_joined_name_file_row_and_column(tmp_path, text, options, words):
    images(tmp_path, "a.png", "one/b.png", "two/b.png")
    with pytest.raises(ValueError, match=r"facts\.csv") as caught:
        made(tmp_path, facts=facts(tmp_path, text, **options))
    assert words in str(caught.value)


def test_names_are_relative_where_the_manifest_lies_above_and_absolute_elsewhere(tmp_path):
    images(tmp_path, "lq/a.png", "gt/a.png")
    rows, _ = made(tmp_path)
    for manifest, absolute in (
        (tmp_path / "m.csv", False),
        (tmp_path / "lq" / ".." / "m.csv", False),
        (tmp_path.parent / "m.csv", False),
        (tmp_path / "other" / "m.csv", True),
    ):
        (row,) = placed(rows, manifest)
        assert (Path(row.path).is_absolute(), Path(row.target).is_absolute()) == (absolute, absolute)
        write_manifest(manifest, [row])
        back = read_manifest(manifest)
        assert back.resolve(back.rows[0].path).resolve() == tmp_path / "lq" / "a.png"


def test_a_relative_folder_is_as_good(tmp_path, monkeypatch):
    images(tmp_path, "in/a.png")
    monkeypatch.chdir(tmp_path)
    (row,) = placed(made(Path("in"))[0], Path("m.csv"))
    assert row.path == "in/a.png"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "heap"}, "expected auto or one of sharp, paired"),
        ({"patient_regex": "P("}, "no regular expression"),
        ({"patient_regex": r"P\d"}, "has no group"),
        ({"patient_regex": r"(P)", "facts": Facts(path=Path("f.csv"), patient_column="case")}, "give one of them"),
        ({"mpp": 0.0}, "mpp=0.0 must be a positive number"),
        ({"plane_um": float("nan")}, "plane_um=nan"),
    ],
)
def test_options_are_checked_at_birth(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        MakeOptions(**options)


@pytest.mark.parametrize("text", ["8:1", "8:1:1:1", "a:b:c", "8:-1:1", "0:0:0", "nan:1:1", ""])
def test_a_ratio_that_is_none_is_named(text):
    with pytest.raises(ValueError, match="8:1:1"):
        parse_ratio(text)


def stacks(folder: Path, slides: int) -> Path:
    """The planes and fused targets of one field for each slide."""
    for slide in range(slides):
        clean = tissue(slide, 64, 64)
        save(folder / f"S{slide}" / "Z_1.png", clean)
        for plane, blur in enumerate((2.0, 0.5, 2.0)):
            save(folder / f"S{slide}" / f"1_{plane:02d}.png", cv2.GaussianBlur(clean, (0, 0), blur))
    return folder


def test_planes_of_focal_stacks_get_their_target_and_stay_together(tmp_path):
    rows, notes = made(stacks(tmp_path, 9), plane_um=0.5, mpp=0.3)
    assert "--layout mop" in notes[0]
    assert len(rows) == 27
    assert {row.mpp for row in rows} == {0.3}
    assert len({(row.slide, row.target, row.split) for row in rows}) == 9
    assert {row.split for row in rows} == set(SPLITS)


def test_the_lists_of_focal_stacks_tell_their_splits(tmp_path):
    stacks(tmp_path, 3)
    for slide, split in enumerate(SPLITS):
        (tmp_path / f"{split}.txt").write_text("".join(f"S{slide}/1_{plane:02d}.png 0.5 {plane - 1}\n" for plane in range(3)))
    rows, _ = made(tmp_path)
    assert {(row.slide, row.split) for row in rows} == {("S0", "train"), ("S1", "val"), ("S2", "test")}
    assert [row.z_um for row in rows[:3]] == [-1, 0, 1]


def test_planes_that_show_nothing_have_no_labels_and_are_named(tmp_path):
    for name in ("1_00", "1_01", "Z_1"):
        save(tmp_path / "S" / f"{name}.png", DOT)
    rows, notes = made(tmp_path)
    assert [row.z_um for row in rows] == [None, None]
    assert any("S/1_00.png, S/1_01.png" in line for line in notes)


def test_the_3dhistech_set_is_read_by_its_own_reader(tmp_path):
    images(tmp_path, "train/lq/a.png", "train/gt/a.png", "test/lq/b.png", "test/gt/b.png")
    (tmp_path / "3D_anno.csv").write_text("name,label\nb.png,1\n")
    rows, notes = made(tmp_path)
    assert "--layout 3dhistech" in notes[0]
    assert [(Path(row.path).name, row.split, row.extra) for row in rows] == [("b.png", "test", (("label", "1"),)), ("a.png", "train", ())]


def test_what_is_made_passes_the_check(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        save(tmp_path / f"P{number // 2}_{number}.png", rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    rows, _ = made(tmp_path, patient_regex=r"(P\d+)_")
    write_manifest(tmp_path / "m.csv", placed(rows, tmp_path / "m.csv"))
    assert check_manifest(read_manifest(tmp_path / "m.csv"), CheckOptions(crop_px=64, workers=1)) == []
