"""From the journal's tiles to a slide on disk: smaller levels, one TIFF, looked at again before it gets its name."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pathorestore.pipelines.pixel_size import CENTIMETRE_UM
from pathorestore.slide.codec import TileCodec
from pathorestore.slide.journal import Journal
from pathorestore.slide.plan import OUT_TILE_PX
from pathorestore.slide.room import part_path
from pathorestore.slide.rows import Pixels

_SMALLEST_LEVEL_PX = 512
_REDUCED = 1  # TIFF 6.0, NewSubfileType
_CHECKED_TILES = 8


class SelfCheckFailed(OSError):
    """A written slide that does not read back as it should."""


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """A slide about to be written. description: its ImageDescription; of an OME-TIFF, where that is XML, the image's Description in it."""

    width_px: int
    height_px: int
    dtype: np.dtype[Any]
    mpp: float | None
    icc: bytes | None
    description: str
    software: str
    codec: TileCodec
    format: str = "tiff"

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of every level, each half of the one before, rounded up."""
        sizes = [(self.width_px, self.height_px)]
        while max(sizes[-1]) > _SMALLEST_LEVEL_PX:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        return sizes

    def lines(self, level: int) -> int:
        """Rows of tiles of a level."""
        return -(-self.sizes[level][1] // OUT_TILE_PX)


def build_levels(journal: Journal, pyramid: Pyramid, on_line: Callable[[int], None] = lambda _: None) -> None:
    """Make the smaller levels in the journal, a row of tiles at a time, from where an earlier run left off."""
    for level in range(1, len(pyramid.sizes)):
        for line in range(journal.lines(level), pyramid.lines(level)):
            journal.keep(level, line, _line_of(journal, pyramid, level, line))
            on_line(1)


def cut_tiles(rows: Pixels) -> Iterator[Pixels]:
    """The output tiles of a row of them, from left to right; the last may be narrower."""
    for x in range(0, rows.shape[1], OUT_TILE_PX):
        yield rows[:, x : x + OUT_TILE_PX]


def write_pyramid(journal: Journal, pyramid: Pyramid, target: Path, *, overwrite: bool) -> None:
    """Write the slide beside its target, read it back, flush it to the disk and give it its name in one step.

    Raises OSError if it cannot be written, FileExistsError if something has that name by now and may not be replaced, SelfCheckFailed.
    """
    part = part_path(target)
    try:
        part.unlink(missing_ok=True)
        _write(journal, pyramid, part)
        _check(journal, pyramid, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        journal.remember("written", str(target.name))  # from here on the journal is of no use: see `sweep`
        if overwrite:
            part.replace(target)
        else:
            try:
                os.link(part, target, follow_symlinks=False)  # fails if the name is taken, unlike rename
            except FileExistsError:
                raise FileExistsError(17, "exists by now; --overwrite replaces it", str(target)) from None
            except OSError:  # a file system without links: take the name first
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
                part.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.filename in (None, str(part)) and not isinstance(error, SelfCheckFailed):
            raise OSError(error.errno, f"cannot be written: {error.strerror or error}", str(target)) from error
        raise
    finally:
        with suppress(OSError):
            part.unlink()


def _write(journal: Journal, pyramid: Pyramid, part: Path) -> None:
    import tifffile

    ome = pyramid.format == "ome-tiff"
    resolution = CENTIMETRE_UM / pyramid.mpp if pyramid.mpp else None
    shared: dict[str, Any] = {"dtype": pyramid.dtype, "tile": (OUT_TILE_PX, OUT_TILE_PX), "iccprofile": pyramid.icc} | pyramid.codec.tags
    metadata: dict[str, Any] | None = None
    if ome:
        metadata = {"axes": "YXS", "Description": pyramid.description}
        if pyramid.mpp:
            metadata |= {f"PhysicalSize{axis}": pyramid.mpp for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    with tifffile.TiffWriter(part, bigtiff=True, ome=ome) as tiff:
        for level, (width, height) in enumerate(pyramid.sizes):
            first = level == 0
            tiff.write(
                journal.tiles(level),
                shape=(height, width, 3),
                resolution=None if resolution is None else (resolution / 2**level,) * 2,
                resolutionunit=None if resolution is None else "CENTIMETER",
                description=pyramid.description if first and not ome else None,
                software=pyramid.software if first else None,
                subfiletype=0 if first else _REDUCED,
                subifds=len(pyramid.sizes) - 1 if ome and first else None,
                metadata=metadata if first else None,
                **shared,
            )


def _check(journal: Journal, pyramid: Pyramid, part: Path) -> None:
    """Read the written file with other programs' eyes: sizes of all levels, and some tiles of the largest against the journal's."""
    import tifffile

    with tifffile.TiffFile(part) as tiff:
        found = [(level.pages[0].imagewidth, level.pages[0].imagelength) for level in tiff.series[0].levels]
        _same("tifffile sees levels of", found, pyramid.sizes)
        page = tiff.pages[0]
        across = -(-pyramid.width_px // OUT_TILE_PX)
        for line in sorted({round(index) for index in np.linspace(0, pyramid.lines(0) - 1, _CHECKED_TILES)}):
            data = journal.line(0, line)
            place = (line * 7919) % across
            tiff.filehandle.seek(page.dataoffsets[line * across + place])
            if tiff.filehandle.read(page.databytecounts[line * across + place]) != data[place]:
                raise SelfCheckFailed(5, f"tile {place} of row {line} reads back otherwise than it was written", str(part))
    _check_with_openslide(pyramid, part)


def _check_with_openslide(pyramid: Pyramid, part: Path) -> None:
    try:
        import openslide
    except ImportError:
        return
    if pyramid.dtype != np.uint8:
        return
    try:
        with openslide.OpenSlide(part) as slide:
            seen = list(slide.level_dimensions)
            slide.read_region((pyramid.width_px // 2, pyramid.height_px // 2), slide.level_count - 1, (1, 1))
            mpp = float(slide.properties.get("openslide.mpp-x", "nan"))
    except openslide.OpenSlideError as error:
        raise SelfCheckFailed(5, f"OpenSlide cannot read what was written: {error}", str(part)) from error
    visible = pyramid.sizes if pyramid.format == "tiff" else pyramid.sizes[:1]  # OpenSlide does not look into SubIFDs
    _same("OpenSlide sees levels of", seen, visible)
    if pyramid.mpp and not abs(mpp - pyramid.mpp) < 1e-3 * pyramid.mpp:
        raise SelfCheckFailed(5, f"OpenSlide reads {mpp} um per pixel, written were {pyramid.mpp}", str(part))


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise SelfCheckFailed(5, f"{what} {found}, written were {expected}")


def _line_of(journal: Journal, pyramid: Pyramid, level: int, line: int) -> Iterator[bytes]:
    """The tiles of a row, each from the four tiles above it in the pyramid."""
    codec, dtype = pyramid.codec, pyramid.dtype
    width, height = pyramid.sizes[level - 1]
    lines = [journal.line(level - 1, 2 * line + k) for k in (0, 1) if 2 * line + k < pyramid.lines(level - 1)]
    for place in range(-(-pyramid.sizes[level][0] // OUT_TILE_PX)):
        quarters = [[codec.decode(data, dtype) for data in row[2 * place : 2 * place + 2]] for row in lines]
        four = np.concatenate([np.concatenate(row, axis=1) for row in quarters])
        yield codec.encode(_halved(four[: height - 2 * line * OUT_TILE_PX, : width - 2 * place * OUT_TILE_PX]))


def _halved(pixels: Pixels) -> Pixels:
    """Means of 2 x 2 pixels; an odd last row or column is taken twice."""
    odd = [(0, side % 2) for side in pixels.shape[:2]]
    even = np.pad(pixels, (*odd, (0, 0)), mode="edge") if pixels.shape[0] % 2 or pixels.shape[1] % 2 else pixels
    wide: Pixels = even.astype(np.uint16 if pixels.dtype == np.uint8 else np.uint32)
    quads: Pixels = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    return np.right_shift(quads + 2, 2).astype(pixels.dtype)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(handle)
