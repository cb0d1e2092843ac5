"""What the accumulators share: adding numbers of images up over batches and processes."""

from typing import Any

import torch
from torch import Tensor

from pathorestore._torchvision import ensure_torchvision

ensure_torchvision()
from torchmetrics import Metric  # noqa: E402  it imports torchvision where that is installed


class ImageMean(Metric):  # type: ignore[misc]
    """Averages `width` numbers over images. For subclasses, whose `update` calls `add`."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, width: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", default=torch.zeros(width), dist_reduce_fx="sum")
        self.add_state("images", default=torch.tensor(0), dist_reduce_fx="sum")

    def add(self, rows: Tensor) -> None:
        """Add images n, or n width."""
        self.total += (rows if rows.ndim > 1 else rows[:, None]).sum(dim=0)
        self.images += len(rows)

    def means(self) -> Tensor:
        """The means so far, width; NaN before the first image."""
        means: Tensor = self.total / self.images
        return means


class OneMean(ImageMean):
    """Averages one number over images. For subclasses, whose `update` calls `add`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def compute(self) -> Tensor:
        """The mean so far, NaN before the first image."""
        return self.means()[0]


class DefinedMean(OneMean):
    """Averages one number over the images for which it is defined and counts the others in `undefined`. For subclasses."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("undefined", default=torch.tensor(0), dist_reduce_fx="sum")

    def add(self, rows: Tensor) -> None:
        """Add images n; NaN is undefined."""
        missing = rows.isnan()
        self.total += rows.nansum()
        self.images += (~missing).sum()
        self.undefined += missing.sum()
