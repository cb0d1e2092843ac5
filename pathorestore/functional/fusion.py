"""Multi-focus fusion: one all-in-focus image, a depth map and a confidence out of the planes of a focal stack.

Each plane is weighted, pixel by pixel, by how much fine detail it shows there. The method, its measured figures and its limits are told in
docs/fusion.md.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pathorestore.functional.color import luminance, srgb_to_linear
from pathorestore.functional.drift import shifted, stack_drift

_CELL_PX = 4  # focus is judged on cells of this side; windows of `near_px` see nothing finer
_WIDE_CELLS = 4
_REACH = 3.0  # standard deviations after which a Gaussian is cut off
_LEAST_ENERGY = 1e-9  # squared linear luminance: a ripple of 0.01 grey levels, which no file holds


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How a stack is fused; the defaults are the best of a search on simulated stacks, see docs/fusion.md.

    band_px: standard deviations of the two Gaussians whose difference passes the detail that is measured. near_px, wide_px: standard
    deviations of the windows over which its energy is gathered; the wide one speaks where the near one sees nothing. wide_share: weight of
    the wide window. selectivity: exponent on the energy; 1 blends over many planes, large values take the sharpest alone. noise_margin: how
    far, in noise energies, a plane must stand out. align: undo the lateral drift of the planes first.
    Raises ValueError for numbers that make no filter.
    """

    band_px: tuple[float, float] = (0.5, 1.5)
    near_px: float = 4.0
    wide_px: float = 16.0
    wide_share: float = 1.0
    selectivity: float = 4.0
    noise_margin: float = 0.5
    align: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.band_px[0] < self.band_px[1] <= 4:
            raise ValueError(f"band_px={self.band_px} must be two rising widths in px above 0, at most 4, such as (0.5, 1.5)")
        if not 0 < self.near_px <= self.wide_px:
            raise ValueError(f"near_px={self.near_px} and wide_px={self.wide_px} must be positive and the near window the smaller one")
        if not (self.selectivity > 0 and 0 < self.noise_margin <= 1 and self.wide_share >= 0):
            raise ValueError(
                f"selectivity={self.selectivity} must be positive, noise_margin={self.noise_margin} in (0, 1], "
                f"wide_share={self.wide_share} not negative"
            )

    @property
    def halo_px(self) -> int:
        """How far, in px, a pixel of the result looks; a multiple of 16. Crops on this grid fuse, inside the halo, like the whole."""
        wide = _CELL_PX * _WIDE_CELLS
        reach = _radius(self.band_px[1]) + max(_CELL_PX * _radius(self.near_px / _CELL_PX), wide * _radius(self.wide_px / wide)) + 2 * wide
        return wide * math.ceil(reach / wide)


class Fused(NamedTuple):
    """image: 1 3 h w in [0, 1]. depth_index: 1 1 h w, which plane was in focus, between planes too. confidence: 1 1 h w in [0, 1]."""

    image: Tensor
    depth_index: Tensor
    confidence: Tensor


def fuse_stack(planes: Tensor, config: FusionConfig | None = None) -> Fused:
    """Fuse the planes n 3 h w (sRGB in [0, 1], in the order of their focus positions) of one field.

    Only one plane at a time is held in other forms, so memory is the planes and about five more. One plane comes back bit for bit.
    Raises ValueError unless there is a plane, with three channels.
    """
    config = config or FusionConfig()
    if planes.ndim != 4 or planes.shape[1] != 3 or 0 in planes.shape:
        raise ValueError(f"planes have shape {tuple(planes.shape)}; expected (planes, 3, height, width) with at least one plane")
    height, width = planes.shape[-2:]
    if config.align and len(planes) > 1:
        planes = shifted(planes, -stack_drift(planes))
    gathered = _gathered(planes, config)
    weights = _weights(gathered, config)
    image = planes[:1].clone()
    for plane, weight in zip(planes[1:], weights[1:], strict=True):
        # differences, so that where planes agree the result is theirs to the last bit
        image += (plane - planes[0]) * _to_pixels(weight[None], height, width)
    confidence = 1 - gathered.amin(0, keepdim=True) / gathered.amax(0, keepdim=True)
    depth = torch.lerp(_mean_index(weights), _peak_index(gathered), confidence)
    return Fused(image.clamp_(0, 1), _to_pixels(depth, height, width), _to_pixels(confidence, height, width))


