"""A function of maps, such as one step's noise prediction, computed tile by tile and blended with Gaussian weights.

Tiles of a fixed side start every half side; the last one ends with the map. A part of a large map that begins on that grid is cut into the
tiles of the large map.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pathorestore.tiling import Axis

_SPREAD = 0.1  # standard deviation of the weight, in sides of a tile


def gaussian_weights(side: int) -> Tensor:
    """exp(-(u - m)^2 / (2 (0.1 n)^2)) for u = 0..n-1 around the middle m = (n - 1) / 2: float32, n. Never zero."""
    places = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return torch.exp(-(places**2) / (2 * (_SPREAD * side) ** 2)).float()


def stride(tile: int) -> int:
    """From the start of a tile to the next one's."""
    return max(1, tile // 2)


def blended(make: Callable[[slice, slice], Tensor], size: tuple[int, int], tile: int, *, overlap: int | None = None) -> Tensor:
    """What `make` gives for the whole of a map of that height and width, computed from tiles.

    make: rows and columns of a tile -> b c h w, as large as the tile or a whole number of times as large. tile: largest side; a map that is
    no larger is one tile, and the result is what `make` gives. overlap: of larger maps, if less than half a tile is enough; their tiles
    start at the same places and are smaller by the rest.
    """
    rows, columns = (_cuts(length, tile, overlap) for length in size)
    if len(rows) == len(columns) == 1:
        return make(rows[0], columns[0])
    total = weight = torch.empty(0)
    for row in rows:
        for column in columns:
            part = make(row, column)
            times = part.shape[-1] // (column.stop - column.start)
            if not total.numel():
                # weights at the corners of a tile are too small for half precision
                total = part.new_zeros(*part.shape[:2], size[0] * times, size[1] * times, dtype=torch.float32)
                weight = total.new_zeros(total.shape[-2:])
            window = torch.outer(gaussian_weights(part.shape[-2]), gaussian_weights(part.shape[-1])).to(part.device)
            place = (slice(row.start * times, row.stop * times), slice(column.start * times, column.stop * times))
            total[(..., *place)] += part * window
            weight[place] += window
    return total / weight


def _cuts(length: int, tile: int, overlap: int | None) -> list[slice]:
    if length <= tile:
        return [slice(0, length)]
    side = tile if overlap is None else min(tile, stride(tile) + overlap)
    return [slice(start, start + side) for start in Axis(length, side, side - stride(tile)).starts_px]
