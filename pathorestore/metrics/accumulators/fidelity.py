"""PSNR and SSIM as torchmetrics."""

from torch import Tensor

from pathorestore.metrics.accumulators.mean import OneMean
from pathorestore.metrics.fidelity import psnr, ssim


class PSNR(OneMean):
    """Mean over images of `fidelity.psnr`, in dB."""

    higher_is_better = True

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b c h w in [0, 1]."""
        self.add(psnr(restored, clean))


class SSIM(OneMean):
    """Mean over images of `fidelity.ssim`."""

    higher_is_better = True

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b c h w in [0, 1]."""
        self.add(ssim(restored, clean))
