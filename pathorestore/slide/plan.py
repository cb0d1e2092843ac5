"""What will be done to a slide: its tiles, which of them show tissue, and what that takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pathorestore.image import round_up
from pathorestore.slide.rows import WEIGHT_WHOLE
from pathorestore.tiling import Axis, TilePlan

OUT_TILE_PX = 256
_GRID_PX = 8
_GLASS_PERCENTILE = 90
_DARKEST_GLASS, _MOST_TINT = 190, 24  # grey levels
_LEAST_CONTRAST = 12  # grey levels off the colour of the glass; compression and dust stay below


@dataclass(frozen=True)
class SlidePlan:
    """The tiles of a slide of height_px x width_px, padded to at least one tile, and which of them are `active`: rows x columns, bool.

    The grid is that of `TiledRestorer`, so a slide comes out as the same image in one piece would.
    """

    height_px: int
    width_px: int
    tile_px: int
    overlap_px: int
    active: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        TilePlan(*self.padded_px, self.tile_px, self.overlap_px)  # refuses what cannot be
        if self.active is not None and self.active.shape != self.shape:
            raise ValueError(f"active tiles are {self.active.shape}; expected {self.shape}, rows and columns of tiles")

    @cached_property
    def padded_px(self) -> tuple[int, int]:
        """Height and width of what is cut into tiles."""
        grid = math.gcd(self.tile_px, _GRID_PX)
        return (round_up(max(self.height_px, self.tile_px), grid), round_up(max(self.width_px, self.tile_px), grid))

    @cached_property
    def rows(self) -> Axis:
        """The vertical axis."""
        return Axis(self.padded_px[0], self.tile_px, self.overlap_px, whole=WEIGHT_WHOLE)

    @cached_property
    def columns(self) -> Axis:
        """The horizontal axis."""
        return Axis(self.padded_px[1], self.tile_px, self.overlap_px, whole=WEIGHT_WHOLE)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return len(self.rows.starts_px), len(self.columns.starts_px)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Which tiles are active; all of them where nothing is known."""
        return np.ones(self.shape, bool) if self.active is None else self.active

    def first_row(self, y_px: int) -> int:
        """The first row of tiles that reaches below row `y_px`."""
        return next(index for index, start in enumerate(self.rows.starts_px) if start + self.tile_px > y_px)


def glass_colour(overview: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """The brightest common colour of the overview h w 3 of a whole slide; None where that is no glass, bright and colourless."""
    levels = overview.reshape(-1, 3).astype(np.int16)
    glass = np.median(levels[levels.sum(axis=1) >= np.percentile(levels.sum(axis=1), _GLASS_PERCENTILE)], axis=0)
    return glass if glass.min() >= _DARKEST_GLASS and np.ptp(glass) <= _MOST_TINT else None


def active_tiles(plan: SlidePlan, overview: NDArray[np.uint8], glass: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which tiles show anything but glass on an overview h w 3 of what is planned, see `tissue_in`."""
    rows, columns = ([(start, start + plan.tile_px) for start in axis.starts_px] for axis in (plan.rows, plan.columns))
    return tissue_in(overview, glass, (plan.height_px, plan.width_px), rows, columns)


def tissue_in(
    overview: NDArray[np.uint8],
    glass: NDArray[np.float64],
    size_px: tuple[int, int],
    rows: Sequence[tuple[int, int]],
    columns: Sequence[tuple[int, int]],
) -> NDArray[np.bool_]:
    """Which tiles show anything but glass on an overview h w 3 of an image of size_px, widened by one of its pixels; rows x columns.

    rows, columns: first pixel and the one behind the last of every tile. What differs from the glass by more than a few grey levels in any
    colour counts, so that pale tissue is rather worked at for nothing than left out.
    """
    import cv2

    stands_out = (np.abs(overview.astype(np.int16) - glass) > _LEAST_CONTRAST).any(axis=2).astype(np.uint8)
    stands_out = cv2.dilate(stands_out, np.ones((3, 3), np.uint8))
    sums = np.pad(stands_out.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    edges = []
    for axis, length, limit in zip((rows, columns), size_px, overview.shape[:2], strict=True):
        starts, stops = np.array(axis).T * (limit / length)
        first = np.minimum(np.floor(starts).astype(int), limit - 1)
        edges.append((first, np.clip(np.ceil(stops).astype(int), first + 1, limit)))
    (top, bottom), (left, right) = edges
    inside = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    return np.asarray(inside > 0)
