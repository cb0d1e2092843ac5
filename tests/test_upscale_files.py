"""Files made larger: sizes, pixel sizes, everything that must survive, slides beside images, and what is refused."""

import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from image_samples import SRGB, save_tiff
from PIL import Image
from slide_samples import CLOCK, OPTIONS, files_in, level_pixels, tissue_pixels, write_slide

from pathorestore import cli
from pathorestore.image import from_uint8, to_uint8
from pathorestore.models.iste import Search
from pathorestore.nn.implicit import Lattice, bicubic, grid
from pathorestore.pipelines.batch import Job
from pathorestore.pipelines.enlarge import BicubicEnlarger, DrawnPieces, Enlargement, enlarged, target_size
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.iste import ISTE, ISTEConfig
from pathorestore.pipelines.provenance import ENLARGED_NOTICE, read_provenance
from pathorestore.pipelines.raster import ImageFileError
from pathorestore.pipelines.upscale_file import UpscaleFile
from pathorestore.slide.enlarging import Enlarging
from pathorestore.slide.restore import RestoreSlide
from pathorestore.slide.source import open_slide
from pathorestore.slide.work import Hearing

RECORD = {"model_id": "test", "weights_sha256": None, "parameters": {}, "clock": lambda: CLOCK}


class Blurring:
    """An enlarger that looks 3 px around itself, and counts what it draws."""

    def __init__(self, *, bad_at: int | None = None):
        self.drawn, self.bad_at = 0, bad_at

    def draw(self, part, lattice, size, out_size):
        self.drawn += 1
        padded = F.pad(part, (1, 1, 1, 1), mode="replicate")
        made = BicubicEnlarger().draw(F.avg_pool2d(padded, 3, 1), lattice, size, out_size)
        return made * float("nan") if self.drawn == self.bad_at else made


def pieces(enlarger=None, *, tile_px=40, overlap_px=4):
    """Its tiles."""
    return DrawnPieces(enlarger=enlarger or Blurring(), tile_px=tile_px, overlap_px=overlap_px)


def upscale_file(source: Path, target: Path, enlarger=None, *, scale=None, mpp=None, source_mpp=None, **fields):
    """Enlarge one image."""
    target_of = Enlargement(scale=scale, mpp=mpp, source_mpp=source_mpp)
    return UpscaleFile(pieces=pieces(enlarger), target=target_of, **(RECORD | fields))(Job(source, target))


def upscale_slide(source: Path, target: Path, enlarger=None, *, scale=None, mpp=None, source_mpp=None, wishes=None, device="cpu", **fields):
    """Enlarge one slide."""
    target_of = Enlargement(scale=scale, mpp=mpp, source_mpp=source_mpp)
    options = replace(OPTIONS, **({"tile_px": 40, "overlap_px": 4} | (wishes or {})))
    tiles = pieces(enlarger, tile_px=options.tile_px, overlap_px=options.overlap_px)
    work = Enlarging(pieces=tiles, target=target_of, device=device)
    return RestoreSlide(work=work, options=options, **(RECORD | fields))(Job(source, target))


def whole(pixels: np.ndarray, out_size, enlarger=None) -> np.ndarray:
    """What an enlarger makes of all of an image at once."""
    size = pixels.shape[:2]
    return to_uint8((enlarger or Blurring()).draw(from_uint8(pixels), Lattice.of(out_size), size, out_size).clamp(0, 1))


@given(scale=st.floats(1, 16), height=st.integers(1, 5000), width=st.integers(1, 5000), mpp=st.floats(0.1, 2))
def test_finer_pixels_cover_the_same_area(scale, height, width, mpp):
    target = Enlargement(scale=scale)
    out = target_size((height, width), scale=target.scale_of(None))
    assert out == (round(height * scale), round(width * scale))
    finer = target.pixel_um(mpp, (height, width), out)
    assert finer**2 * out[0] * out[1] == pytest.approx(mpp**2 * height * width)
    assert target.pixel_um(None, (height, width), out) is None


