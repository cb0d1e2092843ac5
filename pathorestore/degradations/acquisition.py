"""What a camera and a file format do to an image, each as one small function.

`light` is linear in [0, 1], `image` is sRGB in [0, 1]; both are b c h w. Where a function draws, it takes a CPU generator.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pathorestore.functional.color import luminance
from pathorestore.image import from_uint8, to_uint8


def quantise(image: Tensor, *, levels: int = 256) -> Tensor:
    """Clip to [0, 1] and round to the nearest of `levels` equally spaced values (256 is 8 bit)."""
    return (image.clamp(0, 1) * (levels - 1)).round() / (levels - 1)


def shot_noise(light: Tensor, *, photons: float, generator: torch.Generator) -> Tensor:
    """Add photon noise of variance light / photons, `photons` being the count that a pixel of intensity 1 collects (Gaussian limit)."""
    noise = torch.randn(light.shape, generator=generator, dtype=light.dtype).to(light.device)
    return light + noise * (light.clamp(min=0) / photons).sqrt()


def read_noise(light: Tensor, *, deviation: float, generator: torch.Generator) -> Tensor:
    """Add signal-independent Gaussian noise of standard deviation `deviation`, on the scale of the light."""
    return light + deviation * torch.randn(light.shape, generator=generator, dtype=light.dtype).to(light.device)


def white_balance(light: Tensor, *, gains: tuple[float, float, float]) -> Tensor:
    """Multiply the R, G and B channels by `gains`."""
    return light * torch.tensor(gains, dtype=light.dtype, device=light.device)[:, None, None]


def gamma(image: Tensor, *, exponent: float) -> Tensor:
    """Raise the values, clipped to [0, 1], to `exponent`; below 1 brightens."""
    return image.clamp(0, 1) ** exponent


def glare(light: Tensor, *, share: float) -> Tensor:
    """Replace a share in [0, 1] of the light by its mean over the image: the veil that scattered light lays over a field."""
    return torch.lerp(light, light.mean((-2, -1), keepdim=True), share)


def desaturate(light: Tensor, *, share: float) -> Tensor:
    """Mix a share in [0, 1] of the luminance into every channel."""
    return torch.lerp(light, luminance(light).expand_as(light), share)


def _bayer_mask(height_px: int, width_px: int, phase: int) -> Tensor:
    """Which pixels of an RGGB mosaic see R, G, B: 3 h w; phase 0..3 shifts the mosaic by (phase // 2, phase % 2) pixels."""
    rows = (torch.arange(height_px) + phase // 2) % 2
    columns = (torch.arange(width_px) + phase % 2) % 2
    red = (rows[:, None] == 0) & (columns == 0)
    blue = (rows[:, None] == 1) & (columns == 1)
    return torch.stack([red, ~(red | blue), blue]).float()


def demosaic(light: Tensor, *, phase: int) -> Tensor:
    """Sample the channels b 3 h w through an RGGB colour filter array and interpolate bilinearly what it hides.

    Every pixel keeps the channel that the array sees; `phase` in 0..3 says which corner the red filter sits in.
    """
    height, width = light.shape[-2:]
    mask = _bayer_mask(height, width, phase).to(light)
    tent = torch.tensor([0.25, 0.5, 0.25], dtype=light.dtype, device=light.device)
    kernel = (tent[:, None] * tent).expand(3, 1, 3, 3)
    # normalised convolution: the weights of hidden neighbours drop out, also at the border
    weight = F.conv2d(mask[None], kernel, padding=1, groups=3)
    filled = F.conv2d(light * mask, kernel, padding=1, groups=3) / weight
    return torch.where(mask.bool(), light, filled)


def gaussian_blur(image: Tensor, *, sigma_px: float) -> Tensor:
    """Separable Gaussian blur with replicated borders, cut at three standard deviations."""
    half = max(1, round(3 * sigma_px))
    position = torch.arange(-half, half + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(position**2) / (2 * sigma_px**2))
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, -1)
    padded = F.pad(image, (half, half, half, half), mode="replicate")
    across = F.conv2d(padded, kernel, groups=image.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), groups=image.shape[1])


def motion_blur(light: Tensor, *, length_px: float, angle: float) -> Tensor:
    """Smear the light along a straight line of the given length, at `angle` radians from the x axis (stage moving during exposure)."""
    height, width = light.shape[-2:]
    rows = torch.fft.fftfreq(height, device=light.device)[:, None]
    columns = torch.fft.rfftfreq(width, device=light.device)
    along = columns * math.cos(angle) + rows * math.sin(angle)
    smeared: Tensor = torch.fft.irfft2(torch.fft.rfft2(light) * torch.sinc(length_px * along), s=(height, width))
    return smeared


def unsharp(image: Tensor, *, amount: float, sigma_px: float) -> Tensor:
    """Add `amount` times the difference from a Gaussian blur: the sharpening that slide scanners apply."""
    return torch.lerp(gaussian_blur(image, sigma_px=sigma_px), image, 1 + amount)


def compress(image: Tensor, *, quality: int, codec: str = "jpeg") -> Tensor:
    """Encode each image to a file in memory and decode it: `jpeg` with 4:2:0 chroma subsampling, or `webp`; quality 1..100.

    Raises ValueError for another codec or quality.
    """
    import cv2

    if codec not in ("jpeg", "webp") or not 1 <= quality <= 100:
        raise ValueError(f"codec={codec!r} with quality={quality} is unknown; expected 'jpeg' or 'webp' with quality 1 to 100")
    options = {
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
    }
    decoded = []
    for one in image:
        _, data = cv2.imencode(f".{codec}", to_uint8(one)[..., ::-1], options[codec])
        pixels = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
        decoded.append(from_uint8(pixels[..., ::-1]))
    return torch.cat(decoded).to(image)
