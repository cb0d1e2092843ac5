"""Which files are judged together, and what is made of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tissue_files import save, tissue

from pathorestore.data.manifest import Row, write_manifest
from pathorestore.degradations.recipes import Setting
from pathorestore.degradations.resize import blur_then_resize, resized
from pathorestore.evaluation.case_files import chosen, files_of_folder, files_of_manifest, named_files, read_facts
from pathorestore.evaluation.cases import CaseKey, FilePairs, ReducedImages, SimulatedDefocus, central
from pathorestore.metrics.fidelity import psnr
from pathorestore.pipelines.batch import PlanError
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.raster import ImageFileError


@pytest.fixture
def folders(tmp_path):
    """Clean and degraded folders with one image in a subfolder; suffixes differ."""
    for seed, name in enumerate(("a", "sub/b")):
        save(tmp_path / "clean" / f"{name}.png", tissue(seed, 96, 80))
        save(tmp_path / "degraded" / f"{name}.tif", tissue(seed, 96, 80) // 2)
    return tmp_path / "clean", tmp_path / "degraded"


def test_files_belong_together_by_folder_and_name_whatever_their_suffix(folders):
    clean, degraded = folders
    keys = files_of_folder(clean, degraded)
    assert [(key.image, key.degraded.relative_to(degraded).as_posix()) for key in keys] == [("a", "a.tif"), ("sub/b", "sub/b.tif")]
    case = FilePairs(keys=tuple(keys)).load(keys[1])
    assert case.clean.shape == (1, 3, 96, 80)
    assert torch.equal((case.degraded * 255).round(), torch.from_numpy(tissue(1, 96, 80) // 2).permute(2, 0, 1)[None].float())


def test_a_file_that_restore_had_to_rename_is_found_under_its_old_name(tmp_path):
    save(tmp_path / "a.bmp.png", tissue(0))
    save(tmp_path / "b.1.png", tissue(1))
    assert set(named_files(tmp_path)) == {"a", "b.1"}


def test_what_cannot_be_paired_is_told_before_anything_is_measured(tmp_path, folders):
    clean, _ = folders
    save(tmp_path / "other" / "z.png", tissue(3))
    with pytest.raises(PlanError, match=r"no file has the name of one in .*name partners alike"):
        files_of_folder(clean, tmp_path / "other")
    save(clean / "a.jpg", tissue(0))
    with pytest.raises(PlanError, match="one name but for the suffix"):
        files_of_folder(clean)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match="holds no images"):
        files_of_folder(tmp_path / "empty")
    with pytest.raises(PlanError, match="no such folder"):
        files_of_folder(tmp_path / "nowhere")


def test_hidden_files_are_no_images(folders):
    clean, _ = folders
    save(clean / ".thumbs" / "t.png", tissue(5))
    assert len(files_of_folder(clean)) == 2


def test_facts_reach_their_images_and_repeated_ones_are_refused(tmp_path, folders):
    clean, degraded = folders
    table = tmp_path / "facts.csv"
    table.write_text("file,slide,patient,mpp,z_um\na.png,S1,P1,0.5,-1.5\n")
    first, second = files_of_folder(clean, degraded, read_facts(table))
    assert (first.slide, first.patient, first.mpp, first.z_um) == ("S1", "P1", 0.5, -1.5)
    assert (second.slide, second.mpp) == ("", None)
    table.write_text("file\na.png\na.tif\n")
    with pytest.raises(PlanError, match=r"row 3: 'a.tif' has been named before"):
        read_facts(table)
    for text, told in (
        ("name\na\n", "column file is missing"),
        ("file,mpp,mpp\na,1,2\n", "stands there twice"),
        ("file,mpp\na,0\n", "row 2, column mpp: got 0"),
        ("file,mpp\na,one\n", "facts.csv, row 2, column mpp: got 'one'"),
    ):
        table.write_text(text)
        with pytest.raises(PlanError, match=told):
            read_facts(table)
    table.write_text("file,slide\nother.png,S\n")
    with pytest.raises(PlanError, match="the facts name none of the 2 images"):
        files_of_folder(clean, degraded, read_facts(table))


def test_a_manifest_gives_pairs_or_sharp_images_but_not_both(tmp_path, folders):
    pairs = [Row(path="degraded/a.tif", target="clean/a.png", split="val", z_um=2.0, slide="S")]
    sharp = [Row(path="clean/sub/b.png", split="test", mpp=0.5)]
    manifest = tmp_path / "m.csv"
    write_manifest(manifest, [*pairs, *sharp])
    (pair,) = files_of_manifest(manifest, "val")
    assert (pair.clean, pair.degraded, pair.z_um) == (tmp_path / "clean/a.png", tmp_path / "degraded/a.tif", 2.0)
    (alone,) = files_of_manifest(manifest, "test")
    assert (alone.clean, alone.degraded, alone.mpp) == (tmp_path / "clean/sub/b.png", None, 0.5)
    with pytest.raises(PlanError, match="has no rows of split 'train', only test, val"):
        files_of_manifest(manifest, "train")
    write_manifest(manifest, [*pairs, Row(path="clean/sub/b.png", split="val")])
    with pytest.raises(PlanError, match="some rows of split 'val' have a target"):
        files_of_manifest(manifest, "val")


def test_absolute_paths_of_a_manifest_are_called_by_their_names_where_these_differ(tmp_path, folders):
    clean, _ = folders
    rows = [Row(path=str(clean / name), split="val") for name in ("a.png", "sub/b.png")]
    write_manifest(tmp_path / "m.csv", rows)
    assert [key.name for key in files_of_manifest(tmp_path / "m.csv", "val")] == ["a.png", "b.png"]
    save(clean / "sub" / "a.png", tissue(9))
    write_manifest(tmp_path / "m.csv", [*rows, Row(path=str(clean / "sub/a.png"), split="val")])
    assert len({key.name for key in files_of_manifest(tmp_path / "m.csv", "val")}) == 3


def test_planes_of_one_target_are_of_one_field_and_a_file_named_twice_is_refused(tmp_path, folders):
    save(tmp_path / "degraded" / "a2.tif", tissue(0, 96, 80) // 3)
    rows = [Row(path=f"degraded/{name}.tif", target="clean/a.png", split="val") for name in ("a", "a2")]
    write_manifest(tmp_path / "m.csv", rows)
    assert [(key.image, key.field) for key in files_of_manifest(tmp_path / "m.csv", "val")] == [
        ("degraded/a", "clean/a"),
        ("degraded/a2", "clean/a"),
    ]
    write_manifest(tmp_path / "m.csv", [rows[0], rows[0]])
    with pytest.raises(PlanError, match=r"'degraded/a.tif' stands in two rows"):
        files_of_manifest(tmp_path / "m.csv", "val")


def test_the_pixel_size_of_a_file_counts_where_nothing_else_tells(tmp_path):
    import tifffile

    (tmp_path / "clean").mkdir()
    tifffile.imwrite(tmp_path / "clean" / "a.tif", tissue(0, 96, 80), resolution=(20000, 20000), resolutionunit="CENTIMETER")
    keys = files_of_folder(tmp_path / "clean")
    assert FilePairs(keys=tuple(keys)).load(keys[0]).key.mpp == pytest.approx(0.5)
    cases = SimulatedDefocus(keys, z_um=(1.0,), setting=Setting.ideal())
    assert cases.load(cases.keys[0]).clean.shape[-2:] == (192, 160)


def test_a_partner_of_another_size_is_refused_with_both_sizes(folders):
    clean, degraded = folders
    save(degraded / "a.tif", tissue(0, 90, 80))
    keys = files_of_folder(clean, degraded)
    with pytest.raises(ImageFileError, match=r"a.tif: is 80 x 90 px and its clean partner 80 x 96"):
        FilePairs(keys=tuple(keys)).load(keys[0])


@given(height=st.integers(1, 60), width=st.integers(1, 60), crop=st.integers(0, 70))
def test_a_central_crop_lies_in_the_middle_and_never_beyond_the_image(height, width, crop):
    ramp = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    part = central(ramp, crop)
    assert part.shape[-2:] == (min(height, crop or height), min(width, crop or width))
    if crop and crop < min(height, width):
        top, left = (height - crop) // 2, (width - crop) // 2
        assert part[0, 0, 0, 0] == top * width + left


@given(count=st.integers(1, 40), limit=st.integers(1, 40))
def test_a_limit_spreads_over_all_files_without_repeating(count, limit):
    keys = [CaseKey(name=str(number), image=str(number), clean=Path()) for number in range(count)]
    picked = [int(key.name) for key in chosen(keys, limit)]
    assert len(picked) == min(count, limit)
    assert picked == sorted(set(picked))
    assert np.diff([*picked, count]).max() <= -(-count // len(picked))


@pytest.fixture
def simulated(folders):
    def make(seed=0, z_um=(0.8, 2.4), files=None):
        return SimulatedDefocus(files or files_of_folder(folders[0]), z_um=z_um, setting=Setting.ideal(), seed=seed)

    return make


def test_a_simulated_case_depends_on_seed_image_and_distance_alone(simulated):
    whole = simulated()
    assert [key.name for key in whole.keys] == ["a.png at 0.8 um", "a.png at 2.4 um", "sub/b.png at 0.8 um", "sub/b.png at 2.4 um"]
    alone = simulated(z_um=(2.4,))
    assert torch.equal(whole.load(whole.keys[3]).degraded, alone.load(alone.keys[1]).degraded)
    other = simulated(seed=1)
    assert not torch.equal(whole.load(whole.keys[3]).degraded, other.load(other.keys[3]).degraded)


def test_more_defocus_is_farther_from_the_clean_image(simulated):
    cases = simulated()
    near, far = (cases.load(key) for key in cases.keys[:2])
    assert psnr(near.degraded, near.clean) > psnr(far.degraded, far.clean) + 1


def test_oversampled_images_are_brought_to_the_design_pixel_and_say_so(folders):
    keys = [CaseKey(name="a.png", image="a", clean=folders[0] / "a.png", mpp=0.125)]
    cases = SimulatedDefocus(keys, z_um=(1.0,), setting=Setting.ideal())
    assert cases.keys[0].mpp == 0.25
    assert cases.load(cases.keys[0]).clean.shape[-2:] == (48, 40)


@pytest.mark.parametrize("scale", [1.0, 2.0, 2.7, 3.3])
def test_a_reduced_case_is_the_recipe_and_its_bicubic_enlargement(folders, scale):
    cases = ReducedImages(files_of_folder(folders[0]), scales=(scale,), blur=0.5)
    case = cases.load(cases.keys[0])
    whole = read_image_file(cases.keys[0].clean).image
    height, width = (int(side / scale) for side in whole.shape[-2:])
    assert case.small.shape[-2:] == (height, width)
    assert case.clean.shape[-2:] == (round(height * scale), round(width * scale))
    assert torch.equal(case.clean, whole[..., : case.clean.shape[-2], : case.clean.shape[-1]])
    assert torch.equal(case.small, blur_then_resize(case.clean, (height, width), blur=0.5))
    assert torch.equal(case.degraded, resized(case.small, tuple(case.clean.shape[-2:])))
    assert cases.keys[0].name == f"a.png x{scale:g}"
    assert cases.degraded_name == "bicubic"


def test_reduction_that_cannot_be_is_refused(folders):
    files = files_of_folder(folders[0])
    for scales in ((), (0.5,), (2.0, 2.0), (17.0,), (float("nan"),)):
        with pytest.raises(ValueError, match="factors from 1 to 16"):
            ReducedImages(files, scales=scales)
    with pytest.raises(ValueError, match="--blur -1 must not be negative"):
        ReducedImages(files, scales=(2.0,), blur=-1)
    with pytest.raises(ValueError, match="--blur nan must not be negative"):
        ReducedImages(files, scales=(2.0,), blur=float("nan"))
    cases = ReducedImages(files, scales=(16.0,), crop_px=8)
    with pytest.raises(ImageFileError, match="8 x 8 px are too few to be made 16 times smaller"):
        cases.load(cases.keys[0])


def test_a_distance_named_twice_is_refused(simulated):
    with pytest.raises(ValueError, match="one or more different distances"):
        simulated(z_um=(1.0, 1.0))
