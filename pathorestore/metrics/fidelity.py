"""How close a restored image is to the clean one, pixel by pixel: PSNR, SSIM and MS-SSIM as reports state them, on 8-bit values."""

import torch
import torch.nn.functional as F
from torch import Tensor

_PEAK = 255.0
_WINDOW_PX = 11
_SIGMA_PX = 1.5
_K1, _K2 = 0.01, 0.03
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of Wang et al. 2003, from fine to coarse


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, b: 10 log10(255^2 / MSE) over all pixels and channels, both images rounded to 8 bit.

    restored, clean: b c h w on the scale [0, 1], clipped to it. Equal images give infinity, NaN gives NaN.
    Raises ValueError if the shapes differ.
    """
    x, y = _levels(restored, clean)
    return 10 * (_PEAK**2 / (x - y).square().flatten(1).mean(dim=1)).log10()


def ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Structural similarity of each image in [-1, 1], b; 1 for equal images. Both images are rounded to 8 bit.

    Gaussian window of 11 x 11 px with sigma 1.5 px, K1 = 0.01, K2 = 0.03, population statistics; the mean over the channels and over the
    pixels whose window lies inside the image. restored, clean: b c h w on the scale [0, 1], clipped to it.
    Raises ValueError if the shapes differ or a side is shorter than the window.
    Source: Wang, Bovik, Sheikh, Simoncelli, IEEE Trans. Image Process. 13 (2004) 600-612, eq. 13.
    """
    x, y = _levels(restored, clean)
    if min(x.shape[-2:]) < _WINDOW_PX:
        raise ValueError(f"images of {tuple(x.shape[-2:])} px are smaller than the SSIM window of {_WINDOW_PX} px; use larger crops")
    luminance, structure = _similarities(x, y)
    return (luminance * structure).flatten(1).mean(dim=1)


def ms_ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image in [0, 1], b; 1 for equal images. Both images are rounded to 8 bit.

    Five scales, each the means of 2 x 2 px of the one before, with the weights of the source; window, constants and border as of `ssim`.
    Each scale is averaged over pixels and channels; one whose structure is opposite counts as 0.
    restored, clean: b c h w on the scale [0, 1], clipped to it.
    Raises ValueError if the shapes differ or a side is shorter than 176 px, whose coarsest scale just fits the window.
    Source: Wang, Simoncelli, Bovik, 37th Asilomar Conf. Signals, Systems, Computers (2003) 1398-1402, eq. 7.
    """
    x, y = _levels(restored, clean)
    smallest = _WINDOW_PX * 2 ** (len(_SCALES) - 1)
    if min(x.shape[-2:]) < smallest:
        raise ValueError(
            f"images of {tuple(x.shape[-2:])} px are too small for the five scales of MS-SSIM; expected sides of at least {smallest} px; "
            "use larger crops, or ssim"
        )
    product = x.new_ones(len(x))
    for index, weight in enumerate(_SCALES):
        if index > 0:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        luminance, structure = _similarities(x, y)
        coarsest = index == len(_SCALES) - 1
        similarity = luminance * structure if coarsest else structure
        product = product * similarity.flatten(1).mean(dim=1).clamp(min=0) ** weight
    return product


def _similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and structure terms around each pixel whose window fits, of 8-bit levels b c h w."""
    # moments about a level in the middle of the images: about zero, single precision would lose small variances
    middle = ((x + y) / 2).mean(dim=(-2, -1), keepdim=True)
    x, y = x - middle, y - middle
    mean_x, mean_y, xx, yy, xy = (_local_mean(moment) for moment in (x, y, x * x, y * y, x * y))
    variances, covariance = xx - mean_x**2 + yy - mean_y**2, xy - mean_x * mean_y
    mean_x, mean_y = mean_x + middle, mean_y + middle
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)


def _levels(restored: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Both images as 8-bit levels 0..255 in float32."""
    if restored.ndim != 4 or restored.shape != clean.shape:
        raise ValueError(f"restored and clean must both be b c h w of one shape; got {tuple(restored.shape)} and {tuple(clean.shape)}")
    x, y = ((image.detach().float().clamp(0, 1) * _PEAK).round() for image in (restored, clean))
    return x, y


def _local_mean(image: Tensor) -> Tensor:
    """Gaussian-weighted mean around each pixel whose window fits, b c h-10 w-10."""
    offset = torch.arange(_WINDOW_PX, dtype=torch.float64) - _WINDOW_PX // 2
    weight = torch.exp(-0.5 * (offset / _SIGMA_PX) ** 2)
    weights = (weight / weight.sum()).tolist()
    # shifted sums: on a CPU several times faster than a convolution of single channels
    for axis in (-1, -2):
        windows = image.unfold(axis, _WINDOW_PX, 1)
        image = windows[..., 0] * weights[0]
        for index in range(1, _WINDOW_PX):
            image = torch.add(image, windows[..., index], alpha=weights[index])
    return image
