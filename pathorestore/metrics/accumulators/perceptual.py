"""LPIPS and DISTS as torchmetrics."""

from typing import Any

from torch import Tensor

from pathorestore.metrics.accumulators.mean import OneMean
from pathorestore.metrics.perceptual import Dists, Lpips


class LPIPS(OneMean):
    """Mean over images of `perceptual.Lpips`. measure: which one; `Lpips()` if None. `measure.available()` says whether it can be had."""

    higher_is_better = False

    def __init__(self, measure: Lpips | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.measure = measure or Lpips()

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        self.add(self.measure(restored, clean))


class DISTS(OneMean):
    """Mean over images of `perceptual.Dists`. `measure.available()` says whether it can be had."""

    higher_is_better = False

    def __init__(self, measure: Dists | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.measure = measure or Dists()

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        self.add(self.measure(restored, clean))
