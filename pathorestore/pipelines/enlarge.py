"""Larger images: how large, in which tiles, each output pixel made once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pathorestore.nn.implicit import Lattice, bicubic_on
from pathorestore.pipelines.batch import BadResult
from pathorestore.pipelines.pixel_size import LARGEST_MICROSCOPE_UM, SMALLEST_MICROSCOPE_UM
from pathorestore.pipelines.raster import ImageFileError
from pathorestore.pipelines.restorer import Progress, silent

LARGEST_SCALE = 16.0
_ALREADY = 1.02  # pixel sizes of one magnification differ by as much between scanners
Size = tuple[int, int]
"""Height and width in px."""


class Enlarger(Protocol):
    """Draws the pixels of a larger image."""

    def draw(self, part: Tensor, lattice: Lattice, size: Size, out_size: Size) -> Tensor:
        """The pixels b 3 H W of a lattice over parts b 3 h w, in [0, 1], of images of `size` that become `out_size`; unclamped."""
        ...


class BicubicEnlarger:
    """Interpolation, for what needs no more, such as glass."""

    def draw(self, part: Tensor, lattice: Lattice, size: Size, out_size: Size) -> Tensor:
        """See `Enlarger`."""
        del size, out_size
        return bicubic_on(part, lattice)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A stretch of an axis that a tile makes. read: the pixels of the small image that it sees; made: the pixels of the large one."""

    read: tuple[int, int]
    made: tuple[int, int]

    def coordinates(self, length: int, out_length: int) -> Tensor:
        """Where the made pixels lie on the read stretch, from -1 to 1, float64."""
        start, stop = self.read
        places = (torch.arange(*self.made, dtype=torch.float64) + 0.5) * (length / out_length)
        return 2 * (places - start) / (stop - start) - 1


def cuts(length: int, out_length: int, *, tile_px: int, overlap_px: int) -> Iterator[Cut]:
    """Cut an axis of `length` px, to become `out_length`, into tiles of at most tile_px that see overlap_px of their neighbours.

    Every pixel of the large image is made once, by the tile in whose core it lies, whatever the scale. Raises ValueError for a tile that
    is filled by its overlaps.
    """
    if overlap_px < 0 or tile_px <= 2 * overlap_px:
        raise ValueError(f"tile_px={tile_px} must be more than twice overlap_px={overlap_px}, which must not be negative")
    core = length if length <= tile_px else tile_px - 2 * overlap_px
    for start in range(0, length, core):
        stop = min(start + core, length)
        made = tuple(_first_behind(border, length, out_length) for border in (start, stop))
        if made[0] < made[1]:
            yield Cut(read=(max(0, start - overlap_px), min(length, stop + overlap_px)), made=(made[0], made[1]))


