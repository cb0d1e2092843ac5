"""Tiles: where they lie, how they are weighted, and how their results become one image.

Weights are integers that sum to one whole at every pixel, and sums are 64-bit integers. Integer addition does not care about order, so the
blended image is the same bit pattern whatever the order, the batch size or the number of workers.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

_WHOLE = 1 << 10  # one along each axis of a plan, so that a pixel's weights sum to 2^20
_FRACTION_BITS = 31  # of a value: every k/255 in float32 is a multiple of 2^-31, so 8-bit images pass unchanged


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis: starts in px, and integer weights (tiles, tile_px) that sum to `whole` at every covered pixel."""

    length_px: int
    tile_px: int
    overlap_px: int
    halo_px: int = 0
    whole: int = _WHOLE

    @cached_property
    def starts_px(self) -> tuple[int, ...]:
        """Tile starts: a fixed stride, the last one moved back so that it ends with the image."""
        stride = self.tile_px - self.overlap_px
        count = 1 + max(0, math.ceil((self.length_px - self.tile_px) / stride))
        return tuple(min(index * stride, self.length_px - self.tile_px) for index in range(count))

    @cached_property
    def weights(self) -> Tensor:
        """Raised cosine over each overlap less its halos, rounded so that the partition of unity is exact; int64 (tiles, tile_px)."""
        raw = torch.ones(len(self.starts_px), self.tile_px, dtype=torch.float64)
        for index, (start, after) in enumerate(zip(self.starts_px, self.starts_px[1:], strict=False)):
            overlap = start + self.tile_px - after
            if overlap > 0:
                inner = overlap - 2 * self.halo_px
                ramp = torch.sin(torch.pi / 2 * (torch.arange(inner, dtype=torch.float64) + 0.5) / inner) ** 2
                ramp = F.pad(F.pad(ramp, (self.halo_px, 0), value=0.0), (0, self.halo_px), value=1.0)
                raw[index + 1, :overlap] *= ramp
                raw[index, self.tile_px - overlap :] *= 1 - ramp
        # a clamped last tile can overlap more than its neighbour: normalise, then round the running sum so that the roundings cancel
        return torch.stack([self._exact(raw, index) for index in range(len(self.starts_px))])

    def _exact(self, raw: Tensor, index: int) -> Tensor:
        """Integer weights of one tile: its share of the raw weights, of which no more than two tiles on either side have any there."""
        start, before, total = self.starts_px[index], torch.zeros(self.tile_px, dtype=torch.float64), torch.zeros(self.tile_px).double()
        for other in range(max(0, index - 2), min(len(self.starts_px), index + 3)):
            offset = self.starts_px[other] - start
            if abs(offset) < self.tile_px:
                here = slice(max(0, offset), self.tile_px + min(0, offset))
                there = slice(max(0, -offset), self.tile_px - max(0, offset))
                total[here] += raw[other, there]
                before[here] += raw[other, there] if other < index else 0.0
        edges = torch.stack([before, before + raw[index]]) / total
        return torch.diff(edges.mul(self.whole).round().long(), dim=0)[0]


@dataclass(frozen=True)
class TilePlan:
    """Square tiles over an image of height_px x width_px, each exactly tile_px on a side; the image must be at least one tile large.

    halo_px: rim of a tile, where it meets others, that has no weight at all: a network that looks no further than that gives the same
    result in tiles as on the whole image. Raises ValueError if the overlap leaves no stride, a third tile would reach into it, or halos
    fill it.
    """

    height_px: int
    width_px: int
    tile_px: int
    overlap_px: int
    halo_px: int = 0

    def __post_init__(self) -> None:
        if self.halo_px < 0 or 2 * self.halo_px > self.overlap_px:
            raise ValueError(
                f"halo_px={self.halo_px} on both sides does not fit overlap_px={self.overlap_px}; overlap at least twice as far"
            )
        if not 0 <= self.overlap_px <= self.tile_px // 2:
            raise ValueError(f"overlap_px={self.overlap_px} must be between 0 and half of tile_px={self.tile_px}; try {self.tile_px // 8}")
        if min(self.height_px, self.width_px) < self.tile_px:
            raise ValueError(f"an image of {self.height_px} x {self.width_px} px is smaller than tile_px={self.tile_px}; pad it first")

    @cached_property
    def rows(self) -> Axis:
        """The vertical axis."""
        return Axis(self.height_px, self.tile_px, self.overlap_px, self.halo_px)

    @cached_property
    def columns(self) -> Axis:
        """The horizontal axis."""
        return Axis(self.width_px, self.tile_px, self.overlap_px, self.halo_px)

    @cached_property
    def origins_px(self) -> tuple[tuple[int, int], ...]:
        """(y, x) of every tile's top-left corner, row by row."""
        return tuple((y, x) for y in self.rows.starts_px for x in self.columns.starts_px)

    def __len__(self) -> int:
        return len(self.rows.starts_px) * len(self.columns.starts_px)

    def weight(self, index: int) -> Tensor:
        """Integer weights tile_px x tile_px of a tile; over all tiles they sum to 2^20 at every pixel."""
        row, column = divmod(index, len(self.columns.starts_px))
        return self.rows.weights[row][:, None] * self.columns.weights[column][None, :]

    def cut(self, image: Tensor, index: int) -> Tensor:
        """A view of tile `index` of an image b c h w."""
        y, x = self.origins_px[index]
        return image[..., y : y + self.tile_px, x : x + self.tile_px]


class Accumulator:
    """Sums weighted tiles b c h w in 64-bit fixed point; `image` is the blend once all are added. Values must stay within +-1024."""

    def __init__(self, plan: TilePlan, *, batch: int, channels: int):
        self.plan = plan
        self._sum = torch.zeros(batch, channels, plan.height_px, plan.width_px, dtype=torch.int64)

    def add(self, index: int, tile: Tensor) -> None:
        """Add the result of tile `index`, b c tile_px tile_px. Raises ValueError if it is not finite or of another size."""
        if tile.shape[-2:] != (self.plan.tile_px, self.plan.tile_px):
            raise ValueError(f"tile {index} is {tuple(tile.shape[-2:])} px; the plan's tiles are {self.plan.tile_px} px on a side")
        if not bool(torch.isfinite(tile).all()):
            raise ValueError(f"tile {index} at {self.plan.origins_px[index]} holds NaN or infinite values; try precision fp32")
        fixed = torch.round(tile.detach().cpu().double() * (1 << _FRACTION_BITS)).long()
        self.plan.cut(self._sum, index).add_(fixed * self.plan.weight(index))

    def image(self) -> Tensor:
        """The blended image, b c h w float32."""
        return (self._sum.double() / float(_WHOLE * _WHOLE << _FRACTION_BITS)).float()
