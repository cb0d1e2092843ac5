"""Measures of nuclei as torchmetrics."""

from typing import Any

import torch
from torch import Tensor

from pathorestore.metrics.accumulators.mean import ImageMean
from pathorestore.metrics.nuclei import INTENSITY, TEXTURE, NucleiSegmenter, Region, nuclei_difference


class NucleiL1(ImageMean):
    """Means over images of `nuclei.nuclei_difference` and of its components; images without nuclei are left out and counted."""

    higher_is_better = False

    def __init__(self, *, segmenter: NucleiSegmenter | None = None, region: Region = "mask", **options: Any) -> None:
        super().__init__(len(INTENSITY) + len(TEXTURE), **options)
        self.segmenter, self.region = segmenter, region
        self.add_state("without_nuclei", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        difference = nuclei_difference(restored, clean, segmenter=self.segmenter, region=self.region)
        found = difference.nuclei > 0
        self.add(torch.cat([difference.intensity, difference.texture], dim=1)[found])
        self.without_nuclei += (~found).sum()

    def compute(self) -> dict[str, Tensor]:
        """By name: `l1_intensity`, `l1_texture`, their components (all NaN before the first nucleus) and `images_without_nuclei`."""
        mean = self.means()
        names = [*(f"intensity_{name}" for name in INTENSITY), *(f"texture_{name}" for name in TEXTURE)]
        sums = {"l1_intensity": mean[: len(INTENSITY)].sum(), "l1_texture": mean[len(INTENSITY) :].sum()}
        return sums | dict(zip(names, mean, strict=True)) | {"images_without_nuclei": self.without_nuclei}
