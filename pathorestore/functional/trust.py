"""What an image restored from a blurred one can be asked: does it explain the blurred one, and how much of it was never in there.

All results are energies b 1 h w, squares averaged over the colours, so that they can be added, blended and smoothed; the root of a smoothed
energy is an amplitude on the scale of the values. Light is linear, a transfer function is real, b c h w//2+1, for the image with its rim on
every side.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pathorestore.functional.color import srgb_to_linear
from pathorestore.functional.optics import blur


class Signals(NamedTuple):
    """What speaks against each pixel of a restored image, each b 1 h w, at least 0, as root mean squares over a window.

    spread: standard deviation over seeds, in grey levels (0 to 255); zero where nothing is drawn. residual: what the output, blurred
    again, leaves unexplained of the input, in 255ths of full linear light. beyond_cutoff: what the output shows in the frequencies that the
    blur hid, in 255ths of full linear light. change: how far the output went from the input, in grey levels. structure: slope of the
    output, in grey levels per px. defocus_um: estimated distance from focus, without sign.
    """

    spread: Tensor
    residual: Tensor
    beyond_cutoff: Tensor
    change: Tensor
    structure: Tensor
    defocus_um: Tensor


def blur_residual(restored: Tensor, degraded: Tensor, response: Tensor, *, rim_px: int) -> Tensor:
    """Squared difference b 1 h w, in linear light, between the restored image blurred again and the degraded one.

    restored, degraded: sRGB b 3 h w in [0, 1]. response: transfer function of the blur for h + 2 rim_px by w + 2 rim_px. What a restored
    image invents in frequencies that the blur still passes shows here; what it invents beyond them does not, see `hidden_energy`.
    Raises ValueError if the response is of another size.
    """
    again = _filtered(restored, response, rim_px)
    return (again - srgb_to_linear(degraded)).square().mean(1, keepdim=True)


def hidden_energy(restored: Tensor, response: Tensor, *, rim_px: int, contrast: float) -> Tensor:
    """Energy b 1 h w, in linear light, of what the blur hides: the frequencies that it passes with less than `contrast`.

    A frequency of which the blur leaves the share H in [-1, 1] counts with the weight 1 - |H| / contrast, not at all where |H| >= contrast:
    below that the degraded image held noise, and what the restored image shows was supplied. With a large blur this begins far below the
    objective's cut-off 2 NA / wavelength, which at a fine pixel may lie beyond the grid. Raises ValueError as `blur_residual`, or if
    contrast is not in (0, 1).
    """
    if not 0 < contrast < 1:
        raise ValueError(f"contrast={contrast} must lie in (0, 1); 0.1 calls hidden what is passed with less than a tenth of its contrast")
    return _filtered(restored, hidden_share(response, contrast=contrast), rim_px).square().mean(1, keepdim=True)


def hidden_share(response: Tensor, *, contrast: float) -> Tensor:
    """Weight in [0, 1] of each frequency in `hidden_energy`: 1 where the transfer function is zero, 0 where |H| >= contrast."""
    return (1 - response.abs() / contrast).clamp(min=0)


def sample_variance(samples: Tensor) -> Tensor:
    """Unbiased variance 1 1 h w over n >= 2 samples n 3 h w of one restored image, averaged over the colours.

    Raises ValueError for fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} samples have no spread; expected at least 2")
    return samples.var(dim=0, keepdim=True).mean(1, keepdim=True)


def structure_energy(image: Tensor) -> Tensor:
    """Squared gradient per pixel b 1 h w of values b c h w, from central differences, borders replicated, averaged over the colours."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return (across.square() + down.square()).mean(1, keepdim=True)


def with_rim(image: Tensor, rim_px: int) -> Tensor:
    """The image b c h w amid a rim of mirrored pixels; replicated where reflection cannot reach, beyond the side minus one."""
    height, width = image.shape[-2:]
    rows, columns = min(rim_px, height - 1), min(rim_px, width - 1)
    if rows or columns:
        image = F.pad(image, (columns, columns, rows, rows), mode="reflect")
    rest = (rim_px - columns, rim_px - columns, rim_px - rows, rim_px - rows)
    return F.pad(image, rest, mode="replicate") if any(rest) else image


def _filtered(image: Tensor, response: Tensor, rim_px: int) -> Tensor:
    """The linear light of an sRGB image through a transfer function, with mirrored surroundings."""
    height, width = image.shape[-2:]
    light = blur(with_rim(srgb_to_linear(image.clamp(0, 1)), rim_px), response)
    return light[..., rim_px : rim_px + height, rim_px : rim_px + width]


def amplitude(energy: Tensor) -> Tensor:
    """Root of an energy, on the scale of the values; roundings below zero count as zero."""
    return torch.sqrt(energy.clamp(min=0))