@given(mpp=st.floats(0.1, 4), wanted=st.floats(0.05, 4))
def test_a_wanted_pixel_size_gives_the_scale(mpp, wanted):
    """One that is there already, up to what scanners differ by, leaves nothing to do; for one that is too fine the nearest is named."""
    if 1.02 <= mpp / wanted <= 16:
        assert Enlargement(mpp=wanted).scale_of(mpp) == pytest.approx(mpp / wanted)
        assert Enlargement(mpp=wanted, source_mpp=mpp).scale_of(10.0) == Enlargement(mpp=wanted).scale_of(mpp)
    else:
        with pytest.raises(ImageFileError, match="nothing to enlarge" if mpp < 1.02 * wanted else "is the most") as told:
            Enlargement(mpp=wanted).scale_of(mpp)
        if mpp / wanted > 16:
            remedy = float(re.search(r"try --mpp ([0-9.]+)", str(told.value))[1])
            assert 15 < Enlargement(mpp=remedy).scale_of(mpp) <= 16


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({}, "either --scale"),
        ({"scale": 2.0, "mpp": 0.25}, "both say how large"),
        ({"scale": 0.5}, "not made smaller"),
        ({"scale": 17.0}, r"1\.\.16; more was never looked at"),
        ({"scale": float("nan")}, r"1\.\.16"),
        ({"mpp": 0.0}, "--mpp 0 must lie"),
        ({"scale": 2.0, "source_mpp": 50.0}, "--source-mpp 50 must lie"),
    ],
)
def test_impossible_wishes_are_refused(wish, told):
    with pytest.raises(ValueError, match=told):
        Enlargement(**wish)


@settings(max_examples=25)
@given(height=st.integers(1, 90), width=st.integers(1, 90), scale=st.floats(1, 5), tile=st.integers(12, 60), overlap=st.integers(4, 5))
def test_tiles_of_any_size_make_the_whole_image(height, width, scale, tile, overlap):
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    out = target_size((height, width), scale=scale)
    once = Blurring().draw(image, Lattice.of(out), (height, width), out).clamp(0, 1)
    assert torch.allclose(enlarged(pieces(tile_px=tile, overlap_px=overlap), image, out), once, atol=1e-5)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_an_image_is_larger_its_pixels_finer_and_its_record_in_it(tmp_path, suffix):
    pixels = tissue_pixels(77, 101)
    source = save_tiff(tmp_path / "in.tif", pixels, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", iccprofile=SRGB)
    done = upscale_file(source, target := tmp_path / f"out{suffix}", scale=2.7)
    back = read_image_file(target)
    assert back.image.shape[-2:] == (208, 273)
    if suffix != ".jpg":
        assert np.array_equal(np.asarray(Image.open(target).convert("RGB")), whole(pixels, (208, 273)))
    expected_um = 0.5 * (77 * 101 / 208 / 273) ** 0.5
    assert back.pixel_um == pytest.approx(expected_um, rel=1e-3)
    assert back.icc == SRGB
    record = read_provenance(target)
    assert record.notice == ENLARGED_NOTICE
    assert record.parameters["scale"] == 2.7
    assert record.pixel_um == pytest.approx(expected_um)
    assert done.megapixels == 77 * 101 / 1e6


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (1, 16), (2, 8), (4, 8), (4, 16), (3, 16)])
def test_depth_gray_and_alpha_survive(tmp_path, channels, bits):
    top = 2**bits - 1
    ramp = np.linspace(0.1, 0.9, 30)[None, :, None] * np.ones((20, 1, channels)) * top
    source = save_tiff(tmp_path / "in.tif", ramp.round().astype(np.uint8 if bits == 8 else np.uint16))
    upscale_file(source, tmp_path / "out.tif", BicubicEnlarger(), scale=3)
    stored = np.atleast_3d(tifffile.imread(tmp_path / "out.tif"))
    assert stored.shape == (60, 90, channels)
    assert stored.dtype == np.dtype(f"uint{bits}")
    expected = (0.1 + 0.8 / 29 * ((np.arange(90) + 0.5) / 3 - 0.5)) * top
    # alpha too; edges apart, where the ramp ends, and up to rounding at both ends
    assert np.abs(stored[:, 6:-6].astype(float) - expected[None, 6:-6, None]).max() <= 1.01