def cell_weights(planes: Tensor, config: FusionConfig) -> Tensor:
    """The weights n 1 a b that `fuse_stack` gives the planes n 3 h w in cells of 4 px; they sum to 1 in each cell."""
    return _weights(_gathered(planes, config), config)


def _radius(sigma: float) -> int:
    return max(1, math.ceil(_REACH * sigma))


def _smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of maps n 1 h w with replicated borders; sums of shifted maps, which beat a convolution of one channel on CPUs."""
    radius = _radius(sigma)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    for axis in (-2, -1):
        length = maps.shape[axis]
        padded = F.pad(maps, (radius, radius, 0, 0) if axis == -1 else (0, 0, radius, radius), mode="replicate")
        maps = torch.zeros_like(maps)
        for at, tap in enumerate((taps / taps.sum()).tolist()):
            maps.add_(padded.narrow(axis, at, length), alpha=tap)
    return maps


def _pooled(maps: Tensor, side: int) -> Tensor:
    """Mean over cells; the last row and column are repeated to fill the last cell."""
    height, width = maps.shape[-2:]
    return F.avg_pool2d(F.pad(maps, (0, -width % side, 0, -height % side), mode="replicate"), side)


def _cell_energy(plane: Tensor, config: FusionConfig) -> Tensor:
    """Energy of the detail of a plane 1 3 h w in linear luminance, one value for each cell."""
    light = luminance(srgb_to_linear(plane.float()))
    detail = _smooth(light, config.band_px[0]) - _smooth(light, config.band_px[1])
    return _pooled(detail.square_(), _CELL_PX)


def _gathered(planes: Tensor, config: FusionConfig) -> Tensor:
    """Energy n 1 a b of the planes' detail in cells, gathered over the near and the wide window."""
    energy = torch.stack([_cell_energy(plane[None], config)[0] for plane in planes])
    near = _smooth(energy, config.near_px / _CELL_PX)
    wide = _smooth(_pooled(energy, _WIDE_CELLS), config.wide_px / (_CELL_PX * _WIDE_CELLS))
    wide = F.interpolate(wide, scale_factor=_WIDE_CELLS, mode="bilinear", align_corners=False)
    return near + config.wide_share * wide[..., : energy.shape[-2], : energy.shape[-1]] + _LEAST_ENERGY


def _weights(gathered: Tensor, config: FusionConfig) -> Tensor:
    """Weights n 1 a b of the planes in each cell, which sum to 1.

    What the dullest plane shows is taken for noise, and for detail that no plane distinguishes, and subtracted but for a margin: where
    nothing stands out from it, all planes weigh the same.
    """
    floor = gathered.amin(0, keepdim=True)
    evidence = gathered - (1 - config.noise_margin) * floor
    power = (evidence / evidence.amax(0, keepdim=True)) ** config.selectivity
    return power / power.sum(0, keepdim=True)


def _mean_index(weights: Tensor) -> Tensor:
    """The weighted mean of the planes' numbers, 1 1 a b."""
    return (weights * torch.arange(len(weights), device=weights.device)[:, None, None, None]).sum(0, keepdim=True)


def _peak_index(gathered: Tensor) -> Tensor:
    """Where the energy peaks, 1 1 a b in planes: the vertex of a parabola through the logarithms around the best plane."""
    last = len(gathered) - 1
    best = gathered.argmax(0, keepdim=True)
    if last < 2:
        return best.to(gathered)
    inner = best.clamp(1, last - 1)
    before, at, after = (gathered.gather(0, inner + step).log() for step in (-1, 0, 1))
    vertex = 0.5 * (before - after) / (before - 2 * at + after).clamp(max=-1e-6)
    return (inner + vertex.clamp(-1, 1)).clamp(0, last)


def _to_pixels(cells: Tensor, height: int, width: int) -> Tensor:
    """Maps of cells, interpolated between the centres of the cells, at the pixels."""
    return F.interpolate(cells, scale_factor=_CELL_PX, mode="bilinear", align_corners=False)[..., :height, :width]
