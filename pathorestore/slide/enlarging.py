"""Slides made larger, row of tiles by row of tiles; each pixel of the output is made once, whatever the scale."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pathorestore.pipelines.batch import BadResult
from pathorestore.pipelines.enlarge import BicubicEnlarger, Cut, DrawnPieces, Enlargement, Pieces, Size, target_size, unheard
from pathorestore.pipelines.provenance import ENLARGED_NOTICE, Parameter
from pathorestore.pipelines.raster import ImageFileError
from pathorestore.slide.events import Event
from pathorestore.slide.plan import OUT_TILE_PX, glass_colour, tissue_in
from pathorestore.slide.rows import Levels, Pixels, RowWindow
from pathorestore.slide.source import SlideSource
from pathorestore.slide.stream import ReadRows, SourceStream
from pathorestore.slide.tiles import image_of
from pathorestore.slide.work import Cells, Hearing, SlideOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class Enlarging:
    """The work of what makes pieces, which is on `device`. target: how large slides become."""

    pieces: Pieces
    target: Enlargement
    device: str = "cpu"
    notice: str = ENLARGED_NOTICE
    mpp_option: str = "--source-mpp"
    done: str = "enlarged"
    _seconds: dict[tuple[Cut, Cut], float] = field(default_factory=dict)

    def run(self, source: SlideSource, options: SlideOptions) -> "EnlargingRun":
        """The work on an open slide. Raises ImageFileError for a size that cannot be, ValueError for tiles that cannot be."""
        facts = source.facts
        size = (facts.height_px, facts.width_px)
        out_size = target_size(size, scale=self.target.scale_of(facts.mpp))
        if out_size[0] * out_size[1] > options.max_pixels:
            raise ImageFileError(
                f"would become {out_size[1]} x {out_size[0]} px, above the limit of {options.max_pixels:,}; take a smaller scale, or allow "
                "it with --max-pixels"
            )
        rows, columns = self.pieces.cuts(size, out_size)
        overview = None if options.all_tiles else source.overview()
        glass = None if overview is None else glass_colour(overview.whole)
        mask = np.ones((len(rows), len(columns)), bool)
        if overview is not None and glass is not None:
            stretches = [tuple(cut.read for cut in axis) for axis in (rows, columns)]
            mask = tissue_in(overview.part, glass, size, stretches[0], stretches[1])
        return EnlargingRun(work=self, source=source, options=options, size=size, out_size=out_size, rows=rows, columns=columns, mask=mask)

    def seconds_per_pass(self, down: Cut, across: Cut) -> float:
        """Of such a tile; remembered."""
        if (down, across) not in self._seconds:
            self._seconds[down, across] = self.pieces.seconds_per_pass(down, across, self.device)
        return self._seconds[down, across]


@dataclass(frozen=True, kw_only=True, eq=False)
class EnlargingRun:
    """The work on one slide, see `SlideRun`. size, out_size: of slide and output. mask: tiles that show tissue."""

    work: Enlarging
    source: SlideSource
    options: SlideOptions
    size: Size
    out_size: Size
    rows: tuple[Cut, ...]
    columns: tuple[Cut, ...]
    mask: NDArray[np.bool_]

    @property
    def height_px(self) -> int:
        """Of the output."""
        return self.out_size[0]

    @property
    def width_px(self) -> int:
        """Of the output."""
        return self.out_size[1]

    @property
    def mpp(self) -> float | None:
        """Finer than that of the slide."""
        return self.work.target.pixel_um(self.source.facts.mpp, self.size, self.out_size)

    @property
    def all_passes(self) -> int:
        """Of all tiles."""
        return self.mask.size * self.work.pieces.passes

    @property
    def memory_bytes(self) -> int:
        """Of the source a row of tiles and a strip read ahead, of the output a row of tiles and two of output tiles being encoded."""
        pixel = 3 * self.source.facts.dtype.itemsize
        highest = max(cut.made[1] - cut.made[0] for cut in self.rows)
        read = max(cut.read[1] - cut.read[0] for cut in self.rows)
        of_source = self.size[1] * (read + 3 * self.source.facts.stored_tile_px[0]) * pixel
        return of_source + self.width_px * 6 * (2 * highest + 3 * OUT_TILE_PX)

    @cached_property
    def cells(self) -> Cells:
        """What the tiles make."""
        rows, columns = ((*(cut.made[0] for cut in axis), axis[-1].made[1]) for axis in (self.rows, self.columns))
        return Cells(rows, columns, self.mask)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The size and the tiles."""
        return {
            "scale": self.work.target.scale_of(self.source.facts.mpp),
            "height_px": self.height_px,
            "width_px": self.width_px,
            "mpp_given": self.work.target.source_mpp,
            "tiles": self.mask.size,
            "tiles_drawn": int(self.mask.sum()),
            "mask": hashlib.sha256(self.mask.tobytes()).hexdigest()[:16],
        }

    def passes(self, start_px: int = 0) -> int:
        """Of tiles that show tissue."""
        return int(self.mask[self.first_row(start_px) :].sum()) * self.work.pieces.passes

    def first_row(self, start_px: int) -> int:
        """The row of tiles that makes a row of the output."""
        return next(index for index, cut in enumerate(self.rows) if cut.made[1] > start_px)

    def streams(self, read: ReadRows, start_px: int, hearing: Hearing) -> "tuple[SourceStream, EnlargedStream]":
        """The source and the output."""
        facts, first = self.source.facts, self.first_row(start_px)
        reader = SourceStream(read, self.size, self.rows[first].read[0], facts.stored_tile_px[0], offset_px=facts.offset_px[0])
        return reader, EnlargedStream(self, reader, first, hearing)

    def seconds_per_pass(self) -> float:
        """Of a tile in the middle of the slide."""
        return self.work.seconds_per_pass(self.rows[len(self.rows) // 2], self.columns[len(self.columns) // 2])

    def box(self, event: Event) -> tuple[Size, Size]:
        """Of a piece of the slide that cannot be decoded, else of what a tile makes; on the output."""
        if event.kind == "unreadable":
            height, width = self.source.facts.stored_tile_px
            return self._on_output((event.y_px, event.x_px)), self._on_output((event.y_px + height, event.x_px + width))
        down, across = (
            next(cut for cut in cuts if self.place(cut, axis) == at)
            for axis, (cuts, at) in enumerate(((self.rows, event.y_px), (self.columns, event.x_px)))
        )
        return (down.made[0], across.made[0]), (down.made[1], across.made[1])

    def place(self, cut: Cut, axis: int) -> int:
        """Where on an axis of the slide lies what a tile makes; neighbours may read from the same place on."""
        return cut.made[0] * self.size[axis] // self.out_size[axis]

    def _on_output(self, corner: Size) -> Size:
        return round(corner[0] * self.height_px / self.size[0]), round(corner[1] * self.width_px / self.size[1])


class EnlargedStream:
    """The output's rows as `Levels`, made when they are needed, from a row of tiles on."""

    def __init__(self, run: EnlargingRun, source: SourceStream, first_row: int, hearing: Hearing):
        self.run, self.source, self.hearing, self.row = run, source, hearing, first_row
        self.levels = Levels.of(run.source.facts.bit_depth)
        self.window = RowWindow(run.width_px, run.rows[first_row].made[0])

    def need(self, bottom_px: int) -> None:
        """Draw more rows of tiles."""
        while self.window.bottom_px < bottom_px:
            down = self.run.rows[self.row]
            self.source.need(down.read[1])
            rows = np.empty((down.made[1] - down.made[0], self.run.width_px, 3), np.uint16)
            for across, active in zip(self.run.columns, self.run.mask[self.row], strict=True):
                rows[:, slice(*across.made)] = self._drawn(down, across, active=bool(active))
            self.window.append(rows)
            self.row += 1
            if self.row < len(self.run.rows):
                self.source.window.forget(self.run.rows[self.row].read[0])

    def _drawn(self, down: Cut, across: Cut, *, active: bool) -> Pixels:
        (y, bottom), (x, right) = down.read, across.read
        part = image_of(self.source.window.cut(y, x, bottom - y, right - x))
        if active:
            made = self._by(self.run.work.pieces, part.to(self.run.work.device), down, across, heard=lambda: self.hearing.passes(1))
            if bool(made.isfinite().all()):
                return self._stored(made)
            if self.run.options.on_bad_tile == "fail":
                raise BadResult(
                    f"the model gave values that are not finite for the tile at x={x}, y={y}; --on-bad-tile pass interpolates there and "
                    "marks the place"
                )
            self.hearing.event(Event("not finite", self.run.place(down, 0), self.run.place(across, 1)))
        return self._stored(self._by(DrawnPieces(enlarger=BicubicEnlarger()), part, down, across))

    @torch.no_grad()
    def _by(self, pieces: Pieces, part: torch.Tensor, down: Cut, across: Cut, *, heard: Callable[[], None] = unheard) -> torch.Tensor:
        return pieces.make(part, down, across, self.run.size, self.run.out_size, heard=heard)

    def _stored(self, made: torch.Tensor) -> Pixels:
        stored: Pixels = self.levels.encode(made)[0]
        return stored
