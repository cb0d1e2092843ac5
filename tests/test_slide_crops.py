"""Patches from whole slides: on tissue, at the pixel size asked for, the same in every process."""

import multiprocessing
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("openslide")
import tifffile

from pathorestore.data.drawing import CropConfig
from pathorestore.data.image_cache import UnreadableImage
from pathorestore.data.manifest import Row
from pathorestore.data.slide_crops import OpenSlides, SlideCrops, read_patch, tissue_cells

WORKERS = pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*")


def _slide(path, *, mpp=0.25, shape=(1024, 1536), levels=3, tissue=(slice(256, 640), slice(512, 1152)), seed=0):
    """A tiled pyramid whose left to right position is told by its green, top to bottom by its blue; glass is white."""
    height, width = shape
    pixels = np.full((height, width, 3), 245, dtype=np.uint8)
    y, x = np.mgrid[tissue]
    pixels[tissue] = np.stack([np.full(y.shape, 200), x * 128 // width, y * 128 // height], axis=2)
    pixels[tissue] += np.random.default_rng(seed).integers(0, 3, pixels[tissue].shape, dtype=np.uint8)
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "metadata": None}
    resolution = {} if mpp is None else {"resolution": (10_000 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            factor = 2**level
            small = pixels.reshape(height // factor, factor, width // factor, factor, 3).mean(axis=(1, 3)).round().astype(np.uint8)
            writer.write(small, subfiletype=int(level > 0), **options, **(resolution if level == 0 else {}))
    return pixels


@pytest.fixture
def slide(tmp_path):
    """The folder of one slide, and its pixels."""
    return tmp_path, _slide(tmp_path / "slide.tif")


ROWS = [Row(path="slide.tif")]


def test_a_patch_of_the_largest_level_is_a_window_of_its_pixels(slide):
    folder, pixels = slide
    crops = SlideCrops(ROWS, CropConfig(crop_px=24, margin_px=4, augment=False), folder=folder)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32), axis=(0, 1))
    for key in range(4):
        batch = crops[key]
        patch = (batch.sharp * 255).round().byte().numpy()
        found = np.argwhere((windows[..., 0, 0] == patch[:, 0, 0]).all(axis=2))
        assert any(np.array_equal(windows[y, x], patch) for y, x in found)
        assert (int(batch.key), int(batch.margin_px)) == (key, 4)


def test_the_middle_of_every_patch_lies_on_tissue_and_patches_reach_all_of_it(slide):
    folder, _ = slide
    crops = SlideCrops(ROWS, CropConfig(crop_px=32, augment=False), folder=folder)
    middles = torch.stack([crops[key].sharp[:, 15:17, 15:17].mean(dim=(1, 2)) for key in range(150)]) * 255
    assert (middles[:, 0] - middles[:, 1] > 40).all(), "glass is white"
    x, y = middles[:, 1] * 1536 / 128, middles[:, 2] * 1024 / 128
    assert x.min() < 600
    assert x.max() > 1060
    assert y.min() < 310
    assert y.max() > 590


@pytest.mark.parametrize("target_mpp", [0.25, 0.4, 0.5, 1.0, 1.5])
def test_patches_have_the_pixel_size_asked_for(slide, target_mpp):
    folder, _ = slide
    crops = SlideCrops(ROWS, CropConfig(crop_px=40, target_mpp=target_mpp, augment=False), folder=folder)
    rises = []
    for key in range(40):
        green = crops[key].sharp[1] * 255
        inside = green[:, 2:-2].max() < 128  # no glass
        if inside:
            rises.append(float((green[:, 30:38] - green[:, 2:10]).mean() / 28))
    assert len(rises) >= 5
    assert np.mean(rises) == pytest.approx(128 / 1536 * target_mpp / 0.25, rel=0.05)


def test_the_manifests_pixel_size_goes_before_the_slides(slide):
    folder, _ = slide
    config = CropConfig(crop_px=32, target_mpp=0.5, augment=False)
    said = SlideCrops([Row(path="slide.tif", mpp=0.5)], config, folder=folder)
    largest = SlideCrops(ROWS, CropConfig(crop_px=32, augment=False), folder=folder)
    halved = SlideCrops(ROWS, config, folder=folder)
    assert torch.equal(said[3].sharp, largest[3].sharp)
    assert not torch.equal(said[3].sharp, halved[3].sharp)


def test_averaging_down_is_what_the_mean_of_pixels_says(tmp_path):
    pixels = _slide(tmp_path / "flat.tif", levels=1)
    slide = OpenSlides(16).get(tmp_path / "flat.tif")
    block = pixels[300:396, 600:696].reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    assert np.abs(read_patch(slide, 600, 300, source_px=96, side_px=32) - block).max() < 1  # rounded along rows, then columns
    assert np.array_equal(read_patch(slide, 600, 300, source_px=31.7, side_px=32), pixels[300:332, 600:632])
    assert read_patch(slide, 600, 300, source_px=10, side_px=32).shape == (32, 32, 3)


@pytest.mark.parametrize(("coarser", "level"), [(0.5, 0), (1.0, 0), (1.9, 0), (2.0, 1), (3.9, 1), (4.0, 2), (9.0, 2)])
def test_no_finer_level_is_read_than_is_needed(slide, coarser, level):
    opened = OpenSlides(16).get(slide[0] / "slide.tif")
    read, asked = opened.read_region, []
    opened.read_region = lambda corner, level, size: (asked.append((level, size)), read(corner, level, size))[1]
    assert read_patch(opened, 600, 300, source_px=32 * coarser, side_px=32).shape == (32, 32, 3)
    ((used, (width, height)),) = asked
    assert used == level
    assert width == height <= 32 * coarser / 2**level + 1


def test_beyond_a_slide_lies_its_background(slide):
    folder, _ = slide
    patch = read_patch(OpenSlides(16).get(folder / "slide.tif"), 1520, 1008, source_px=32, side_px=32)
    assert (patch[:16, :16] == 245).all()
    assert (patch[16:] == 255).all()


@WORKERS
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_patch_depends_on_seed_and_number_alone_whatever_the_workers(slide, start):
    folder, _ = slide
    crops = SlideCrops(ROWS, CropConfig(crop_px=24, target_mpp=0.5, zoom=(1.0, 2.0)), folder=folder, seed=1)
    alone = torch.stack([crops[key].sharp for key in range(8)])  # handles are open now, in this process
    context = multiprocessing.get_context(start)
    loaded = torch.cat(
        [batch.sharp for batch in DataLoader(crops, batch_size=4, sampler=range(8), num_workers=2, multiprocessing_context=context)]
    )
    assert torch.equal(loaded, alone)
    assert torch.equal(torch.stack([pickle.loads(pickle.dumps(crops))[key].sharp for key in range(8)]), alone)
    other = SlideCrops(ROWS, crops.config, folder=folder, seed=2)
    assert not torch.equal(other[0].sharp, alone[0])


def test_a_forked_process_opens_slides_anew(slide, monkeypatch):
    folder, _ = slide
    slides = OpenSlides(16)
    parents = slides.get(folder / "slide.tif")
    assert slides.get(folder / "slide.tif") is parents
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert slides.get(folder / "slide.tif") is not parents


def test_slides_are_drawn_evenly_whatever_their_size(slide):
    folder, _ = slide
    _slide(folder / "small.tif", shape=(256, 256), tissue=(slice(0, 128), slice(0, 128)), levels=1)
    crops = SlideCrops([*ROWS, Row(path="small.tif")], CropConfig(crop_px=16), folder=folder)
    assert sum(crops._draws.which(key) for key in range(1000)) == pytest.approx(500, abs=64)


def test_tissue_is_what_otsu_finds_coloured_and_black_ink_is_not(generator):
    thumbnail = np.full((60, 80, 3), 240, dtype=np.uint8)
    thumbnail[10:30, 20:50] = (180, 90, 150)
    thumbnail[40:50, 10:20] = torch.randint(0, 20, (10, 10, 3), generator=generator).numpy()
    found = np.zeros((60, 80), dtype=bool)
    found[tuple(tissue_cells(thumbnail).T)] = True
    assert found[10:30, 20:50].all()
    assert found.sum() == 600
    assert len(tissue_cells(np.full((20, 20, 3), 240, dtype=np.uint8))) == 0


# what cannot be read


def test_slides_that_cannot_serve_are_named_before_training(slide):
    folder, _ = slide
    (folder / "note.svs").write_text("not a slide")
    _slide(folder / "sizeless.tif", mpp=None)
    cases = {
        "note.svs": "OpenSlide says",
        "gone.ndpi": "no such file",
        "sizeless.tif": "manifest's column mpp",
        "slide.tif": "less than a patch",
    }
    for name, reason in cases.items():
        crop_px = 900 if name == "slide.tif" else 32
        with pytest.raises(UnreadableImage, match=rf"{name}: .*{reason}"):
            SlideCrops([Row(path=name)], CropConfig(crop_px=crop_px, target_mpp=0.5), folder=folder)
    skipping = CropConfig(crop_px=32, target_mpp=0.5, on_unreadable="skip")
    crops = SlideCrops([Row(path=name) for name in cases], skipping, folder=folder)
    only = SlideCrops(ROWS, skipping, folder=folder)
    assert {crops._draws.which(key) for key in range(20)} == {3}
    assert crops[5].sharp.shape == only[5].sharp.shape
    with pytest.raises(ValueError, match="none of 1 slides"):
        SlideCrops([Row(path="note.svs")], skipping, folder=folder)


def test_a_slide_without_tissue_is_named_or_passed_over(slide, caplog):
    folder, _ = slide
    _slide(folder / "glass.tif", tissue=(slice(0, 0), slice(0, 0)))
    rows = [Row(path="glass.tif"), *ROWS]
    with pytest.raises(UnreadableImage, match=r"glass\.tif.*no tissue"):
        SlideCrops(rows[:1], CropConfig(crop_px=32), folder=folder)[0]
    crops = SlideCrops(rows, CropConfig(crop_px=32, on_unreadable="skip"), folder=folder)
    assert all(crops[key].sharp.mean() < 0.9 for key in range(12))
    assert caplog.text.count("glass.tif") == 1


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_slide_that_ends_too_early_is_named(slide, share):
    folder, _ = slide
    path = folder / "slide.tif"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UnreadableImage, match=r"slide\.tif.*OpenSlide says"):
        list(map(SlideCrops(ROWS, CropConfig(crop_px=32), folder=folder).__getitem__, range(8)))


@WORKERS
@pytest.mark.parametrize("workers", [0, 2])
def test_a_slide_damaged_inside_is_named_or_passed_over(slide, workers, caplog):
    folder, _ = slide
    damaged = folder / "damaged.tif"
    _slide(damaged)
    content = bytearray(damaged.read_bytes())
    with tifffile.TiffFile(damaged) as tiff:
        page = tiff.pages[0]
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            content[offset : offset + count] = bytes(count)
    damaged.write_bytes(content)
    rows = [Row(path="damaged.tif"), *ROWS]
    crops = SlideCrops(rows, CropConfig(crop_px=32), folder=folder)
    with pytest.raises(UnreadableImage, match=r"^\S*damaged\.tif.*OpenSlide says"):
        list(DataLoader(crops, batch_size=2, sampler=range(8), num_workers=workers))
    passing = SlideCrops(rows, CropConfig(crop_px=32, on_unreadable="skip"), folder=folder)
    patches = torch.cat([batch.sharp for batch in DataLoader(passing, batch_size=2, sampler=range(8), num_workers=workers)])
    assert torch.equal(patches, torch.stack([passing[key].sharp for key in range(8)]))
    assert caplog.text.count("damaged.tif") == 1


def test_without_openslide_the_remedy_is_named(slide, monkeypatch):
    folder, _ = slide
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ImportError, match=r'pip install "pathorestore\[slides\]"'):
        SlideCrops(ROWS, CropConfig(crop_px=32), folder=folder)
