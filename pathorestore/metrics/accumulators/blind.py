"""NIQE and BRISQUE as torchmetrics: they look at the restored image alone."""

from typing import Any

from torch import Tensor

from pathorestore.metrics.accumulators.mean import DefinedMean
from pathorestore.metrics.brisque import BrisqueParameters, brisque
from pathorestore.metrics.brisque import load_parameters as load_brisque
from pathorestore.metrics.niqe import NiqeParameters, niqe
from pathorestore.metrics.niqe import load_parameters as load_niqe


class NIQE(DefinedMean):
    """Mean over images of `niqe.niqe`; images without statistics (flat ones) are left out and counted in `undefined`.

    parameters: None for the embedded ones. Raises FileNotFoundError without them.
    """

    higher_is_better = False

    def __init__(self, *, parameters: NiqeParameters | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.fitted = parameters or load_niqe()

    def update(self, restored: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        self.add(niqe(restored, self.fitted))


class BRISQUE(DefinedMean):
    """Mean over images of `brisque.brisque`, 0 to 100; flat images are left out and counted in `undefined`.

    parameters: None for the embedded ones. Raises FileNotFoundError without them.
    """

    higher_is_better = False

    def __init__(self, *, parameters: BrisqueParameters | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.fitted = parameters or load_brisque()

    def update(self, restored: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        self.add(brisque(restored, self.fitted))