def test_a_wanted_pixel_size_is_reached_from_what_the_file_says(tmp_path):
    source = save_tiff(tmp_path / "in.tif", tissue_pixels(40, 60), resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    upscale_file(source, tmp_path / "out.tif", mpp=0.2)
    assert read_image_file(tmp_path / "out.tif").image.shape[-2:] == (100, 150)
    assert read_image_file(tmp_path / "out.tif").pixel_um == pytest.approx(0.2)
    assert read_provenance(tmp_path / "out.tif").parameters["mpp_given"] is None
    upscale_file(source, tmp_path / "given.tif", mpp=0.2, source_mpp=0.4)
    assert read_provenance(tmp_path / "given.tif").parameters["mpp_given"] == 0.4
    assert read_image_file(tmp_path / "given.tif").image.shape[-2:] == (80, 120)


def test_what_cannot_be_is_refused_before_anything_is_drawn(tmp_path):
    Image.fromarray(tissue_pixels(20, 20)).save(source := tmp_path / "in.png")
    enlarger = Blurring()
    with pytest.raises(ImageFileError, match=r"in\.png: does not say how large its pixels are.*--source-mpp"):
        upscale_file(source, tmp_path / "out.png", enlarger, mpp=0.2)
    with pytest.raises(ImageFileError, match=r"would become 60 x 60 = 3,600 pixels, above the limit of 3,000; .*--pyramid"):
        upscale_file(source, tmp_path / "out.png", enlarger, scale=3, max_pixels=3000)
    with pytest.raises(ImageFileError, match="is the input itself"):
        upscale_file(source, source, enlarger, scale=2, overwrite=True)
    Image.fromarray(tissue_pixels(1, 5000)).save(tmp_path / "long.png")
    with pytest.raises(ImageFileError, match=r"out\.jpg: is 70000 x 14 px and JPEG ends at 65500"):
        upscale_file(tmp_path / "long.png", tmp_path / "out.jpg", enlarger, scale=14)
    (tmp_path / "long.png").unlink()
    assert enlarger.drawn == 0
    assert files_in(tmp_path) == ["in.png"]
    with pytest.raises(ValueError, match="not finite for the tile at x=0, y=0"):
        upscale_file(source, tmp_path / "out.png", Blurring(bad_at=1), scale=2)
    assert files_in(tmp_path) == ["in.png"]
    Image.fromarray(tissue_pixels(20, 20)).save(tmp_path / "in.jpg")
    assert "the file is compressed" in upscale_file(tmp_path / "in.jpg", tmp_path / "large.png", scale=2).notes[-1]
    assert "nothing was measured beyond x8" in upscale_file(source, tmp_path / "out.png", scale=9).notes[-1]


def _stopping_after(rows: int):
    asked = iter(range(1_000_000))
    return lambda: next(asked) >= rows - 1


@settings(max_examples=12)
@given(
    size=st.sampled_from([(1, 1), (17, 31), (90, 150), (128, 64), (201, 77)]),
    scale=st.sampled_from([1.0, 1.37, 2.0, 2.7, 4.0]),
    tile=st.sampled_from([24, 40, 64]),
    cut=st.integers(1, 3),
)
def test_a_slide_is_what_its_image_would_be_wherever_it_is_cut_and_taken_up_again(tmp_path_factory, size, scale, tile, cut):
    folder, pixels = tmp_path_factory.mktemp("slides"), tissue_pixels(*size)
    source, wishes = write_slide(folder / "in.tif", pixels, levels=1), {"tile_px": tile}
    upscale_slide(source, folder / "whole.tif", scale=scale, wishes=wishes)
    expected = whole(pixels, target_size(size, scale=scale))
    # 16 bits between the drawing and the file: half a level may fall to either side
    assert np.abs(level_pixels(folder / "whole.tif").astype(int) - expected).max() <= 1
    assert np.mean(level_pixels(folder / "whole.tif") != expected) < 0.01
    try:
        upscale_slide(source, folder / "cut.tif", scale=scale, wishes=wishes, stop=_stopping_after(cut))
    except KeyboardInterrupt:
        assert not (folder / "cut.tif").exists()
        upscale_slide(source, folder / "cut.tif", scale=scale, wishes=wishes)
    assert (folder / "cut.tif").read_bytes() == (folder / "whole.tif").read_bytes()
    assert files_in(folder) == ["cut.tif", "cut.tif.provenance.json", "in.tif", "whole.tif", "whole.tif.provenance.json"]


def test_a_network_draws_the_same_on_a_slide_and_on_its_image(tmp_path):
    torch.manual_seed(0)
    network = ISTE.of(ISTEConfig.tiny()).eval()
    for parameter in network.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pixels = tissue_pixels(70, 90)
    source = write_slide(tmp_path / "in.tif", pixels, levels=1)
    upscale_slide(source, tmp_path / "out.tif", network, scale=1.7)
    image = to_uint8(network.upscale(from_uint8(pixels), scale=1.7, tile_px=40, overlap_px=4))
    assert np.abs(level_pixels(tmp_path / "out.tif").astype(int) - image).max() <= 1
    bicubic_only = to_uint8(bicubic(from_uint8(pixels), grid(119, 153)).T.reshape(1, 3, 119, 153).clamp(0, 1))
    assert np.abs(image.astype(int) - bicubic_only).mean() > 1  # the network says something


def test_a_slide_knows_its_pixel_size_for_other_programs(tmp_path):
    openslide = pytest.importorskip("openslide")
    source = write_slide(tmp_path / "in.tif", tissue_pixels(300, 400), mpp=0.5)
    upscale_slide(source, tmp_path / "out.tif", mpp=0.25)
    with openslide.OpenSlide(tmp_path / "out.tif") as slide:
        assert slide.dimensions == (800, 600)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert slide.level_dimensions[1] == (400, 300)
    record = read_provenance(tmp_path / "out.tif")
    assert (record.notice, record.pixel_um, record.parameters["scale"]) == (ENLARGED_NOTICE, 0.25, 2.0)
    told = json.loads((tmp_path / "out.tif.provenance.json").read_text())
    assert told["notice"] == ENLARGED_NOTICE


def test_a_region_of_16_bits_as_ome_tiff(tmp_path):
    pixels = tissue_pixels(120, 150, dtype=np.uint16)
    source = write_slide(tmp_path / "in.tif", pixels, mpp=0.5)
    upscale_slide(source, tmp_path / "out.ome.tif", scale=1.5, wishes={"region": (10, 20, 100, 60), "format": "ome-tiff"})
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as tiff:
        assert tiff.series[0].shape[:2] == (90, 150)
        assert tiff.series[0].dtype == np.uint16
        assert 'PhysicalSizeX="0.3333' in tiff.ome_metadata
    part = torch.from_numpy(pixels[20:80, 10:110].astype(np.float32) / 65535).permute(2, 0, 1)[None]
    expected = Blurring().draw(part, Lattice.of((90, 150)), (60, 100), (90, 150))[0].permute(1, 2, 0).clamp(0, 1) * 65535
    assert np.abs(level_pixels(tmp_path / "out.ome.tif").astype(float) - expected.numpy()).max() <= 1.1


def test_glass_is_interpolated_and_only_tissue_is_drawn(tmp_path):
    pixels = np.full((200, 300, 3), 243, np.uint8)
    pixels[120:160, 180:240] = tissue_pixels(40, 60)
    source, enlarger = write_slide(tmp_path / "in.tif", pixels, levels=2), Blurring()
    wishes = {"all_tiles": False, "regions": True, "tile_px": 32}
    upscale_slide(source, tmp_path / "out.tif", enlarger, scale=2, wishes=wishes)
    record = read_provenance(tmp_path / "out.tif").parameters
    assert 0 < enlarger.drawn == record["tiles_drawn"] < record["tiles"] == 9 * 13
    stored = level_pixels(tmp_path / "out.tif")
    assert np.abs(stored[:200, :300].astype(int) - 243).max() == 0
    drawn = whole(pixels, (400, 600))
    assert np.abs(stored[240:320, 360:480].astype(int) - drawn[240:320, 360:480]).max() <= 1
    (feature,) = json.loads((tmp_path / "out.tif.geojson").read_text())["features"]
    assert feature["properties"]["classification"]["name"] == "enlarged"
    corners = np.array(feature["geometry"]["coordinates"][0][0])
    # in pixels of the output, around the tissue
    assert corners.min(axis=0)[0] <= 360 < 480 <= corners.max(axis=0)[0]
    assert corners.min(axis=0)[1] <= 240 < 320 <= corners.max(axis=0)[1]
    assert corners.max() <= 600


def test_a_bad_tile_fails_the_slide_or_is_interpolated_and_marked(tmp_path):
    pixels = tissue_pixels(100, 100)
    source = write_slide(tmp_path / "in.tif", pixels, levels=1)
    with pytest.raises(ValueError, match=r"not finite for the tile at x=28, y=0; --on-bad-tile pass interpolates"):
        upscale_slide(source, tmp_path / "out.tif", Blurring(bad_at=2), scale=2)
    wishes = {"on_bad_tile": "pass", "resume": False, "regions": True}
    upscale_slide(source, tmp_path / "out.tif", Blurring(bad_at=2), scale=2, wishes=wishes)
    stored, plain = level_pixels(tmp_path / "out.tif"), whole(pixels, (200, 200), BicubicEnlarger())
    assert np.abs(stored[:64, 64:128].astype(int) - plain[:64, 64:128]).max() <= 1
    _, bad = json.loads((tmp_path / "out.tif.geojson").read_text())["features"]
    assert bad["geometry"]["coordinates"] == [[[64, 0], [128, 0], [128, 64], [64, 64], [64, 0]]]


def test_the_given_pixel_size_wins_and_another_one_is_another_job(tmp_path):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(300, 60), mpp=0.5)
    with pytest.raises(KeyboardInterrupt):
        upscale_slide(source, tmp_path / "out.tif", scale=2.0, source_mpp=0.4, stop=_stopping_after(1))
    with pytest.raises(ValueError, match=r"mpp_given was 0\.4, is 0\.3"):
        upscale_slide(source, tmp_path / "out.tif", scale=2.0, source_mpp=0.3)
    upscale_slide(source, tmp_path / "out.tif", scale=2.0, source_mpp=0.4)
    record = read_provenance(tmp_path / "out.tif")
    assert (record.pixel_um, record.parameters["mpp_given"]) == (pytest.approx(0.2), 0.4)


