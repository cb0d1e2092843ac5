"""Measures of structure as torchmetrics."""

from torch import Tensor

from pathorestore.metrics.accumulators.mean import DefinedMean, OneMean
from pathorestore.metrics.fidelity import ms_ssim
from pathorestore.metrics.structure import edge_preservation, gmsd, power_spectrum_distance


class MSSSIM(OneMean):
    """Mean over images of `fidelity.ms_ssim`."""

    higher_is_better = True

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b c h w in [0, 1]."""
        self.add(ms_ssim(restored, clean))


class GMSD(OneMean):
    """Mean over images of `structure.gmsd`."""

    higher_is_better = False

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        self.add(gmsd(restored, clean))


class PowerSpectrumDistance(OneMean):
    """Mean over images of `structure.power_spectrum_distance`, in dB."""

    higher_is_better = False

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        self.add(power_spectrum_distance(restored, clean))


class EdgePreservation(DefinedMean):
    """Mean over images of `structure.edge_preservation`; images whose clean side has no edges are left out and counted in `undefined`."""

    higher_is_better = True

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        self.add(edge_preservation(restored, clean))
