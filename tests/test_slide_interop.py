"""Written slides in the hands of other programs, each by its own decoder."""

import numpy as np
import pytest

pytest.importorskip("openslide")
import openslide
from slide_samples import level_pixels, run_slide, tissue_pixels, write_slide

SIZE = (1100, 1300)


@pytest.fixture(params=["jpeg", "deflate"])
def written(request, tmp_path):
    """A written slide, whose tiles are either JPEG or without loss, and its pixels as the package's own reader gives them."""
    source = write_slide(tmp_path / "in.tif", tissue_pixels(*SIZE), mpp=0.503)
    run_slide(source, tmp_path / "out.tif", wishes={"compression": request.param, "tile_px": 256, "overlap_px": 32})
    return tmp_path / "out.tif"


def _close(found, expected):
    """Decoders may round the colours of JPEG differently, by a level or two."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_openslide(written):
    with openslide.OpenSlide(written) as slide:
        for level, (width, height) in enumerate(slide.level_dimensions):
            _close(np.asarray(slide.read_region((0, 0), level, (width, height)))[..., :3], level_pixels(written, level))


def test_tiffslide(written):
    tiffslide = pytest.importorskip("tiffslide")
    with tiffslide.TiffSlide(written) as slide:
        assert slide.level_dimensions == ((1300, 1100), (650, 550), (325, 275))
        assert slide.properties["tiffslide.mpp-x"] == pytest.approx(0.503, rel=1e-4)
        _close(slide.read_region((0, 0), 0, (1300, 1100), as_array=True), level_pixels(written))


def test_pyvips(written):
    pyvips = pytest.importorskip("pyvips")
    for level, (width, height) in enumerate(((1300, 1100), (650, 550), (325, 275))):
        image = pyvips.Image.new_from_file(str(written), page=level)
        assert (image.width, image.height, image.bands) == (width, height, 3)
        _close(image.numpy(), level_pixels(written, level))
    assert image.get("resolution-unit") == "cm"
    first = pyvips.Image.new_from_file(str(written))
    assert 1000 / first.xres == pytest.approx(0.503, rel=1e-3)


def test_pillow(written):
    from PIL import Image

    with Image.open(written) as image:
        assert (image.size, image.mode, image.n_frames) == ((1300, 1100), "RGB", 3)
        _close(np.asarray(image), level_pixels(written))