def test_memory_holds_a_row_of_tiles_and_grows_with_the_width_alone(tmp_path):
    """The formula allows what the engine holds, and knows no height."""

    def run_on(height, width, scale=2.0):
        source = open_slide(write_slide(tmp_path / f"{height}x{width}.tif", tissue_pixels(height, width), levels=1))
        work = Enlarging(pieces=pieces(), target=Enlargement(scale=scale))
        return work.run(source, OPTIONS), source

    (small, _), (tall, source), (wide, _) = run_on(200, 100), run_on(800, 100), run_on(200, 400)
    assert small.memory_bytes == tall.memory_bytes
    assert wide.memory_bytes == pytest.approx(4 * small.memory_bytes)
    assert run_on(200, 100, 4.0)[0].memory_bytes > small.memory_bytes
    reader, drawn = tall.streams(lambda y, height: source.read(y, 0, height, 100), 0, Hearing(event=lambda _: None, passes=lambda _: None))
    most = 0
    for bottom in range(64, 1601, 64):
        drawn.need(bottom)
        drawn.window.forget(bottom)
        held = sum(block.nbytes for stream in (reader, drawn) for block in stream.window._blocks)
        most = max(most, held)
    reader.close()
    assert 100 * 40 * 3 < most < tall.memory_bytes


