"""A slide in, a pyramid out: the same pixels as the image in one piece would give, and everything that must survive."""

import functools
import json

import numpy as np
import pytest
from PIL import Image, ImageCms

pytest.importorskip("openslide")
import openslide
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from slide_samples import CLOCK, Identity, Lively, files_in, level_pixels, run_slide, slide_work, tissue_pixels, write_slide

from pathorestore.image import from_uint8, to_uint8
from pathorestore.pipelines.batch import Job, PlanError
from pathorestore.pipelines.provenance import RESTORED_NOTICE, read_provenance
from pathorestore.pipelines.tiled import TiledRestorer
from pathorestore.slide.source import open_slide


def _stopping_after(rows: int):
    """A question that is answered yes the so-many-th time."""
    asked = iter(range(1_000_000))
    return lambda: next(asked) >= rows - 1


@settings(max_examples=12)
@given(
    size=st.sampled_from([(1, 1), (31, 17), (40, 577), (256, 256), (255, 257), (700, 90), (513, 300)]),
    tile=st.sampled_from([64, 96, 128]),
    overlap=st.integers(0, 24),
    stages=st.integers(1, 3),
    cut=st.integers(1, 3),
)
def test_the_identity_changes_no_pixel_wherever_it_is_cut_and_taken_up_again(tmp_path_factory, size, tile, overlap, stages, cut):
    folder = tmp_path_factory.mktemp("slides")
    pixels = tissue_pixels(*size)
    source = write_slide(folder / "in.tif", pixels, levels=1)
    wishes = {"tile_px": tile, "overlap_px": overlap}
    run_slide(source, folder / "whole.tif", Identity(stages), wishes=wishes)
    assert np.array_equal(level_pixels(folder / "whole.tif"), pixels)
    try:
        run_slide(source, folder / "cut.tif", Identity(stages), wishes=wishes, stop=_stopping_after(cut))
    except KeyboardInterrupt:
        assert not (folder / "cut.tif").exists()
        run_slide(source, folder / "cut.tif", Identity(stages), wishes=wishes)
    assert (folder / "cut.tif").read_bytes() == (folder / "whole.tif").read_bytes()
    assert files_in(folder) == ["cut.tif", "cut.tif.provenance.json", "in.tif", "whole.tif", "whole.tif.provenance.json"]


@pytest.mark.slow
def test_the_identity_changes_no_pixel_of_a_larger_slide(tmp_path):
    pixels = tissue_pixels(4001, 4001)
    source = write_slide(tmp_path / "in.tif", pixels, tile=256)
    run_slide(source, tmp_path / "out.tif", wishes={"tile_px": 256, "overlap_px": 32})
    assert np.array_equal(level_pixels(tmp_path / "out.tif"), pixels)


@pytest.mark.parametrize("size", [(300, 420), (64, 64), (50, 700)])
def test_a_slide_comes_out_as_the_image_in_one_piece_would(tmp_path, size):
    pixels = tissue_pixels(*size)
    source = write_slide(tmp_path / "in.tif", pixels)
    run_slide(source, tmp_path / "out.tif", Lively(), seed=3)
    whole = to_uint8(TiledRestorer(Lively(), overlap_px=16).restore(from_uint8(pixels), seed=3))
    difference = np.abs(level_pixels(tmp_path / "out.tif").astype(int) - whole)
    assert difference.max() <= 1  # of rounding once more between the stages
    assert (difference > 0).mean() < 0.02
    assert np.abs(whole.astype(int) - pixels).mean() > 2


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, rows):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(900, 300))
    run_slide(source, tmp_path / "whole.tif", Lively())
    with pytest.raises(KeyboardInterrupt):
        run_slide(source, tmp_path / "cut.tif", Lively(), stop=_stopping_after(rows))
    tiles = []
    resumed = slide_work(Lively(), on_status=lambda status: tiles.append(status))
    resumed(Job(source, tmp_path / "cut.tif"))
    assert (tmp_path / "cut.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    first_pass = [status for status in tiles if status.phase == "tiles"]
    whole_slide = resumed.estimate(source).tiles
    assert 0 < len(first_pass) < whole_slide * (1 - rows / 4) + 4 * 8  # no more than what is missing and the rows that reach into it
    assert [status.done for status in first_pass] == sorted(status.done for status in first_pass)


def test_batches_on_an_accelerator_and_tiles_one_by_one_give_the_same(tmp_path, monkeypatch):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(200, 500))
    run_slide(source, tmp_path / "one.tif", Lively(), wishes={"batch_size": 1})
    run_slide(source, tmp_path / "many.tif", Lively(), wishes={"batch_size": 5})
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "many.tif").read_bytes()


