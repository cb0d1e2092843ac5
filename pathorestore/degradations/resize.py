"""Images made smaller, as sensors and pyramids make them: the pairs that super-resolution learns from."""

import torch.nn.functional as F
from torch import Tensor

from pathorestore.degradations.acquisition import gaussian_blur


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Images b c h w at another height and width, bicubic, averaged where they shrink, within [0, 1]."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def blur_then_resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Images b c h w in [0, 1], blurred with sigma = (scale - 1) / 2 px and made smaller by bicubic interpolation with averaging.

    scale: how many times they shrink, the larger of both axes; at 1 nothing happens. Raises ValueError for a size that is larger.
    Source: ISTE's released degradation, where the paper has the blur after the reduction.
    """
    scale = max(have / want for have, want in zip(image.shape[-2:], size, strict=True))
    if min(have - want for have, want in zip(image.shape[-2:], size, strict=True)) < 0:
        raise ValueError(f"an image of {tuple(image.shape[-2:])} px cannot be degraded to the larger {size}")
    return resized(image if scale == 1 else gaussian_blur(image, sigma_px=(scale - 1) / 2), size)
