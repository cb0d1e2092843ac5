"""Give a generated image the colours of another one: by its low band, or by mean and standard deviation.

Generative models drift in colour. The reference is the coarse image of the same system, never the degraded one of a translation, whose
stain would come back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5
RADIUS_PX = 2**LEVELS - 1
"""How far a pixel of `wavelet` looks."""

_LEAST_VARIANCE = 1e-5


def wavelet(sample: Tensor, reference: Tensor, *, levels: int = LEVELS) -> Tensor:
    """The detail of images b c h w on the low band of a reference of the same shape; unclamped.

    Levels a trous, five as published: x_{i+1} is x_i blurred with [1 2 1] / 4 along both axes, spread by 2^i px, edges going on. The
    detail is the sum of x_i - x_{i+1}, which is x_0 less the last; so the result is the sample plus the low band of what it differs by.
    Source: the colour correction of StableSR (Wang et al., IJCV 2024) and DiffBIR (Lin et al., ECCV 2024).
    """
    return sample + low_band(reference - sample, levels=levels)


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


def _mean(image: Tensor) -> Tensor:
    return image.mean(dim=(-2, -1), keepdim=True)


def _deviation(image: Tensor) -> Tensor:
    return (image.var(dim=(-2, -1), keepdim=True, correction=1) + _LEAST_VARIANCE).sqrt()