def test_glass_goes_by_untouched_and_tissue_does_not(tmp_path):
    pixels = np.full((400, 600, 3), 242, np.uint8)
    pixels[100:250, 300:500] = tissue_pixels(150, 200)
    source = write_slide(tmp_path / "in.tif", pixels)
    estimate = slide_work(Lively(), wishes={"all_tiles": False}).estimate(source)
    assert 0 < estimate.tiles < estimate.all_tiles
    run_slide(source, tmp_path / "out.tif", Lively(), wishes={"all_tiles": False})
    restored = level_pixels(tmp_path / "out.tif")
    assert np.array_equal(restored[:, :200], pixels[:, :200])
    assert (restored[110:240, 310:490] != pixels[110:240, 310:490]).any(axis=2).mean() > 0.5
    record = read_provenance(tmp_path / "out.tif")
    assert record.parameters["tiles_restored"] * 2 == estimate.tiles


def test_a_region_is_a_slide_of_its_own(tmp_path):
    pixels = tissue_pixels(300, 400)
    source = write_slide(tmp_path / "in.tif", pixels)
    run_slide(source, tmp_path / "out.tif", wishes={"region": (130, 90, 200, 77)})
    assert np.array_equal(level_pixels(tmp_path / "out.tif"), pixels[90:167, 130:330])
    for region in ((300, 0, 101, 10), (0, 0, 0, 5), (-1, 0, 5, 5)):
        with pytest.raises(PlanError, match=r"400 x 300 px"):
            run_slide(source, tmp_path / "no.tif", wishes={"region": region})
    assert not (tmp_path / "no.tif").exists()


@functools.cache  # the profile tells when it was made
def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_other_programs_read_size_levels_pixel_size_colours_and_record(tmp_path, compression):
    pixels = tissue_pixels(1100, 1300)
    source = write_slide(tmp_path / "in.tif", pixels, mpp=0.503, iccprofile=_srgb())
    run_slide(source, tmp_path / "out.tif", wishes={"compression": compression, "quality": 100, "tile_px": 256, "overlap_px": 32})
    with openslide.OpenSlide(tmp_path / "out.tif") as slide:
        assert slide.level_dimensions == ((1300, 1100), (650, 550), (325, 275))
        assert slide.level_downsamples == pytest.approx((1, 2, 4), rel=0.01)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.503, rel=1e-4)
        assert slide.color_profile.tobytes() == _srgb()
        seen = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
        assert RESTORED_NOTICE in slide.properties["tiff.ImageDescription"]
    with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
        assert [level.shape for level in tiff.series[0].levels] == [(1100, 1300, 3), (550, 650, 3), (275, 325, 3)]
        assert tiff.is_bigtiff
        assert tiff.pages[0].iccprofile == _srgb()
    worst = 0 if compression == "deflate" else 6
    assert np.abs(seen.astype(int) - pixels).max() <= worst
    half = pixels.reshape(550, 2, 650, 2, 3).astype(int).sum(axis=(1, 3))
    expected = (half + 2) >> 2
    assert np.abs(level_pixels(tmp_path / "out.tif", 1).astype(int) - expected).max() <= worst


def test_an_ome_tiff_keeps_its_levels_below_the_first_and_its_record(tmp_path):
    pixels = tissue_pixels(700, 1100)
    source = write_slide(tmp_path / "in.tif", pixels)
    run_slide(source, tmp_path / "out.ome.tif", wishes={"format": "ome-tiff"})
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as tiff:
        assert tiff.is_ome
        assert len(tiff.pages) == 1
        assert [level.shape for level in tiff.series[0].levels] == [(700, 1100, 3), (350, 550, 3), (175, 275, 3)]
        ome = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        assert float(ome["Pixels"]["PhysicalSizeX"]) == pytest.approx(0.25)
        assert RESTORED_NOTICE in ome["Description"]
    assert read_provenance(tmp_path / "out.ome.tif").model_id == "test"
    assert np.array_equal(level_pixels(tmp_path / "out.ome.tif"), pixels)
    # and it is a slide itself, read with nothing lost
    run_slide(tmp_path / "out.ome.tif", tmp_path / "again.tif")
    assert np.array_equal(level_pixels(tmp_path / "again.tif"), pixels)


