"""The metrics as torchmetrics: they add up images over batches and processes and average over images."""

from typing import Any

import torch
from torch import Tensor

from pathorestore._torchvision import ensure_torchvision
from pathorestore.metrics.fidelity import psnr, ssim
from pathorestore.metrics.nuclei import INTENSITY, TEXTURE, NucleiSegmenter, Region, nuclei_difference

ensure_torchvision()
from torchmetrics import Metric  # noqa: E402  it imports torchvision where that is installed


class _ImageMean(Metric):  # type: ignore[misc]
    """Averages `width` numbers over images."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, width: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", default=torch.zeros(width), dist_reduce_fx="sum")
        self.add_state("images", default=torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, rows: Tensor) -> None:
        """Add images n, or n width."""
        self.total += rows.reshape(len(rows), -1).sum(dim=0)
        self.images += len(rows)

    def _mean(self) -> Tensor:
        """The mean so far, NaN before the first image."""
        mean: Tensor = self.total / self.images
        return mean


class PSNR(_ImageMean):
    """Mean over images of `fidelity.psnr`, in dB."""

    higher_is_better = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b c h w in [0, 1]."""
        self._add(psnr(restored, clean))

    def compute(self) -> Tensor:
        """The mean so far, NaN before the first image."""
        return self._mean()[0]


class SSIM(_ImageMean):
    """Mean over images of `fidelity.ssim`."""

    higher_is_better = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b c h w in [0, 1]."""
        self._add(ssim(restored, clean))

    def compute(self) -> Tensor:
        """The mean so far, NaN before the first image."""
        return self._mean()[0]


class NucleiL1(_ImageMean):
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
        self._add(torch.cat([difference.intensity, difference.texture], dim=1)[found])
        self.without_nuclei += (~found).sum()

    def compute(self) -> dict[str, Tensor]:
        """By name: `l1_intensity`, `l1_texture`, their components (all NaN before the first nucleus) and `images_without_nuclei`."""
        mean = self._mean()
        names = [*(f"intensity_{name}" for name in INTENSITY), *(f"texture_{name}" for name in TEXTURE)]
        sums = {"l1_intensity": mean[: len(INTENSITY)].sum(), "l1_texture": mean[len(INTENSITY) :].sum()}
        return sums | dict(zip(names, mean, strict=True)) | {"images_without_nuclei": self.without_nuclei}