def test_a_region_is_told_from_glass_by_its_own_part_of_the_overview(tmp_path):
    pixels = np.full((200, 300, 3), 243, np.uint8)
    pixels[20:60, 20:80] = tissue_pixels(40, 60)
    source, enlarger = write_slide(tmp_path / "in.tif", pixels, levels=2), Blurring()
    upscale_slide(source, tmp_path / "glass.tif", enlarger, scale=2, wishes={"all_tiles": False, "region": (150, 100, 150, 100)})
    assert enlarger.drawn == 0
    upscale_slide(source, tmp_path / "tissue.tif", enlarger, scale=2, wishes={"all_tiles": False, "region": (20, 20, 60, 40)})
    assert enlarger.drawn == read_provenance(tmp_path / "tissue.tif").parameters["tiles"] > 0


def test_a_slide_above_the_limit_of_pixels_is_refused(tmp_path):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(100, 100), levels=1)
    with pytest.raises(ImageFileError, match=r"in\.tif: would become 300 x 300 px, above the limit of 80,000; .*--max-pixels"):
        upscale_slide(source, tmp_path / "out.tif", scale=3, wishes={"max_pixels": 80_000})


def test_the_time_of_a_pass_is_that_of_a_tile_of_this_slide(tmp_path):
    sizes = []

    class Noting:
        def draw(self, part, lattice, size, out_size):
            sizes.append((part.shape[-2:], lattice.size))
            return torch.zeros(1, 3, *lattice.size)

    source = open_slide(write_slide(tmp_path / "in.tif", tissue_pixels(200, 160), mpp=0.5))
    for target in (Enlargement(scale=3.5), Enlargement(mpp=0.25)):
        Enlarging(pieces=pieces(Noting()), target=target).run(source, OPTIONS).seconds_per_pass()
    assert sizes == [((40, 40), (112, 112))] * 2 + [((40, 40), (64, 64))] * 2


