"""Slides as rows of pixels: one small protocol, and who reads what (OpenSlide; tifffile for 16 bits and OME-TIFF; plain images)."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pathorestore.pipelines.pixel_size import LARGEST_MICROSCOPE_UM, SMALLEST_MICROSCOPE_UM
from pathorestore.pipelines.raster import ImageFileError, check_size
from pathorestore.slide.rows import Pixels

SLIDE_MAX_PIXELS = 100_000_000_000
"""Slides are never held whole, so this only stops what cannot be meant."""
LEAST_MPP, MOST_MPP = SMALLEST_MICROSCOPE_UM, LARGEST_MICROSCOPE_UM
_MOST_ANISOTROPY = 1.02
_OVERVIEW_PX = 2048
_CHUNK_PX = 2048
_HASH_BYTES = 1 << 22


class SlideReadError(Exception):
    """Pixels that could not be decoded; whoever reads decides what becomes of them."""


@dataclass(frozen=True, kw_only=True)
class SlideFacts:
    """What a slide says about itself, of it only what may be told of its restored self.

    mpp: side of a pixel in um, None if unknown. icc: profile of the pixels. bit_depth: 8 or 16. stored_tile_px: height and width of the
    pieces that it is stored in. offset_px: how far into one of them its first pixel lies. levels: number of resolutions. notes: a sentence
    for each thing that is not taken as it stands.
    """

    width_px: int
    height_px: int
    mpp: float | None
    icc: bytes | None
    bit_depth: int
    stored_tile_px: tuple[int, int]
    levels: int
    reader: str
    offset_px: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its pixels."""
        return np.dtype(np.uint8 if self.bit_depth == 8 else np.uint16)


class Overview(NamedTuple):
    """A slide made small, h w 3 uint8: the part that is to be restored, and all of it, which tells what is glass."""

    part: Pixels
    whole: Pixels


class SlideSource(Protocol):
    """An open slide, its largest level only."""

    facts: SlideFacts
    background: tuple[int, int, int]
    """Colour of what was not scanned, 0..255."""

    def read(self, y_px: int, x_px: int, height_px: int, width_px: int) -> Pixels:
        """Pixels h w 3 inside the slide. Raises SlideReadError; the source can still be read elsewhere."""
        ...

    def overview(self) -> "Overview | None":
        """At most some 2,000 px on a side; None where that would take decoding all of the slide."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def open_slide(path: Path, *, max_pixels: int = SLIDE_MAX_PIXELS) -> SlideSource:
    """Open a slide, an OME-TIFF, or a plain image by whichever reader keeps its pixels as they are.

    Raises OSError for a file that cannot be opened, ImageFileError for one that is no slide, truncated, or larger than `max_pixels`,
    ImportError where the reader it needs is not installed.
    """
    from pathorestore.slide.readers import opened

    with path.open("rb"):  # OpenSlide does not say why a file cannot be opened
        pass
    source = opened(path)
    try:
        check_size(source.facts.width_px, source.facts.height_px, max_pixels)
    except ImageFileError as error:
        source.close()
        raise ImageFileError(f"{path}: {error}") from None
    return source


def believable(facts: SlideFacts, mpp_x: float | None, mpp_y: float | None) -> SlideFacts:
    """The facts with a pixel size that can be: finite, the same both ways, and a microscope's."""
    if not mpp_x:
        return facts
    told = f"the slide's pixel size of {mpp_x:.4g} um"
    why = ""
    if not math.isfinite(mpp_x) or not LEAST_MPP <= mpp_x <= MOST_MPP:
        why = f"{told} is outside {LEAST_MPP}-{MOST_MPP} um"
    elif mpp_y and max(mpp_x / mpp_y, mpp_y / mpp_x) > _MOST_ANISOTROPY:
        why = f"{told} across is {mpp_y:.4g} um down"
    if why:
        told = f"{why} and is taken as unknown; give the true one with --mpp, or --source-mpp where that is the wanted one"
        return replace(facts, mpp=None, notes=(*facts.notes, told))
    return replace(facts, mpp=mpp_x)


