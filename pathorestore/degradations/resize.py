"""Images made smaller, as sensors and pyramids make them: the pairs that super-resolution learns from."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pathorestore.degradations.acquisition import gaussian_blur

Interpolation = Literal["linear", "cubic", "area", "averaged"]


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Images b c h w at another height and width, bicubic, averaged where they shrink, within [0, 1]."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def sampled(image: Tensor, size: tuple[int, int], *, kind: Interpolation) -> Tensor:
    """Images b c h w at another height and width, within [0, 1]; all kinds but "averaged" as OpenCV resizes.

    linear, cubic: interpolated where the new pixels lie, so that what shrinks is not averaged and aliases; area: the mean over the pixels
    that each new one touches. averaged: `resized`.
    """
    if kind == "averaged":
        return resized(image, size)
    if kind == "area":
        return F.interpolate(image, size=size, mode="area")
    mode = "bilinear" if kind == "linear" else "bicubic"
    return F.interpolate(image, size=size, mode=mode, align_corners=False).clamp(0, 1)


def reduced(sharp: Tensor, scale: float, *, blur: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sharp images b c h w made smaller `scale` times, and the part of the sharp ones that they show: whole small pixels only.

    blur: see `blur_then_resize`. Raises ValueError where no pixel would be left.
    """
    height, width = (int(side / scale + 1e-9) for side in sharp.shape[-2:])  # 33 / 1.1 is 30, whatever doubles say
    if min(height, width) < 1:
        raise ValueError(f"{sharp.shape[-1]} x {sharp.shape[-2]} px are too few to be made {scale:g} times smaller")
    clean = sharp[..., : round(height * scale), : round(width * scale)]
    return blur_then_resize(clean, (height, width), blur=blur), clean


def blur_then_resize(image: Tensor, size: tuple[int, int], *, blur: float = 1.0) -> Tensor:
    """Images b c h w in [0, 1], blurred with sigma = blur (scale - 1) / 2 px and made smaller by bicubic interpolation with averaging.

    scale: how many times they shrink, the larger of both axes; at 1 nothing happens. blur: 1 as in ISTE, 0 none.
    Raises ValueError for a size that is larger or a negative blur.
    Source: ISTE's released degradation, where the paper has the blur after the reduction.
    """
    scale = max(have / want for have, want in zip(image.shape[-2:], size, strict=True))
    if min(have - want for have, want in zip(image.shape[-2:], size, strict=True)) < 0:
        raise ValueError(f"an image of {tuple(image.shape[-2:])} px cannot be degraded to the larger {size}")
    if not blur >= 0:
        raise ValueError(f"blur must not be negative; got {blur}")
    sigma_px = blur * (scale - 1) / 2
    return resized(gaussian_blur(image, sigma_px=sigma_px) if sigma_px else image, size)