def test_the_finest_pixels_that_are_written_are_read_again(tmp_path):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(40, 40), mpp=0.25)
    upscale_slide(source, tmp_path / "out.tif", scale=16)
    assert open_slide(tmp_path / "out.tif").facts.mpp == pytest.approx(0.25 / 16) == read_provenance(tmp_path / "out.tif").pixel_um


def test_scales_that_give_one_height_but_two_widths_are_two_jobs(tmp_path):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(300, 1020), mpp=0.5)
    with pytest.raises(KeyboardInterrupt):
        upscale_slide(source, tmp_path / "out.tif", BicubicEnlarger(), scale=1.0034, stop=_stopping_after(1))
    with pytest.raises(ValueError, match=r"scale was 1\.0034, is 1\.0045"):
        upscale_slide(source, tmp_path / "out.tif", BicubicEnlarger(), scale=1.0045)


def test_tiles_travel_to_the_device(tmp_path):
    source, seen = write_slide(tmp_path / "in.tif", tissue_pixels(30, 30), levels=1), []

    class Elsewhere(Blurring):
        def draw(self, part, lattice, size, out_size):
            seen.append(part.device.type)
            return torch.zeros(1, 3, *lattice.size)

    upscale_slide(source, tmp_path / "out.tif", Elsewhere(), scale=2, device="meta")
    enlarged(pieces(Elsewhere()), torch.rand(1, 3, 9, 9), (18, 18), device="meta")
    assert seen == ["meta", "meta"]


