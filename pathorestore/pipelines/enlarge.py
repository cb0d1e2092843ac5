"""Larger images: how large, in which tiles, each output pixel made once."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
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


def unheard() -> None:
    """Whom nobody hears."""


class Enlarger(Protocol):
    """Draws any pixels of a larger image."""

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

    def coordinates(self, length: int, out_length: int, *, beyond_px: int = 0) -> Tensor:
        """Where the made pixels, and those up to beyond_px beside them, lie on the read stretch, from -1 to 1, float64."""
        start, stop = self.read
        first, last = self.worked(out_length, beyond_px=beyond_px)
        places = (torch.arange(first, last, dtype=torch.float64) + 0.5) * (length / out_length)
        return 2 * (places - start) / (stop - start) - 1

    def worked(self, out_length: int, *, beyond_px: int) -> tuple[int, int]:
        """The made pixels with those up to beyond_px beside them."""
        return max(0, self.made[0] - beyond_px), min(out_length, self.made[1] + beyond_px)


Cuts = tuple[tuple[Cut, ...], tuple[Cut, ...]]
"""Those of the rows and those of the columns of an image."""


class Pieces(Protocol):
    """A way to make a large image piece by piece; every pixel is made once."""

    @property
    def passes(self) -> int:
        """How many a piece takes, for progress."""
        ...

    def seen(self, image: Tensor) -> "Pieces":
        """The same for an image 1 3 h w that was looked at; for those that work alike on every image, themselves."""
        ...

    def cuts(self, size: Size, out_size: Size) -> Cuts:
        """The pieces of an image of `size` that becomes `out_size`. Raises ValueError for settings that cannot be."""
        ...

    def make(self, part: Tensor, down: Cut, across: Cut, size: Size, out_size: Size, *, heard: Callable[[], None] = unheard) -> Tensor:
        """What a piece makes of the part b 3 h w, in [0, 1], that it reads: b 3 H W, unclamped. heard: called after each pass."""
        ...

    def seconds_per_pass(self, down: Cut, across: Cut, device: str) -> float:
        """How long a pass takes for such a piece, by doing it or part of it."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnPieces:
    """Tiles of at most tile_px, in pixels of the small image, that see overlap_px of their neighbours, see `cuts`."""

    enlarger: Enlarger
    tile_px: int = 64
    overlap_px: int = 8
    passes: int = 1

    def seen(self, image: Tensor) -> "DrawnPieces":
        """See `Pieces`."""
        del image
        return self

    def cuts(self, size: Size, out_size: Size) -> Cuts:
        """See `Pieces`."""
        axes = zip(size, out_size, strict=True)
        rows, columns = (tuple(cuts(length, out, tile_px=self.tile_px, overlap_px=self.overlap_px)) for length, out in axes)
        return rows, columns

    def make(self, part: Tensor, down: Cut, across: Cut, size: Size, out_size: Size, *, heard: Callable[[], None] = unheard) -> Tensor:
        """See `Pieces`."""
        lattice = Lattice(down.coordinates(size[0], out_size[0]), across.coordinates(size[1], out_size[1]))
        made = self.enlarger.draw(part, lattice, size, out_size)
        heard()
        return made

    def seconds_per_pass(self, down: Cut, across: Cut, device: str) -> float:
        """See `Pieces`."""
        read, made = (
            (down.read[1] - down.read[0], across.read[1] - across.read[0]),
            (down.made[1] - down.made[0], across.made[1] - across.made[0]),
        )
        tile, start = torch.full((1, 3, *read), 0.8, device=device), perf_counter()
        for _ in range(2):  # the first is slower
            start = perf_counter()
            self.enlarger.draw(tile, Lattice.of(made), read, made)
        return perf_counter() - start


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
    pieces: Pieces,
    image: Tensor,
    out_size: Size,
    *,
    device: torch.device | str | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Images b 3 h w in [0, 1] made of out_size, piece by piece, clamped; memory beside them is bounded by the piece.

    device: where the pieces are made, if the images are elsewhere. progress: passes of pieces. Raises BadResult for what is not finite.
    """
    size = (image.shape[-2], image.shape[-1])
    rows, columns = pieces.cuts(size, out_size)
    large = image.new_empty(len(image), 3, *out_size, dtype=torch.float32)
    places = [(row, column) for row in rows for column in columns]
    count, total = itertools.count(1), len(places) * pieces.passes
    for row, column in places:
        part = image[..., slice(*row.read), slice(*column.read)].float().to(device or image.device)
        made = pieces.make(part, row, column, size, out_size, heard=lambda: progress(next(count), total)).to(large.device)
        if not bool(made.isfinite().all()):
            raise BadResult(f"the model gave values that are not finite for the tile at x={column.read[0]}, y={row.read[0]}")
        large[..., slice(*row.made), slice(*column.made)] = made
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
        if self.scale is not None and self.mpp is not None:
            raise ValueError(f"--scale {self.scale:g} and --mpp {self.mpp:g} both say how large; give one of them")
        if self.scale is None and self.mpp is None:
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
