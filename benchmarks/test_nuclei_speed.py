"""Speed of the measures of nuclei on a tile of 1000 x 1000 px of the histology picture that scikit-image ships."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data
from skimage.feature import graycomatrix, graycoprops
from taking_turns import TakingTurns

from pathorestore.image import from_uint8, to_uint8
from pathorestore.metrics.nuclei import TEXTURE, grey_levels, intensity, nuclei_difference, texture
from pathorestore.metrics.nuclei_objects import nuclei_objects
from pathorestore.metrics.segmenters import Labels, Pixels, Watershed, find_nuclei

ANGLES = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]


@pytest.fixture(scope="module")
def tile() -> Pixels:
    """The picture mirrored at its right and lower border, then cut; about a thousand nuclei at 0.25 um per pixel."""
    return np.pad(data.immunohistochemistry(), ((0, 488), (0, 488), (0, 0)), mode="symmetric")


def matrices(grey: NDArray[np.int64], labels: Labels) -> NDArray[np.float64]:
    """The textures n 4 by one 256 x 256 matrix per nucleus and angle; outside the nucleus there is a level of its own, which is cut off."""
    rows = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        crop = np.where(labels[box] == label, grey[box], 256).astype(np.uint16)
        counts = graycomatrix(crop, [1], ANGLES, levels=257, symmetric=True)[:256, :256].astype(np.float64)
        counts /= np.maximum(counts.sum(axis=(0, 1)), 1)
        rows.append([graycoprops(counts, name).mean() for name in TEXTURE])
    return np.array(rows)


def test_textures_of_all_nuclei(tile: Pixels, taking_turns: TakingTurns) -> None:
    """Also the moments of their grey levels, which the matrices have to be accompanied by as well."""
    grey, labels = grey_levels(tile), find_nuclei(Watershed(), tile)
    corner = np.where(labels <= 30, labels, 0)
    assert texture(grey, corner) == pytest.approx(matrices(grey, corner), rel=1e-9)
    taking_turns(
        {
            "pairs": lambda: (texture(grey, labels), intensity(grey, labels)),
            "matrices": lambda: (matrices(grey, labels), intensity(grey, labels)),
        },
        rounds=2,
    )
    taking_turns.benchmark.extra_info["nuclei"] = int(labels.max())


@pytest.mark.parametrize("measure", [nuclei_difference, nuclei_objects])
def test_a_whole_measure_with_segmentation(measure, tile: Pixels, taking_turns: TakingTurns) -> None:  # type: ignore[no-untyped-def]
    """On one core; beside it the segmentation of one image alone, of which `nuclei_difference` holds one and `nuclei_objects` two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clean = from_uint8(tile)
        restored = torch.nn.functional.avg_pool2d(clean, 3, stride=1, padding=1, count_include_pad=False)
        pixels, find = to_uint8(clean), Watershed()
        taking_turns({"measure": lambda: measure(restored, clean), "segmentation": lambda: find(pixels)}, rounds=5)
    finally:
        torch.set_num_threads(threads)