def test_an_estimate_draws_nothing(tmp_path):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(100, 130), mpp=0.5)
    enlarger = Blurring()
    work = Enlarging(pieces=pieces(enlarger), target=Enlargement(scale=2.7))
    slide = RestoreSlide(work=work, options=OPTIONS, **RECORD)
    found = slide.estimate(source)
    assert enlarger.drawn == 0
    assert (found.width_px, found.height_px, found.tiles) == (351, 270, 4 * 5)
    assert found.mpp == pytest.approx(0.5 / 2.7, rel=1e-3)
    assert found.seconds is None
    timed = slide.estimate(source, timed=True)
    assert enlarger.drawn == 2
    assert 0 < timed.seconds == pytest.approx(20 * slide.work.run(open_slide(source), slide.options).seconds_per_pass())
    assert enlarger.drawn == 2  # remembered


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Untrained weights, which draw as bicubic interpolation does."""
    torch.manual_seed(0)
    system = ISTE.of(ISTEConfig.tiny())
    system.search = Search(max_keys=500)
    system.save_pretrained(path := tmp_path_factory.mktemp("weights") / "mine")
    return path


@pytest.fixture
def run(capsys, folder):
    def call(*words, model=folder):
        code = cli.main(["upscale", *map(str, words), "--model", str(model)])
        return code, *capsys.readouterr()

    return call


def test_the_command_enlarges_images_and_slides_and_goes_on_after_a_bad_file(tmp_path, run):
    given = tmp_path / "in"
    given.mkdir()
    pixels = tissue_pixels(60, 50)
    write_slide(given / "slide.tif", pixels, mpp=0.5, tile=16)
    Image.fromarray(pixels).save(given / "unknown.png")
    save_tiff(given / "image.tif", pixels, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    code, out, err = run(given, "-o", tmp_path / "out", "--mpp", 0.25, "--json", "--compression", "auto")
    report = json.loads(out)
    assert code == 1
    assert {Path(entry["input"]).name: entry["status"] for entry in report["files"]} == {
        "image.tif": "enlarged",
        "slide.tif": "enlarged",
        "unknown.png": "failed",
    }
    assert "does not say how large its pixels are" in err
    for name in ("slide.tif", "image.tif"):
        with tifffile.TiffFile(tmp_path / "out" / name) as tiff:
            assert tiff.pages[0].shape == (120, 100, 3)
            assert tiff.pages[0].get_resolution("MICROMETER")[0] == pytest.approx(4)
        record = read_provenance(tmp_path / "out" / name)
        assert record.model_id == "mine"
        assert record.weights_sha256
    assert open_slide(tmp_path / "out" / "slide.tif").facts.mpp == pytest.approx(0.25)
    code, out, err = run(given, "-o", tmp_path / "out", "--mpp", 0.25, "--source-mpp", 0.5, "--skip-existing")
    assert code == 0
    assert read_image_file(tmp_path / "out" / "unknown.png").pixel_um == pytest.approx(0.25, rel=1e-3)


def test_tiles_are_those_that_were_asked_for(tmp_path, run):
    Image.fromarray(tissue_pixels(60, 60)).save(tmp_path / "in.png")
    for name, words in (("image.png", ()), ("slide.tif", ("--pyramid",))):
        assert run(tmp_path / "in.png", "-o", tmp_path / name, "--scale", 2, "--tile", 24, "--overlap", 4, *words)[0] == 0
        record = read_provenance(tmp_path / name).parameters
        assert (record["tile_px"], record["overlap_px"], record["max_keys"]) == (24, 4, 500)
    assert record["tiles"] == 16
    untiled = run(tmp_path / "in.png", "-o", tmp_path / "untiled.png", "--scale", 2)
    assert untiled[0] == 0


def test_an_untrained_model_draws_as_bicubic_interpolation(tmp_path, run):
    pixels = tissue_pixels(90, 70)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    code, out, _ = run(tmp_path / "in.png", "-o", tmp_path / "out.png", "--scale", 2.7)
    assert code == 0
    assert "enlarged" in out
    expected = to_uint8(bicubic(from_uint8(pixels), grid(243, 189)).T.reshape(1, 3, 243, 189).clamp(0, 1))
    assert np.abs(np.asarray(Image.open(tmp_path / "out.png")).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--scale", "0.5"], 2, "not made smaller"),
        (["--scale", "2", "--mpp", "0.2"], 2, "both say how large"),
        ([], 2, "either --scale"),
        (["--scale", "2", "--tile", "4"], 2, "--tile 4 must lie in 16..512"),
        (["--scale", "2", "--overlap", "40"], 2, "--overlap 40 must lie in 4..31"),
        (["--scale", "2", "--overlap", "2"], 2, "borders of tiles show"),
        (["--scale", "2", "--batch", "2"], 2, "batch"),
        (["--scale", "2", "--region", "0,0,9,9"], 2, "--region is for slides"),
        (["--scale", "2", "--geojson"], 2, "--geojson is for slides"),
        (["--scale", "2", "--format", "ome-tiff"], 2, "--format ome-tiff is for slides"),
        (["--scale", "2", "--compression", "deflate"], 2, "--compression is for slides"),
        (["--scale", "2", "--max-pixels", "3000"], 3, "above the limit of 3,000"),
        (["--scale", "2", "--max-pixels", "3000", "--pyramid"], 3, "above the limit of 3,000"),
        (["--scale", "2", "--revision", "v1"], 2, "has no revision='v1'"),
        (["--scale", "2", "--region", "0,0,900,9", "--pyramid"], 2, "--region 0,0,900,9 is not inside"),
        (["--scale", "2", "--source-mpp", "99"], 2, "--source-mpp 99 must lie"),
        (["--mpp", "0.2"], 3, "--source-mpp"),
        (["--scale", "two"], 2, "--scale"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, run, words, code, told):
    Image.fromarray(tissue_pixels(30, 30)).save(tmp_path / "in.png")
    found, _, err = run(tmp_path / "in.png", "-o", tmp_path / "out.tif", *words)
    assert found == code
    assert told in err
    assert "Traceback" not in err
    assert files_in(tmp_path) == ["in.png"]


def test_weights_of_another_system_are_refused_by_name(tmp_path, run):
    weights = Path(cli.__file__).parent / "weights" / "mop-tiny"
    code, _, err = run(tmp_path / "in.png", "-o", tmp_path / "out.tif", "--scale", 2, model=weights)
    assert code == 2
    assert "holds a MoPRestorer, which does not enlarge" in err


def test_a_dry_run_tells_the_new_size(tmp_path, run):
    write_slide(tmp_path / "in.tif", tissue_pixels(100, 130), mpp=0.5)
    code, out, _ = run(tmp_path / "in.tif", "-o", tmp_path / "out.tif", "--scale", 2, "--dry-run")
    assert code == 0
    assert "260 x 200" in out
    assert "0.25" in out
    assert files_in(tmp_path) == ["in.tif"]


def test_a_stopped_slide_is_taken_up_again_by_the_same_command_only(tmp_path, folder):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(300, 60), mpp=0.5)
    with pytest.raises(KeyboardInterrupt):
        upscale_slide(source, tmp_path / "out.tif", scale=2.0, stop=_stopping_after(1))
    with pytest.raises(ValueError, match=r"scale was 2\.0, is 2\.5"):
        upscale_slide(source, tmp_path / "out.tif", scale=2.5)
    upscale_slide(source, tmp_path / "out.tif", scale=2.0)
    assert functools.reduce(lambda a, b: a * b, level_pixels(tmp_path / "out.tif").shape) == 600 * 120 * 3


def test_two_ways_to_say_how_large_are_one_too_many():
    with pytest.raises(ValueError, match=r"--scale 4 and --mpp 0\.25 both say how large; give one of them"):
        Enlargement(scale=4.0, mpp=0.25)
    with pytest.raises(ValueError, match="say how large with either"):
        Enlargement()
