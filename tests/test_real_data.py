"""The embedded weights on real images: PATHORESTORE_DATA names a folder of sharp ones."""

import os
from pathlib import Path

import pytest
import torch

from pathorestore.data.sharp_crops import image_files, read_rgb
from pathorestore.degradations.optical import degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.functional.noise import stream
from pathorestore.image import from_uint8
from pathorestore.metrics.fidelity import psnr
from pathorestore.pipelines.mop import load_default

pytestmark = [pytest.mark.real_data, pytest.mark.skipif("PATHORESTORE_DATA" not in os.environ, reason="PATHORESTORE_DATA is not set")]


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