def _first_behind(border: int, length: int, out_length: int) -> int:
    """The first pixel of the large axis whose centre lies at or behind a border of the small one, in whole numbers: none is made twice.

    Pixel i has its centre at (2 i + 1) length / (2 out_length).
    """
    return max(0, -(-(2 * border * out_length - length) // (2 * length)))


@torch.no_grad()
def enlarged(
    enlarger: Enlarger,
    image: Tensor,
    out_size: Size,
    *,
    tile_px: int,
    overlap_px: int,
    device: torch.device | str | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Images b 3 h w in [0, 1] drawn with out_size, tile by tile, clamped; memory beside them is bounded by the tile.

    device: where the enlarger is, if the images are elsewhere: tiles travel. Raises ValueError for a tile that is not finite.
    """
    size = (image.shape[-2], image.shape[-1])
    rows, columns = (list(cuts(length, out, tile_px=tile_px, overlap_px=overlap_px)) for length, out in zip(size, out_size, strict=True))
    large = image.new_empty(len(image), 3, *out_size, dtype=torch.float32)
    tiles = [(row, column) for row in rows for column in columns]
    for done, (row, column) in enumerate(tiles, start=1):
        part = image[..., slice(*row.read), slice(*column.read)].float().to(device or image.device)
        lattice = Lattice(row.coordinates(size[0], out_size[0]), column.coordinates(size[1], out_size[1]))
        made = enlarger.draw(part, lattice, size, out_size).to(large.device)
        if not bool(made.isfinite().all()):
            raise BadResult(f"the model gave values that are not finite for the tile at x={column.read[0]}, y={row.read[0]}")
        large[..., slice(*row.made), slice(*column.made)] = made
        progress(done, len(tiles))
    return large.clamp_(0, 1)


def target_size(size: Size, *, scale: float | None = None, out_size: Size | None = None) -> Size:
    """Height and width of the large image: of `scale`, rounded, or as given.

    Raises ValueError for anything but one of both, for sizes below 1 px, and beyond 16 times.
    """
    if (scale is None) == (out_size is None):
        raise ValueError(f"give one of scale and out_size; got scale={scale} and out_size={out_size}")
    if scale is not None and not 0 < scale <= LARGEST_SCALE:
        raise ValueError(f"scale={scale} must lie above 0 and be at most {LARGEST_SCALE:g}")
    height, width = out_size or (round(size[0] * (scale or 1)), round(size[1] * (scale or 1)))
    largest = max(height / size[0], width / size[1])
    # a pixel of rounding more does not matter
    if min(height, width) < 1 or not (scale or largest) <= LARGEST_SCALE:
        raise ValueError(f"an image of {size[0]} x {size[1]} px cannot become {height} x {width}; expected 1 px to {LARGEST_SCALE:g} times")
    return height, width


@dataclass(frozen=True, kw_only=True)
class Enlargement:
    """How large files are to become; the names in messages are those of the command line.

    scale: how many times, from 1; or mpp: the side of their pixels in um then. source_mpp: what it is now, where a file does not say it.
    """

    scale: float | None = None
    mpp: float | None = None
    source_mpp: float | None = None

    def __post_init__(self) -> None:
        if (self.scale is None) == (self.mpp is None):
            raise ValueError("say how large with either --scale, such as 2.7, or --mpp, the wanted um per pixel, such as 0.25")
        if self.scale is not None and not 1 <= self.scale <= LARGEST_SCALE:
            why = "images are not made smaller here" if self.scale < 1 else "more was never looked at"
            raise ValueError(f"--scale {self.scale:g} must lie in 1..{LARGEST_SCALE:g}; {why}")
        for name, given in (("--mpp", self.mpp), ("--source-mpp", self.source_mpp)):
            if given is not None and not SMALLEST_MICROSCOPE_UM <= given <= LARGEST_MICROSCOPE_UM:
                raise ValueError(f"{name} {given:g} must lie in {SMALLEST_MICROSCOPE_UM}..{LARGEST_MICROSCOPE_UM} um; 40x has about 0.25")

    def scale_of(self, mpp: float | None) -> float:
        """How many times an image with pixels of mpp becomes as large. Raises ImageFileError where that is unknown or cannot be."""
        if self.scale is not None:
            return self.scale
        assert self.mpp is not None
        known = self.source_mpp or mpp
        if known is None:
            raise ImageFileError(
                f"does not say how large its pixels are, so --mpp {self.mpp:g} means nothing; add --source-mpp, or use --scale"
            )
        scale = known / self.mpp
        if scale < _ALREADY:
            raise ImageFileError(
                f"has pixels of {known:.4g} um, so --mpp {self.mpp:g} leaves nothing to enlarge; images are not made smaller"
            )
        if scale > LARGEST_SCALE:
            raise ImageFileError(
                f"has pixels of {known:.4g} um; --mpp {self.mpp:g} asks for x{scale:.3g}, and x{LARGEST_SCALE:g} is the most; try "
                f"--mpp {math.ceil(1000 * known / LARGEST_SCALE) / 1000:g} or coarser"
            )
        return scale

    def pixel_um(self, mpp: float | None, size: Size, out_size: Size) -> float | None:
        """Side of a pixel of an image of out_size that was one of size with pixels of mpp; None where that is unknown.

        Rounding to whole pixels stretches both axes a little differently; this is the mean of both.
        """
        known = self.source_mpp or mpp
        if known is None:
            return None
        return known * ((size[0] / out_size[0]) * (size[1] / out_size[1])) ** 0.5
