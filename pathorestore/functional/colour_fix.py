"""Give a generated image the colours of another one: by its low band, by mean and standard deviation, or by changing its dye only.

Generative models drift in colour. The reference is the coarse image of the same system, never the degraded one of a translation, whose
stain would come back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pathorestore.functional.color import optical_density

LEVELS = 5
RADIUS_PX = 2**LEVELS - 1
"""How far a pixel of `wavelet` looks."""

_LEAST_VARIANCE = 1e-5
_LEAST_INTENSITY = 1 / 255
_GLASS_DENSITY = 0.02  # of clean glass, on which half of a change is drawn
_LEAST_DYE = 0.1


def wavelet(sample: Tensor, reference: Tensor) -> Tensor:
    """The detail of images b c h w on the low band of a reference of the same shape; unclamped.

    Five levels a trous: x_{i+1} is x_i blurred with [1 2 1] / 4 along both axes, spread by 2^i px, edges going on. The
    detail is the sum of x_i - x_{i+1}, which is x_0 less the last; so the result is the sample plus the low band of what it differs by.
    Source: the colour correction of StableSR (Wang et al., IJCV 2024) and DiffBIR (Lin et al., ECCV 2024).
    """
    return sample + low_band(reference - sample)


def low_band(image: Tensor, *, levels: int = LEVELS) -> Tensor:
    """What dilated blurs, one for each level, leave of images b c h w."""
    channels = image.shape[1]
    line = image.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    for level in range(levels):
        reach = 2**level
        image = F.conv2d(F.pad(image, (reach,) * 4, mode="replicate"), kernel, dilation=reach, groups=channels)
    return image


def adain(sample: Tensor, reference: Tensor) -> Tensor:
    """Images b c h w with the mean and standard deviation that a reference has in each image and channel; unclamped.

    Both are of the whole image: parts of one that are fixed apart do not fit together. Variances are unbiased, plus 1e-5.
    Source: Huang and Belongie, Arbitrary style transfer in real-time with adaptive instance normalization, ICCV 2017, eq. 8.
    """
    return (sample - _mean(sample)) / _deviation(sample) * _deviation(reference) + _mean(reference)


def density_change(reference: Tensor, before: Tensor, after: Tensor, *, levels: int) -> Tensor:
    """A reference b 3 h w in [0, 1] with more or less of its dye, by as much as `after` is denser than `before`; in [0, 1].

    By the Beer-Lambert law the density (-log10 of the intensity) of a mixture of dyes grows with its amount, all channels in proportion.
    Of a change of the mean density over the channels, what is finer than the low band of so many levels counts: d. Each pixel keeps the
    direction of its density D and gets D (1 + d / (mean D + 0.02)), at least a tenth of D. So detail has the hue of the place where it
    is drawn; white gets none, clean glass, of a density about 0.02, half of it, and tissue all but all. Ours.
    """
    density, old, new = (optical_density(image.clamp(_LEAST_INTENSITY, 1)).mean(1, keepdim=True) for image in (reference, before, after))
    change = new - old
    change = change - low_band(change, levels=levels)
    powers = 1 + change / (density + _GLASS_DENSITY)
    return reference.clamp(0, 1) ** powers.clamp(min=_LEAST_DYE)


def _mean(image: Tensor) -> Tensor:
    return image.mean(dim=(-2, -1), keepdim=True)


def _deviation(image: Tensor) -> Tensor:
    return (image.var(dim=(-2, -1), keepdim=True, correction=1) + _LEAST_VARIANCE).sqrt()