class Region:
    """A part of a slide that is a slide of its own."""

    def __init__(self, whole: SlideSource, x_px: int, y_px: int, width_px: int, height_px: int):
        facts = whole.facts
        inside = min(x_px, y_px) >= 0 and min(width_px, height_px) > 0
        if not inside or x_px + width_px > facts.width_px or y_px + height_px > facts.height_px:
            raise ValueError(
                f"--region {x_px},{y_px},{width_px},{height_px} is not inside the slide, which is {facts.width_px} x {facts.height_px} px; "
                "give x,y,w,h in pixels of its largest level"
            )
        rows, columns = facts.stored_tile_px
        offset = ((facts.offset_px[0] + y_px) % rows, (facts.offset_px[1] + x_px) % columns)
        self.facts = replace(facts, width_px=width_px, height_px=height_px, offset_px=offset)
        self.background, self.close = whole.background, whole.close
        self._whole, self._x, self._y = whole, x_px, y_px

    def read(self, y_px: int, x_px: int, height_px: int, width_px: int) -> Pixels:
        """Pixels of the part."""
        return self._whole.read(y_px + self._y, x_px + self._x, height_px, width_px)

    def overview(self) -> Overview | None:
        """The part of the slide's overview."""
        found = self._whole.overview()
        if found is None:
            return None
        whole = found.part
        scale = whole.shape[0] / self._whole.facts.height_px, whole.shape[1] / self._whole.facts.width_px
        cuts = []
        for start, size, factor, limit in zip(
            (self._y, self._x), (self.facts.height_px, self.facts.width_px), scale, whole.shape, strict=False
        ):
            first = min(int(start * factor), limit - 1)
            cuts.append(slice(first, max(first + 1, math.ceil((start + size) * factor))))
        return Overview(whole[cuts[0], cuts[1]], found.whole)


def read_rows(source: SlideSource, y_px: int, height_px: int) -> tuple[Pixels, list[tuple[int, int]]]:
    """Rows of the whole width h w 3, and the corners (y, x) of the pieces that cannot be decoded, which show the background's colour.

    It is read in pieces of some 2,000 px that end where the slide's own tiles do.
    """
    facts = source.facts
    rows = np.empty((height_px, facts.width_px, 3), facts.dtype)
    bad: list[tuple[int, int]] = []
    step = max(1, _CHUNK_PX // facts.stored_tile_px[1]) * facts.stored_tile_px[1]
    for start in range(-facts.offset_px[1], facts.width_px, step):
        x = max(start, 0)
        width = min(start + step, facts.width_px) - x
        try:
            rows[:, x : x + width] = source.read(y_px, x, height_px, width)
        except SlideReadError:
            bad += _piece_by_piece(source, rows, y_px, x, width)
    return rows, bad


def _piece_by_piece(source: SlideSource, rows: Pixels, y_px: int, x_px: int, width_px: int) -> Iterator[tuple[int, int]]:
    """Fill a part of rows tile by tile of the slide; yields the corners of those that cannot be decoded, wherever the rows begin."""
    tile_height, tile_width = source.facts.stored_tile_px
    down, across = source.facts.offset_px
    shade = np.array(source.background, np.int64) * (np.iinfo(rows.dtype).max // 255)
    for top in range(y_px - (y_px + down) % tile_height, y_px + len(rows), tile_height):
        for left in range(x_px - (x_px + across) % tile_width, x_px + width_px, tile_width):
            y, bottom = max(top, y_px), min(top + tile_height, y_px + len(rows))
            x, right = max(left, x_px), min(left + tile_width, x_px + width_px)
            place = rows[y - y_px : bottom - y_px, x:right]
            try:
                place[:] = source.read(y, x, bottom - y, right - x)
            except SlideReadError:
                place[:] = shade
                yield max(top, 0), max(left, 0)


def composited(rgba: Pixels, background: tuple[int, int, int], *, premultiplied: bool = False) -> Pixels:
    """RGBA pixels over a background 0..255, as RGB: what was not scanned is transparent black, and must not become black."""
    top = np.iinfo(rgba.dtype).max
    alpha = rgba[..., 3:]
    if int(alpha.min(initial=top)) == top:
        return np.ascontiguousarray(rgba[..., :3])
    share = alpha.astype(np.float32) / top
    behind = np.array(background, np.float32) * (top / 255) * (1 - share)
    blended = (rgba[..., :3] if premultiplied else rgba[..., :3] * share) + behind
    return np.rint(np.minimum(blended, top)).astype(rgba.dtype)


def overview_size(width_px: int, height_px: int) -> tuple[int, int]:
    """Width and height of an overview."""
    scale = min(1.0, _OVERVIEW_PX / max(width_px, height_px))
    return max(1, round(width_px * scale)), max(1, round(height_px * scale))


def content_sha256(path: Path) -> str:
    """Hash of a slide's bytes; of formats whose pixels lie in a folder beside the file, of all in there too."""
    hasher = hashlib.sha256()
    beside = path.with_suffix("")
    files = [path]
    if path.suffix.lower() in (".mrxs", ".vms", ".vmu") and beside.is_dir():
        files += sorted(item for item in beside.rglob("*") if item.is_file())
    for item in files:
        with item.open("rb") as file:
            while block := file.read(_HASH_BYTES):
                hasher.update(block)
    return hasher.hexdigest()
