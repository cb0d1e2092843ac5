"""Rows of an image too large to hold: a window that moves down it, and tiles blended into finished rows.

Everything here is integer arithmetic, so the result is the same bytes whatever the batch size, the order of work or the row that a run was
taken up again at.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathorestore.tiling import Axis

_WEIGHT_BITS = 8
WEIGHT_WHOLE = 1 << _WEIGHT_BITS
"""One along each axis: a 16-bit value times both weights fits 32 bits."""

Pixels = NDArray[Any]
_TOP = 65535


@dataclass(frozen=True)
class Levels:
    """How values between `low` and `high` are held in 16 bits.

    Networks overshoot [0, 1], and neighbouring tiles may cancel each other's overshoot where they are blended, so 8-bit slides get room on
    both sides; their 256 levels pass unchanged all the same. 16-bit slides need all levels for themselves.
    """

    low: float
    high: float

    @classmethod
    def of(cls, bit_depth: int) -> "Levels":
        """The levels for a slide of 8 or 16 bits."""
        return cls(-0.5, 1.5) if bit_depth == 8 else cls(0.0, 1.0)

    def encode(self, image: Tensor) -> Pixels:
        """Values b 3 h w as b h w 3 uint16, clipped."""
        scaled = image.detach().float().sub(self.low).mul_(_TOP / (self.high - self.low)).clamp_(0, _TOP).round_()
        stored: Pixels = scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint16)
        return stored

    def decode(self, stored: Pixels) -> Tensor:
        """Undo `encode`."""
        values = torch.from_numpy(np.ascontiguousarray(stored).astype(np.int32)).permute(0, 3, 1, 2).contiguous().float()
        return values.mul_((self.high - self.low) / _TOP).add_(self.low)

    def from_pixels(self, pixels: Pixels) -> Pixels:
        """Pixels of a slide, uint8 or uint16, as levels."""
        levels: Pixels = _levels_of(self, pixels.dtype)[pixels]
        return levels

    def to_pixels(self, stored: Pixels, dtype: np.dtype[Any]) -> Pixels:
        """Levels as pixels of a slide, clipped and rounded."""
        pixels: Pixels = _pixels_of(self, np.dtype(dtype))[stored]
        return pixels


@functools.cache
def _levels_of(levels: Levels, dtype: np.dtype[Any]) -> Pixels:
    """The level of every value of a pixel."""
    top = np.iinfo(dtype).max
    values = np.arange(top + 1, dtype=np.float64) / top
    return np.rint((values - levels.low) / (levels.high - levels.low) * _TOP).astype(np.uint16)


@functools.cache
def _pixels_of(levels: Levels, dtype: np.dtype[Any]) -> Pixels:
    """The pixel's value of every level."""
    values = np.arange(_TOP + 1, dtype=np.float64) / _TOP * (levels.high - levels.low) + levels.low
    return np.rint(np.clip(values, 0, 1) * np.iinfo(dtype).max).astype(dtype)


class RowWindow:
    """Rows [top_px, bottom_px) of an image of `width_px` h w 3: more are appended below, those no longer needed forgotten above."""

    def __init__(self, width_px: int, start_px: int = 0):
        self.width_px = width_px
        self.top_px = self.bottom_px = start_px
        self._blocks: list[Pixels] = []

    def append(self, rows: Pixels) -> None:
        """Add rows n width 3 at the bottom."""
        if rows.shape[1] != self.width_px:
            raise ValueError(f"rows are {rows.shape[1]} px wide; expected {self.width_px}")
        if len(rows):
            self._blocks.append(rows)
            self.bottom_px += len(rows)

    def cut(self, y_px: int, x_px: int, height_px: int, width_px: int) -> Pixels:
        """A contiguous copy of a part. Raises ValueError for rows that the window does not hold."""
        if y_px < self.top_px or y_px + height_px > self.bottom_px:
            raise ValueError(f"rows {y_px}..{y_px + height_px} are not in the window, which holds {self.top_px}..{self.bottom_px}")
        parts, top = [], self.top_px
        for block in self._blocks:
            first, last = max(y_px - top, 0), min(y_px + height_px - top, len(block))
            if first < last:
                parts.append(block[first:last, x_px : x_px + width_px])
            top += len(block)
        return np.concatenate(parts)

    def forget(self, before_px: int) -> None:
        """Let go of whole blocks above a row."""
        while self._blocks and self.top_px + len(self._blocks[0]) <= before_px:
            self.top_px += len(self._blocks.pop(0))


class RowBlend:
    """Blends rows of tiles, each from left to right, into finished rows; only what the next row of tiles overlaps is kept.

    rows, columns: axes whose weights sum to WEIGHT_WHOLE. first_row: the row of tiles that is added first; what a row above would have
    added is missing from the rows it overlaps.
    """

    def __init__(self, rows: Axis, columns: Axis, first_row: int = 0):
        self.rows, self.columns, self.row = rows, columns, first_row
        self._weights = [axis.weights.numpy().astype(np.uint32) for axis in (rows, columns)]
        self._from_above = np.zeros((0, columns.length_px, 3), np.uint32)  # weighted sums of rows that more tiles will add to

    def add_row(self, tiles: Iterable[Pixels]) -> Pixels:
        """Add the tiles t t 3 uint16 of the next row from left to right; returns the rows that are finished by it, uint16."""
        size, width = self.rows.tile_px, self.columns.length_px
        top, below = self.rows.starts_px[self.row], self._next(self.rows, self.row)
        down, across = self._weights[0][self.row][:, None, None], self._weights[1]
        done = below - top
        finished = np.empty((done, width, 3), np.uint16)
        carried = np.zeros((size - done, width, 3), np.uint32)
        above = self._from_above
        beside = np.zeros((size, 0, 3), np.uint32)
        for column, tile in enumerate(tiles):
            left, right = self.columns.starts_px[column], self._next(self.columns, column)
            part = tile * across[column][None, :, None]  # uint32
            part[:, : beside.shape[1]] += beside
            beside = part[:, right - left :]
            # the sum along the row is a value times WEIGHT_WHOLE: down to 16 bits again, so that both weights fit in 32
            strip = _rounded(part[:, : right - left]) * down
            strip[: len(above)] += above[:, left:right]
            finished[:, left:right] = _rounded(strip[:done])
            carried[:, left:right] = strip[done:]
        self._from_above = carried
        self.row += 1
        return finished

    @staticmethod
    def _next(axis: Axis, index: int) -> int:
        return axis.starts_px[index + 1] if index + 1 < len(axis.starts_px) else axis.length_px


def _rounded(weighted: Pixels) -> Pixels:
    """Sums of values times weights as values again; the shift is many times faster than a division."""
    return np.right_shift(weighted + WEIGHT_WHOLE // 2, _WEIGHT_BITS)
