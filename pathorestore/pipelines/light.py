"""What defocus cannot have done: it moves light, and neither makes it nor takes it."""

import torch.nn.functional as F
from torch import Tensor

from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.functional.color import linear_to_srgb, srgb_to_linear

_POOL_PX, _SIGMA_POOLED = 8, 2.0  # a Gaussian of 16 px, computed where it costs nothing
_TOLERANCE = 0.005


def keep_light(restored: Tensor, degraded: Tensor) -> Tensor:
    """The restored images b 3 h w with the light of the degraded ones, over areas wider than a point-spread function; unclamped as given.

    A network that meets a stain it was never shown may give it the colours of one that it knows. The transfer function of any defocus is
    one at zero frequency, so the mean linear light over some 16 px tells what the colours must be. Differences up to 0.005 are left to
    the network, which may know better: what a camera or JPEG did to the light is no defocus. Sides are multiples of 8 px.
    """
    shown = restored.clamp(0, 1)
    light = srgb_to_linear(shown)
    missing = gaussian_blur(F.avg_pool2d(srgb_to_linear(degraded.clamp(0, 1)) - light, _POOL_PX), sigma_px=_SIGMA_POOLED)
    missing = missing - missing.clamp(-_TOLERANCE, _TOLERANCE)
    missing = F.interpolate(missing, size=restored.shape[-2:], mode="bilinear", align_corners=False)
    return restored + linear_to_srgb((light + missing).clamp(0, 1)) - linear_to_srgb(light)
