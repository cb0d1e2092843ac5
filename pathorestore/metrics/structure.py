"""How well a restored image keeps the structure of the clean one: gradients, edges and the power at each spatial frequency.

All three look at the grey image, 0.299 R + 0.587 G + 0.114 B of the values as stored, both images rounded to 8 bit as PSNR and SSIM do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_PEAK = 255.0
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
_GMSD_T = 170.0  # Xue et al. 2014, sec. III-B, for grey levels 0..255
_ROUNDING = 1 / 12  # variance of the error of rounding to whole grey levels
_SMALLEST_SPECTRUM_PX = 8


def gmsd(restored: Tensor, clean: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation of each image, b: 0 for equal images, larger for worse ones.

    Grey levels 0..255, averaged over 2 x 2 px and halved, Prewitt gradients divided by 3 with zeros beyond the border, T = 170; the
    population standard deviation of the similarity map. restored, clean: b 3 h w on the scale [0, 1], clipped to it; NaN gives NaN.
    Raises ValueError if the shapes differ. Source: Xue, Zhang, Mou, Bovik, IEEE Trans. Image Process. 23 (2014) 684-695, eqs. 1-6.
    """
    first, second = (_gradient_magnitude(_halved(grey)) for grey in _grey_levels(restored, clean))
    similarity = (2 * first * second + _GMSD_T) / (first.square() + second.square() + _GMSD_T)
    return similarity.flatten(1).std(dim=1, correction=0).float()


def edge_preservation(restored: Tensor, clean: Tensor) -> Tensor:
    """Edge preservation index of each image in [-1, 1], b: the correlation of the Laplacians of both grey images; 1 for equal images.

    Laplacian of the four nearest neighbours, inside the border of 1 px. Brightness and contrast of the whole image do not matter, where
    edges lie and how they compare with each other does. NaN where the clean image has no edges to keep: it is undefined there. 0 where
    the restored image alone has none. restored, clean: b 3 h w on the scale [0, 1], clipped to it.
    Raises ValueError if the shapes differ, a side is shorter than 3 px or a value is not finite.
    Source: Sattar, Floreby, Salomonsson, Lovstrom, IEEE Trans. Image Process. 6 (1997) 888-895, sec. IV.
    """
    if not (restored.isfinite().all() and clean.isfinite().all()):
        raise ValueError("restored or clean holds NaN or infinite values, which have no edges; expected finite values in [0, 1]")
    first, second = (_laplacian(grey) for grey in _grey_levels(restored, clean))
    products = (first * second).sum(dim=1)
    power, clean_power = first.square().sum(dim=1), second.square().sum(dim=1)
    correlation = products / (power * clean_power).sqrt()
    correlation = torch.where(power > 0, correlation, torch.zeros_like(power))
    return torch.where(clean_power > 0, correlation, torch.full_like(power, torch.nan)).clamp(-1, 1).float()


def power_spectrum_distance(restored: Tensor, clean: Tensor) -> Tensor:
    """Root mean square difference in dB of the radial power spectra of both images, b: 0 for equal spectra, larger for worse ones.

    Blur lowers the high frequencies and invented texture or noise raises them; shifts hardly matter. The mean grey level is taken away
    under a Hann window, the power averaged over rings of spatial frequency k/n cycles per px with n the shorter side, and the squares of
    the differences in dB over the rings k = 1..n//2, from just above zero to Nyquist, each ring counting the same. Power below what
    rounding to 8 bit adds is taken as that, so flat images are defined and nothing is made of detail that no file could hold.
    restored, clean: b 3 h w on the scale [0, 1], clipped to it; NaN gives NaN. Raises ValueError if the shapes differ or a side is
    shorter than 8 px.
    Source: ours; the radial spectrum is that of van der Schaaf & van Hateren, Vision Research 36 (1996) 2759-2770.
    """
    first, second = (_radial_spectrum_db(grey) for grey in _grey_levels(restored, clean))
    return (first - second).square().mean(dim=1).sqrt().float()


def _grey_levels(restored: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Both images as grey levels b h w, 0..255, in double precision; a flat image gives one level throughout."""
    if restored.ndim != 4 or restored.shape[1] != 3 or restored.shape != clean.shape:
        raise ValueError(f"restored and clean must both be b 3 h w of one shape; got {tuple(restored.shape)} and {tuple(clean.shape)}")
    red, green, blue = _GREY
    levels = ((image.detach().double().clamp(0, 1) * _PEAK).round().unbind(1) for image in (restored, clean))
    x, y = (red * r + green * g + blue * b for r, g, b in levels)
    return x, y


def _halved(grey: Tensor) -> Tensor:
    """Means of 2 x 2 px, b h/2 w/2; an odd side is completed by zeros, as the source's own averaging does."""
    height, width = grey.shape[-2:]
    return F.avg_pool2d(F.pad(grey, (0, width % 2, 0, height % 2)), 2)


def _gradient_magnitude(grey: Tensor) -> Tensor:
    """Length of the Prewitt gradient of b h w, with zeros beyond the border."""
    padded = F.pad(grey, (1, 1, 1, 1))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    columns = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
    return torch.hypot((rows[..., 2:] - rows[..., :-2]) / 3, (columns[:, 2:] - columns[:, :-2]) / 3)


def _laplacian(grey: Tensor) -> Tensor:
    """The Laplacian inside the border less its mean, b n. Whole thousandths of grey levels keep it exact, so a flat image gives zeros."""
    if min(grey.shape[-2:]) < 3:
        raise ValueError(f"images of {tuple(grey.shape[-2:])} px have no pixel inside their border; expected sides of at least 3 px")
    whole = (grey * 1000).round()
    around = whole[:, :-2, 1:-1] + whole[:, 2:, 1:-1] + whole[:, 1:-1, :-2] + whole[:, 1:-1, 2:]
    edges = (around - 4 * whole[:, 1:-1, 1:-1]).flatten(1)
    return edges - edges.mean(dim=1, keepdim=True)


def _radial_spectrum_db(grey: Tensor) -> Tensor:
    """Mean power of each ring of spatial frequency in dB, b n//2, of b h w."""
    height, width = grey.shape[-2:]
    rings = min(height, width) // 2
    if rings < _SMALLEST_SPECTRUM_PX // 2:
        raise ValueError(f"images of {height} x {width} px are too small; expected sides of at least {_SMALLEST_SPECTRUM_PX} px")
    down, across = (torch.hann_window(side, periodic=False, dtype=grey.dtype, device=grey.device) for side in (height, width))
    window = down[:, None] * across
    # the mean under the window: otherwise it would leak into the first rings
    mean = (grey * window).sum(dim=(-2, -1), keepdim=True) / window.sum()
    power = torch.fft.fft2((grey - mean) * window).abs().square().flatten(1)
    frequency = torch.hypot(torch.fft.fftfreq(height, dtype=grey.dtype)[:, None], torch.fft.fftfreq(width, dtype=grey.dtype))
    ring = (frequency * min(height, width)).round().long().clamp(max=rings + 1).flatten().to(grey.device)
    totals = power.new_zeros(len(power), rings + 2).index_add_(1, ring, power)
    means = totals / torch.bincount(ring, minlength=rings + 2)
    return 10 * means[:, 1 : rings + 1].clamp(min=_ROUNDING * float(window.square().sum())).log10()
