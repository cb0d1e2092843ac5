"""The embedded weights on real images: PATHORESTORE_DATA names a folder of sharp ones, PATHORESTORE_SLIDE a whole slide."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from pathorestore import cli
from pathorestore.data.sharp_crops import image_files, read_rgb
from pathorestore.degradations.optical import degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.functional.noise import stream
from pathorestore.image import from_uint8
from pathorestore.metrics.fidelity import psnr
from pathorestore.pipelines.mop import load_default

pytestmark = pytest.mark.real_data


@pytest.mark.skipif("PATHORESTORE_DATA" not in os.environ, reason="PATHORESTORE_DATA is not set")
def test_the_coarse_stage_gains_two_decibels_on_average_and_something_at_every_distance():
    restorer = load_default().coarse_only()
    images = [from_uint8(read_rgb(path))[..., :256, :256] for path in image_files(Path(os.environ["PATHORESTORE_DATA"]))]
    means = []
    for z_um in (0.8, 1.6, 2.4, 3.2):
        gains = []
        for index, image in enumerate(images):
            pair = degrade(image, torch.tensor([z_um]), setting=Setting.ideal(), generator=stream(index))
            gains.append(float(psnr(restorer.restore(pair.degraded), pair.clean) - psnr(pair.degraded, pair.clean)))
        means.append(sum(gains) / len(gains))
    assert min(means) > 0
    assert sum(means) / len(means) >= 2.0


@pytest.mark.skipif("PATHORESTORE_SLIDE" not in os.environ, reason="PATHORESTORE_SLIDE is not set")
def test_a_real_slide_keeps_its_size_and_pixel_size_and_changes_only_where_there_is_tissue(tmp_path):
    openslide = pytest.importorskip("openslide")
    source = Path(os.environ["PATHORESTORE_SLIDE"])
    assert cli.main(["restore", str(source), "-o", str(tmp_path / "out.tiff"), "--coarse-only"]) == 0
    with openslide.OpenSlide(source) as before, openslide.OpenSlide(tmp_path / "out.tiff") as after:
        assert after.dimensions == before.dimensions
        assert float(after.properties["openslide.mpp-x"]) == pytest.approx(float(before.properties["openslide.mpp-x"]), rel=1e-4)
        assert (after.color_profile is None) == (before.color_profile is None)
        assert after.level_count == 1 + max(0, math.ceil(math.log2(max(before.dimensions) / 512)))
        assert not after.associated_images
        assert "AI-restored" in after.properties["tiff.ImageDescription"]
        images = [np.asarray(slide.get_thumbnail((600, 600)).convert("RGB")).astype(float) for slide in (before, after)]
    assert np.abs(images[0] - images[1]).mean() < 6  # a restored slide is the same slide, seen from afar
    with tifffile.TiffFile(tmp_path / "out.tiff") as tiff:
        assert len(tiff.series[0].levels) == len(tiff.pages)
