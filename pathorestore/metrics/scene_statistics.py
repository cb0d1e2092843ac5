"""Natural scene statistics of the spatial domain: how locally normalised luminance and its neighbour products are distributed.

The 18 numbers of a scale are, after Mittal, Moorthy, Bovik, IEEE Trans. Image Process. 21 (2012) 4695-4708, table I: shape and variance of
a generalised Gaussian (GGD) fitted to the normalised luminance, then shape, mean, left and right variance of an asymmetric one (AGGD)
fitted to the products of horizontal, vertical and the two diagonal neighbours. Two scales give 36.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURES = 36
SCALES = 2
LEAST_SIDE_PX = 32

_WINDOW_PX = 7
_SIGMA_PX = 7 / 6
_CONTRAST = 1.0
_PEAK = 255.0
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as MATLAB's rgb2gray and the LIVE software
_SHAPES = (0.2, 10.0)  # the range in which the paper's software looks for a shape
_NEWTON_STEPS = 3


class Gaussian(NamedTuple):
    """A generalised Gaussian of zero mean: its shape (2 is the normal one, 1 the Laplacian) and its variance."""

    shape: Tensor
    variance: Tensor


class SkewedGaussian(NamedTuple):
    """An asymmetric generalised Gaussian: shape, mean, and the mean squares of the values left and right of zero."""

    shape: Tensor
    mean: Tensor
    left: Tensor
    right: Tensor


class PatchFeatures(NamedTuple):
    """features: b n 36. sharpness: b n, the mean local deviation of a patch at full size, in grey levels."""

    features: Tensor
    sharpness: Tensor


def luminance_levels(image: Tensor) -> Tensor:
    """Luma b 1 h w of images b 3 h w in [0, 1], clipped to it: whole grey levels 0..255 in float64, as of an 8-bit grey file.

    ITU-R BT.601 weights. Raises ValueError for another shape or a side below 32 px, where the second scale has no statistics.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected RGB as (batch, 3, height, width), e.g. image[None] for one image")
    if min(image.shape[-2:]) < LEAST_SIDE_PX:
        raise ValueError(
            f"images of {tuple(image.shape[-2:])} px are too small for scene statistics; use crops of at least {LEAST_SIDE_PX} px a side"
        )
    levels = (image.detach().clamp(0, 1).double() * _PEAK).round()
    weights = torch.tensor(_LUMA, dtype=levels.dtype, device=levels.device)
    return torch.einsum("c,bchw->bhw", weights, levels)[:, None].round()