def test_the_record_in_the_file_has_no_time_and_the_one_beside_it_has(tmp_path):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(70, 90))
    run_slide(source, tmp_path / "out.tif", seed=5)
    record = read_provenance(tmp_path / "out.tif")
    assert (record.seed, record.model_id, record.pixel_um, record.created_utc) == (5, "test", pytest.approx(0.25, rel=1e-4), None)
    beside = json.loads((tmp_path / "out.tif.provenance.json").read_text())
    assert (beside["created_utc"], beside["events"], beside["input_sha256"]) == (CLOCK, [], record.input_sha256)
    assert "in.tif" not in record.to_json()


def test_what_a_slide_says_of_patients_is_left_behind(tmp_path):
    source = tmp_path / "in.svs"
    text = "Aperio Image Library v11\n300x200 (64x64)|AppMag = 40|MPP = 0.2500|Filename = DOE^JANE|Barcode = S-12345|User = surgeon"
    pixels = tissue_pixels(200, 300)
    with tifffile.TiffWriter(source) as writer:
        writer.write(pixels, tile=(64, 64), photometric="rgb", compression="jpeg", metadata=None, description=text)
        writer.write(tissue_pixels(50, 75), photometric="rgb", compression="jpeg", metadata=None, description="Aperio\nthumbnail")
        writer.write(
            tissue_pixels(40, 40), photometric="rgb", compression="lzw", metadata=None, subfiletype=1, description="Aperio\nlabel 40x40"
        )
    with openslide.OpenSlide(source) as slide:
        assert slide.properties["aperio.Barcode"] == "S-12345"
    run_slide(source, tmp_path / "out.tiff")
    written = (tmp_path / "out.tiff").read_bytes() + (tmp_path / "out.tiff.provenance.json").read_bytes()
    for word in (b"DOE", b"S-12345", b"surgeon", b"Aperio"):
        assert word not in written
    with openslide.OpenSlide(tmp_path / "out.tiff") as slide:
        assert not slide.associated_images
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    pixels = tissue_pixels(150, 333, dtype=np.uint16)
    pixels[0, :300, 0] = np.arange(300) * 218
    source = write_slide(tmp_path / "in.tif", pixels)
    run_slide(source, tmp_path / "out.tif")
    restored = level_pixels(tmp_path / "out.tif")
    assert restored.dtype == np.uint16
    assert np.array_equal(restored, pixels)
    with pytest.raises(ValueError, match="--compression jpeg holds 8 bits"):
        run_slide(source, tmp_path / "no.tif", wishes={"compression": "jpeg"})


def test_a_gray_slide_becomes_rgb_and_says_so(tmp_path):
    gray = tissue_pixels(100, 130)[..., 0]
    source = write_slide(tmp_path / "in.ome.tif", gray[..., None].repeat(3, axis=2), levels=1)
    tifffile.imwrite(source, gray, tile=(64, 64), photometric="minisblack", ome=True, metadata={"axes": "YX"})
    done = run_slide(source, tmp_path / "out.tif")
    assert np.array_equal(level_pixels(tmp_path / "out.tif"), gray[..., None].repeat(3, axis=2))
    assert any("gray" in note for note in done.notes)


def test_a_plain_image_can_be_taken_for_a_slide(tmp_path):
    pixels = tissue_pixels(300, 200)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    done = run_slide(tmp_path / "in.png", tmp_path / "out.tif")
    assert np.array_equal(level_pixels(tmp_path / "out.tif"), pixels)
    assert any("--mpp" in note for note in done.notes)


def test_sources_agree_on_the_pixels_of_one_slide(tmp_path):
    pixels = tissue_pixels(333, 257)
    by_openslide = open_slide(write_slide(tmp_path / "a.tif", pixels))
    tifffile.imwrite(tmp_path / "b.ome.tif", pixels, tile=(64, 64), photometric="rgb", ome=True)
    by_tifffile = open_slide(tmp_path / "b.ome.tif")
    tifffile.imwrite(tmp_path / "c.ome.tif", pixels, rowsperstrip=50, photometric="rgb", ome=True)
    by_strips = open_slide(tmp_path / "c.ome.tif")
    assert [source.facts.reader for source in (by_openslide, by_tifffile, by_strips)] == ["openslide", "tifffile", "tifffile"]
    for y, x, height, width in ((0, 0, 333, 257), (63, 64, 2, 1), (300, 200, 33, 57)):
        for source in (by_openslide, by_tifffile, by_strips):
            assert np.array_equal(source.read(y, x, height, width), pixels[y : y + height, x : x + width])
    for source in (by_openslide, by_tifffile, by_strips):
        overview = source.overview()
        assert overview.part.shape == overview.whole.shape == (333, 257, 3)
        source.close()
