"""Measures of nuclei as torchmetrics."""

from typing import Any

import torch
from torch import Tensor

from pathorestore.metrics.accumulators.mean import ImageMean
from pathorestore.metrics.nuclei import INTENSITY, TEXTURE, Region, nuclei_difference
from pathorestore.metrics.nuclei_objects import NucleiObjects, nuclei_objects
from pathorestore.metrics.segmenters import NucleiSegmenter


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


class NucleiF1(ImageMean):
    """Means over images of `nuclei_objects.nuclei_objects`, each over the images for which it is known."""

    higher_is_better = True

    def __init__(self, *, segmenter: NucleiSegmenter | None = None, iou_at_least: float = 0.5, **options: Any) -> None:
        super().__init__(2 * len(NucleiObjects._fields), **options)
        self.segmenter, self.iou_at_least = segmenter, iou_at_least
        self.add_state("without_nuclei", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        values = torch.stack(nuclei_objects(restored, clean, segmenter=self.segmenter, iou_at_least=self.iou_at_least), dim=1)
        self.add(torch.cat([values.nan_to_num(nan=0.0), (~values.isnan()).to(values)], dim=1))
        self.without_nuclei += values[:, 0].isnan().sum()

    def compute(self) -> dict[str, Tensor]:
        """By name: the fields of `NucleiObjects` (NaN before the first known one) and `images_without_nuclei`, in neither image."""
        total, known = self.total.chunk(2)
        return dict(zip(NucleiObjects._fields, total / known, strict=True)) | {"images_without_nuclei": self.without_nuclei}
