"""Blur kernels of super-resolution papers, k k with k odd, and the filter that applies them; every kernel sums to 1.

x runs along the columns and y down the rows, both in pixels from the central one; r^2 = x^2 + y^2. Elliptic kernels depend on

    q = (u / along)^2 + (v / across)^2,   u = x cos(angle) + y sin(angle),   v = y cos(angle) - x sin(angle),

with sigma_px = (along, across) and the angle in radians. Computed in float64, returned in float32.
"""

import math

import torch
from torch import Tensor

from pathorestore.image import pad_around

# a sampled kernel this narrow is a single pixel
_LEAST_SIGMA_PX = 1e-3


def gaussian_kernel(
    sigma_px: tuple[float, float], *, angle: float = 0.0, side_px: int, centre_px: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """exp(-q / 2) with standard deviations (along, across) `angle`; equal ones make it isotropic, (0, 0) a single pixel.

    centre_px: (y, x) of its peak from the central pixel.
    Raises ValueError for a negative deviation or a side that is not odd and positive.
    """
    q = _ellipse(sigma_px, angle, side_px, centre_px)
    # less its smallest value: a narrow peak between pixels would vanish on all of them
    return _normalised((-(q - q.min()) / 2).exp())


def generalised_gaussian_kernel(sigma_px: tuple[float, float], *, angle: float = 0.0, beta: float, side_px: int) -> Tensor:
    """exp(-q^beta / 2): beta 1 is the Gaussian, below 1 has a sharper peak and longer tails, above 1 is flatter.

    Raises ValueError for beta <= 0, a negative deviation or a side that is not odd and positive.
    """
    _check_beta(beta)
    return _normalised((-(_ellipse(sigma_px, angle, side_px) ** beta) / 2).exp())


def plateau_kernel(sigma_px: tuple[float, float], *, angle: float = 0.0, beta: float, side_px: int) -> Tensor:
    """1 / (1 + q^beta): half its height where q = 1, and the larger beta, the more of a plateau within.

    Raises ValueError for beta <= 0, a negative deviation or a side that is not odd and positive.
    """
    _check_beta(beta)
    return _normalised(1 / (1 + _ellipse(sigma_px, angle, side_px) ** beta))


def sinc_kernel(cutoff: float, *, side_px: int) -> Tensor:
    """The circular low-pass that keeps frequencies below `cutoff` rad/px, w J1(w r) / (2 pi r), cut off at the side: it rings.

    Raises ValueError for a cutoff outside (0, pi] or a side that is not odd and positive.
    """
    if not 0 < cutoff <= math.pi:
        raise ValueError(f"cutoff={cutoff} rad/px must lie in (0, pi]; pi is the highest frequency that pixels hold")
    x, y = _offsets(side_px)
    r = (x**2 + y**2).sqrt()
    # J1(t) / t tends to 1/2
    value = torch.where(r > 0, torch.special.bessel_j1(cutoff * r) / (cutoff * r).clamp(min=1e-12), 0.5)
    return _normalised(value * cutoff**2 / (2 * math.pi))


def filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Give every pixel of b c h w the mean of its neighbours weighted by a kernel k k; beyond the border the image is reflected.

    By Fourier transform, in a time that does not depend on the kernel; equal to the sum to 1e-6.
    """
    height, width = image.shape[-2:]
    padded = pad_around(image, len(kernel) // 2)
    size = (padded.shape[-2], padded.shape[-1])
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel.to(image), s=size).conj()
    blurred: Tensor = torch.fft.irfft2(spectrum, s=size)
    return blurred[..., :height, :width]


def spread_px2(kernel: Tensor) -> tuple[float, float]:
    """Variance of a kernel k k about its centroid along y and along x, in px^2."""
    x, y = _offsets(len(kernel))
    weight = kernel.double()
    variances = [((weight * axis**2).sum() - (weight * axis).sum() ** 2).item() for axis in (y, x)]
    return max(0.0, variances[0]), max(0.0, variances[1])


def _offsets(side_px: int) -> tuple[Tensor, Tensor]:
    if side_px < 1 or side_px % 2 == 0:
        raise ValueError(f"side_px={side_px} has no central pixel; expected an odd number, such as {2 * max(side_px // 2, 0) + 1}")
    offset = torch.arange(side_px, dtype=torch.float64) - side_px // 2
    return offset.expand(side_px, side_px), offset[:, None].expand(side_px, side_px)


def _ellipse(sigma_px: tuple[float, float], angle: float, side_px: int, centre_px: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """The quadratic form q over the pixels, k k."""
    if min(sigma_px) < 0:
        raise ValueError(f"sigma_px={sigma_px} must not be negative; 0 leaves the image as it is")
    along, across = (max(sigma, _LEAST_SIGMA_PX) for sigma in sigma_px)
    x, y = _offsets(side_px)
    x, y = x - centre_px[1], y - centre_px[0]
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return (u / along) ** 2 + (v / across) ** 2


def _check_beta(beta: float) -> None:
    if beta <= 0:
        raise ValueError(f"beta={beta} must be > 0; 1 is the Gaussian's exponent")


def _normalised(weights: Tensor) -> Tensor:
    return (weights / weights.sum()).float()