def normalised(luma: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance less its local mean, divided by its local deviation plus 1 (MSCN coefficients), and that deviation; both as luma b 1 h w.

    Gaussian window of 7 x 7 px with deviation 7/6 px, borders replicated (the BRISQUE software pads with black, that of NIQE replicates).
    luma: grey levels 0..255 in float32 or float64. Where it is flat the coefficients are exactly zero. Source: eq. 1 to 3 of the paper.
    """
    # about zero, single precision keeps small variances; and the result does not depend on the level
    centred = luma - luma.mean(dim=(-2, -1), keepdim=True)
    mean = _local_mean(centred)
    deviation = (_local_mean(centred.square()) - mean.square()).clamp(min=0).sqrt()
    difference = centred - mean
    rounding = 64 * torch.finfo(luma.dtype).eps * _PEAK  # of a flat region, whose signs would be counted below
    difference = torch.where(difference.abs() > rounding, difference, torch.zeros_like(difference))
    return difference / (deviation + _CONTRAST), deviation


def half_size(luma: Tensor) -> Tensor:
    """Luma b 1 h w at half the size, odd sides rounded down: bicubic, low-passed first as MATLAB's imresize does."""
    size = (luma.shape[-2] // 2, luma.shape[-1] // 2)
    return F.interpolate(luma, size=size, mode="bicubic", align_corners=False, antialias=True)


def fit_ggd(values: Tensor) -> Gaussian:
    """Fit a generalised Gaussian to the last axis of `values` by its second and first absolute moment. All zeros give NaN.

    The moment equation is solved for shapes in [0.2, 10]; the paper's software looks them up in steps of 0.001.
    Source: Sharifi & Leon-Garcia, IEEE Trans. Circuits Syst. Video Technol. 5 (1995) 52-56.
    """
    variance = values.square().mean(dim=-1)
    return Gaussian(_shape(values.abs().mean(dim=-1).square() / variance), variance)


def fit_aggd(values: Tensor) -> SkewedGaussian:
    """Fit an asymmetric generalised Gaussian to the last axis of `values` by moments; zeros lie on neither side, all zeros give NaN.

    Source: Lasmar, Stitou, Berthoumieu, ICIP 2009, 2281-2284; the mean is eq. 10 of the BRISQUE paper.
    """
    squares = values.square()
    below, above = values < 0, values > 0
    left = (squares * below).sum(dim=-1) / below.sum(dim=-1).clamp(min=1)
    right = (squares * above).sum(dim=-1) / above.sum(dim=-1).clamp(min=1)
    low, high = left.sqrt(), right.sqrt()
    # (g^3 + 1)(g + 1) / (g^2 + 1)^2 with g = low / high, multiplied out so that a side may be empty
    asymmetry = (low**3 + high**3) * (low + high) / (left + right).square()
    shape = _shape(values.abs().mean(dim=-1).square() / squares.mean(dim=-1) * asymmetry)
    one, two, three = (torch.lgamma(k / shape) for k in (1, 2, 3))
    return SkewedGaussian(shape, (high - low) * torch.exp(two - (one + three) / 2), left, right)


def neighbour_products(mscn: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Products of horizontal, vertical, main diagonal and other diagonal neighbours of ... h w, each flat in its last axis.

    Pairs inside the image only; the paper's software also multiplies pixels at one border with those at the opposite one.
    """
    pairs = (
        (mscn[..., :, :-1], mscn[..., :, 1:]),
        (mscn[..., :-1, :], mscn[..., 1:, :]),
        (mscn[..., :-1, :-1], mscn[..., 1:, 1:]),
        (mscn[..., :-1, 1:], mscn[..., 1:, :-1]),
    )
    horizontal, vertical, main, other = ((first * second).flatten(-2) for first, second in pairs)
    return horizontal, vertical, main, other


def scale_features(mscn: Tensor) -> Tensor:
    """The 18 numbers of one scale, ... 18, from its MSCN coefficients ... h w. NaN where nothing but zeros was there to be fitted."""
    parts = list(fit_ggd(mscn.flatten(-2)))
    for products in neighbour_products(mscn):
        parts += fit_aggd(products)
    return torch.stack(parts, dim=-1)


def image_features(luma: Tensor) -> Tensor:
    """The 36 numbers of each image, b 36, from its luma b 1 h w in grey levels; NaN for flat images."""
    return torch.cat([scale_features(normalised(scale)[0][:, 0]) for scale in (luma, half_size(luma))], dim=-1)


def patch_features(luma: Tensor, *, patch_px: int) -> PatchFeatures:
    """The 36 numbers and the sharpness of the whole patches of `patch_px` px, without overlap, row by row from the image's upper left.

    luma: b 1 h w in grey levels; rest strips at the right and the bottom are left out. NaN for flat patches.
    Raises ValueError for an odd or too small patch, and for an image in which fewer than two patches fit.
    """
    if patch_px % 2 or patch_px < LEAST_SIDE_PX:
        raise ValueError(f"patch_px={patch_px} must be even and at least {LEAST_SIDE_PX}, such as 96")
    rows, columns = luma.shape[-2] // patch_px, luma.shape[-1] // patch_px
    if rows * columns < 2:
        raise ValueError(
            f"images of {tuple(luma.shape[-2:])} px hold {rows * columns} patches of {patch_px} px and two are needed; "
            f"use crops of at least {patch_px} x {2 * patch_px} px, or parameters fitted with smaller patches"
        )
    scale, side = luma[..., : rows * patch_px, : columns * patch_px], patch_px
    features, sharpness = [], []
    for _ in range(SCALES):
        mscn, deviation = normalised(scale)
        features.append(scale_features(_patches(mscn, side)))
        sharpness.append(_patches(deviation, side).mean(dim=(-2, -1)))
        scale, side = half_size(scale), side // 2
    return PatchFeatures(torch.cat(features, dim=-1), sharpness[0])


def _patches(image: Tensor, side_px: int) -> Tensor:
    """Patches b n p p of an image b 1 h w whose sides are multiples of theirs."""
    return image[:, 0].unfold(1, side_px, side_px).unfold(2, side_px, side_px).flatten(1, 2)


def _local_mean(image: Tensor) -> Tensor:
    """Gaussian-weighted mean around each pixel, borders replicated."""
    half = _WINDOW_PX // 2
    offset = torch.arange(-half, half + 1, dtype=torch.float64)
    weight = torch.exp(-0.5 * (offset / _SIGMA_PX) ** 2)
    weights = (weight / weight.sum()).tolist()
    image = F.pad(image, (half, half, half, half), mode="replicate")
    # shifted sums: on a CPU several times faster than a convolution of single channels
    for axis in (-1, -2):
        windows = image.unfold(axis, _WINDOW_PX, 1)
        image = windows[..., 0] * weights[0]
        for index in range(1, _WINDOW_PX):
            image = torch.add(image, windows[..., index], alpha=weights[index])
    return image


def _shape(ratio: Tensor) -> Tensor:
    """The shape a in [0.2, 10] with Gamma(2/a)^2 / (Gamma(1/a) Gamma(3/a)) = ratio = E|x|^2 / E x^2, which grows with a; NaN stays NaN.

    Newton's method in the logarithm from a table that is close enough for it to be exact to rounding.
    """
    target = ratio.double().log()
    shapes, logarithms = (column.to(target.device) for column in _table())
    shape = shapes[torch.searchsorted(logarithms, target.contiguous()).clamp(max=len(shapes) - 1)]
    for _ in range(_NEWTON_STEPS):
        slope = (torch.digamma(1 / shape) - 4 * torch.digamma(2 / shape) + 3 * torch.digamma(3 / shape)) / shape.square()
        shape = (shape - (_log_ratio(shape) - target) / slope).clamp(*_SHAPES)
    return torch.where(target.isnan(), target, shape).to(ratio.dtype)


def _log_ratio(shape: Tensor) -> Tensor:
    one, two, three = (torch.lgamma(k / shape) for k in (1, 2, 3))
    return 2 * two - one - three


@cache
def _table() -> tuple[Tensor, Tensor]:
    low, high = _SHAPES
    shapes = torch.logspace(math.log(low), math.log(high), 1000, base=math.e, dtype=torch.float64)
    return shapes, _log_ratio(shapes)
