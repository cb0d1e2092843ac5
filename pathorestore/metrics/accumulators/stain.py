"""Measures of stains as torchmetrics."""

from typing import Any

from torch import Tensor

from pathorestore.metrics.accumulators.mean import DefinedMean
from pathorestore.metrics.stain import stain_shift


class StainShift(DefinedMean):
    """Mean over images of `stain.stain_shift`, in degrees; pairs with too little tissue are left out and counted in `undefined`.

    white: the value of empty glass.
    """

    higher_is_better = False

    def __init__(self, *, white: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.white = white

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        self.add(stain_shift(restored, clean, white=self.white))
