"""A tissue section in depth: its height map, its absorbing layers, and how they are imaged at a focus position."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pathorestore.functional.optics import Optics, transfer

_BINS = 9
_FINEST_STEP_UM = 0.05
_FLOOR = 1e-3


def _bump_matrix(length_px: int, scale_px: float) -> Tensor:
    """Gaussian bumps, one for each step of `scale_px`, sampled at the pixels; each row has unit norm."""
    centres = (torch.arange(int(length_px / scale_px) + 4) - 1) * scale_px
    bumps = torch.exp(-0.5 * ((torch.arange(length_px)[:, None] - centres) / (0.7 * scale_px)) ** 2)
    return bumps / bumps.square().sum(1, keepdim=True).sqrt()


def smooth_fields(count: int, height_px: int, width_px: int, *, scale_px: float, generator: torch.Generator) -> Tensor:
    """Independent smooth Gaussian random fields n h w with mean 0 and variance 1 at every pixel, varying over about `scale_px`."""
    rows, columns = _bump_matrix(height_px, scale_px), _bump_matrix(width_px, scale_px)
    return rows @ torch.randn(count, rows.shape[1], columns.shape[1], generator=generator) @ columns.T


@dataclass(frozen=True)
class Slab:
    """One section: `height_um` h w of its mid plane, and layers at `layer_um` n around it that hold `shares` n h w of the absorption.

    The shares add up to 1 at every pixel, so that with every layer in focus the section looks exactly like the sharp image.
    """

    height_um: Tensor
    layer_um: Tensor
    shares: Tensor

    @classmethod
    def flat(cls, height_um: Tensor) -> "Slab":
        """One absorbing layer that follows the height map h w."""
        return cls(height_um, torch.zeros(1), torch.ones(1, *height_um.shape))


def relative_transfer(defocus_um: Tensor, optics: Optics, size_px: tuple[int, int]) -> Tensor:
    """Transfer function b c h w//2+1 from an image already taken in focus through the same optics to one out of focus, within [-1, 1].

    The quotient OTF(z) / OTF(0), tamed where the objective in focus passes next to nothing: OTF(z) OTF(0) / (OTF(0)^2 + 1e-3), clipped
    because no focus position may bring back more contrast than the picture had.
    """
    both = transfer(torch.cat([defocus_um, defocus_um.new_zeros(1)]), optics, size_px)
    focus = both[-1:]
    return (both[:-1] * focus * ((1 + _FLOOR) / (focus**2 + _FLOOR))).clamp(-1, 1)


def _depth_bins(slab: Slab) -> tuple[Tensor, Tensor]:
    """Depths k in um and the share of the absorption k h w that lies at each; triangular masks pass smoothly from one depth to the next."""
    low, high = (float(value) for value in torch.aminmax(slab.height_um))
    if high - low < _FINEST_STEP_UM:
        return slab.layer_um + (low + high) / 2, slab.shares
    depth = slab.height_um + slab.layer_um[:, None, None]
    low, high = low + slab.layer_um.min().item(), high + slab.layer_um.max().item()
    bins = min(_BINS, 2 + int((high - low) / _FINEST_STEP_UM))
    position = ((depth - low) * ((bins - 1) / (high - low))).clamp(0, bins - 1)
    lower = position.long().clamp(max=bins - 2)
    upper_part = slab.shares * (position - lower)
    masks = torch.zeros(bins, *slab.height_um.shape)
    masks.scatter_add_(0, lower, slab.shares - upper_part).scatter_add_(0, lower + 1, upper_part)
    return torch.linspace(low, high, bins), masks


def image_slab(light: Tensor, slab: Slab, focus_um: Tensor, optics: Optics, *, from_scan: bool) -> Tensor:
    """Linear light n 3 h w of a section whose sharp image is `light` 1 3 h w, focused at n positions `focus_um` (circular borders).

    A point at height h in a layer at l is out of focus by z - h - l. Absorption is imaged linearly (weak absorption): the absorptance
    1 - light is split over at most nine depths, each part is blurred with its own transfer function, and the parts add up.
    from_scan: the sharp image was itself taken through these optics in focus, so blur by the quotient of transfer functions.
    """
    size = (light.shape[-2], light.shape[-1])
    respond = relative_transfer if from_scan else transfer
    nodes, masks = _depth_bins(slab)
    parts = torch.fft.rfft2((1 - light) * masks[:, None].to(light))
    response = respond((focus_um.cpu()[:, None] - nodes).reshape(-1), optics, size).to(light.device)
    response = response.reshape(len(focus_um), len(nodes), *response.shape[1:])
    absorbed: Tensor = torch.fft.irfft2((parts * response).sum(1), s=size)
    return 1 - absorbed
