"""Colour spaces of bright-field images, as pure functions on float tensors b 3 h w."""

import math

import torch
from torch import Tensor

# ITU-R BT.709 luminance of linear sRGB
_LUMINANCE = (0.2126, 0.7152, 0.0722)
# linear sRGB -> CIE XYZ (D65), IEC 61966-2-1
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.950456, 1.0, 1.088754)
# Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23 (2001) 291-299: optical densities of haematoxylin, eosin, DAB in R, G, B
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


def _mix(image: Tensor, rows: tuple[tuple[float, ...], ...] | Tensor) -> Tensor:
    """Multiply the channel axis of b c h w by a matrix given row by row."""
    matrix = torch.as_tensor(rows, dtype=image.dtype, device=image.device)
    return torch.einsum("dc,bchw->bdhw", matrix, image)


def srgb_to_linear(image: Tensor) -> Tensor:
    """Linear light from sRGB values in [0, 1] (piecewise, IEC 61966-2-1)."""
    return torch.where(image <= 0.04045, image / 12.92, ((image.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: Tensor) -> Tensor:
    """SRGB values from linear light in [0, 1] (piecewise, IEC 61966-2-1)."""
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def luminance(light: Tensor) -> Tensor:
    """Luminance b 1 h w of linear light b 3 h w (ITU-R BT.709 weights)."""
    return _mix(light, (_LUMINANCE,))


def rgb_to_lab8(image: Tensor) -> Tensor:
    """CIE L*a*b* of sRGB in [0, 1], scaled as OpenCV scales 8-bit images: L 255/100, a + 128, b + 128; not rounded, not clipped."""
    white = torch.tensor(_WHITE, dtype=image.dtype, device=image.device)[:, None, None]
    xyz = _mix(srgb_to_linear(image), _XYZ) / white
    cube = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = cube.unbind(1)
    return torch.stack([(116 * y - 16) * (255 / 100), 500 * (x - y) + 128, 200 * (y - z) + 128], 1)


def lab8_to_rgb(lab: Tensor) -> Tensor:
    """Inverse of `rgb_to_lab8`; colours outside the sRGB gamut are clipped to [0, 1]."""
    lightness, a, b = lab.unbind(1)
    y = (lightness * (100 / 255) + 16) / 116
    cube = torch.stack([y + (a - 128) / 500, y, y - (b - 128) / 200], 1)
    white = torch.tensor(_WHITE, dtype=lab.dtype, device=lab.device)[:, None, None]
    threshold = 7.787 * 0.008856 + 16 / 116
    xyz = torch.where(cube > threshold, cube**3, (cube - 16 / 116) / 7.787) * white
    inverse = torch.linalg.inv(torch.tensor(_XYZ, dtype=torch.float64))
    return linear_to_srgb(_mix(xyz, inverse.to(lab)).clamp(0, 1))


def optical_density(image: Tensor) -> Tensor:
    """Optical density -log10 of the given intensities, those below 1e-6 taken as 1e-6 (Beer-Lambert)."""
    return -image.clamp(min=1e-6).log10()


def rgb_to_hed(image: Tensor) -> Tensor:
    """Amounts of haematoxylin, eosin and DAB, b 3 h w, in an RGB image in [0, 1]; negative amounts become 0.

    Densities are on the scale log(image) / log(1e-6), so a pixel of intensity 1e-6 has density 1. The image is used as stored (no
    linearisation), as in the source: Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23 (2001) 291-299.
    """
    density = image.clamp(min=1e-6).log() / math.log(1e-6)
    inverse = torch.linalg.inv(torch.tensor(_STAINS, dtype=torch.float64))
    return _mix(density, inverse.T.to(image)).clamp(min=0)


def hed_to_rgb(stains: Tensor) -> Tensor:
    """RGB image in [0, 1] of given amounts of haematoxylin, eosin and DAB: the inverse of `rgb_to_hed` where no amount was clipped."""
    return dyed(stains, _STAINS)


def dyed(amounts: Tensor, dyes: tuple[tuple[float, ...], ...]) -> Tensor:
    """RGB image in [0, 1] of amounts b n h w, on the scale of `rgb_to_hed`, of n dyes with the given densities in R, G, B."""
    matrix = torch.tensor(dyes, dtype=torch.float64).T.to(amounts)
    return (math.log(1e-6) * _mix(amounts, matrix)).exp().clamp(0, 1)
