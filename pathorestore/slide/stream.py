"""A slide as streams of rows: read, restored stage by stage, each stage drawing the rows it needs from the ones before."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from pathorestore.slide.plan import SlidePlan
from pathorestore.slide.rows import Pixels, RowBlend, RowWindow
from pathorestore.slide.tiles import Tile, TileRunner

ReadRows = Callable[[int, int], Pixels]
"""(y_px, height_px) -> rows of the whole width, h w 3."""


class Stream(Protocol):
    """Rows of an image that are made when they are needed."""

    window: RowWindow

    def need(self, bottom_px: int) -> None:
        """See to it that the window reaches down to a row."""
        ...


class SourceStream:
    """A slide of size_px (height, width) as it is read, one strip ahead by another thread.

    padded_px: what it is grown to by reflection, as `TiledRestorer` does; None leaves it. strip_px, offset_px: height of the strips, and
    how far into one of them the slide begins.
    """

    def __init__(
        self,
        read: ReadRows,
        size_px: tuple[int, int],
        start_px: int,
        strip_px: int,
        *,
        offset_px: int = 0,
        padded_px: tuple[int, int] | None = None,
    ):
        self._height_px, (self._padded_px, width_px) = size_px[0], padded_px or size_px
        self.window = RowWindow(width_px, start_px)
        self._read, self._strip_px, self._offset_px = read, strip_px, offset_px
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="slide-reader")
        self._next: Future[Pixels] | None = None
        self._ahead()

    def need(self, bottom_px: int) -> None:
        """Read on."""
        while self.window.bottom_px < bottom_px:
            if self._next is not None:
                rows = self._next.result()
                self._next = None
                self.window.append(_padded_right(rows, self.window.width_px))
                self._ahead()
            else:
                self.window.append(self._mirrored())

    def close(self) -> None:
        """Stop reading."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _ahead(self) -> None:
        top = self.window.bottom_px
        # strips end at multiples of their height, which is that of the slide's own tiles: each is decoded once
        height = min(self._strip_px - (top + self._offset_px) % self._strip_px, self._height_px - top)
        if height > 0:
            self._next = self._reader.submit(self._read, top, height)

    def _mirrored(self) -> Pixels:
        """The rows below the slide: its last ones again, upside down, and what then is missing the last of these."""
        height = self._height_px
        missing = self._padded_px - height
        mirror = min(missing, height - 1)
        below = self.window.cut(height - 1 - mirror, 0, mirror, self.window.width_px)[::-1] if mirror else None
        last = below[-1:] if below is not None else self.window.cut(height - 1, 0, 1, self.window.width_px)
        rest = np.repeat(last, missing - mirror, axis=0)
        return rest if below is None else np.concatenate([below, rest])


class StageStream:
    """One stage of the restorer over the slide; rows are `Levels`. start_px: the first row that will be asked for.

    before: the stream of the stage before, None for the first stage. The last stage lets go of the source's rows, being the last that
    looks at them.
    """

    def __init__(self, runner: TileRunner, stage: int, plan: SlidePlan, source: SourceStream, before: Stream | None, start_px: int):
        self.runner, self.stage, self.plan, self.source, self.before = runner, stage, plan, source, before
        first = plan.first_row(start_px)
        self.blend = RowBlend(plan.rows, plan.columns, first)
        self.window = RowWindow(plan.padded_px[1], plan.rows.starts_px[first])
        self.on_tiles: Callable[[int], None] = lambda _: None

    @staticmethod
    def reaches_up_to(plan: SlidePlan, start_px: int) -> int:
        """The first row that a stage looks at to make row `start_px`."""
        return plan.rows.starts_px[plan.first_row(start_px)]

    def need(self, bottom_px: int) -> None:
        """Restore more rows of tiles."""
        while self.window.bottom_px < bottom_px:
            row = self.blend.row
            top = self.plan.rows.starts_px[row]
            for stream in (self.source, self.before):
                if stream is not None:
                    stream.need(top + self.plan.tile_px)
            self.window.append(self.blend.add_row(self._results(row, top)))
            below = self.plan.rows.starts_px[row + 1] if row + 1 < self.plan.shape[0] else self.plan.padded_px[0]
            if self.before is not None:
                self.before.window.forget(below)
            if self.stage == self.runner.stages - 1:
                self.source.window.forget(below)

    def _results(self, row: int, top: int) -> Iterator[Pixels]:
        """The results of a row of tiles from left to right; tiles without tissue go by untouched."""
        waiting: list[tuple[Tile, Pixels | None]] = []
        batch = max(1, self.runner.batch_size)
        for column, left in enumerate(self.plan.columns.starts_px):
            pixels = self.source.window.cut(top, left, self.plan.tile_px, self.plan.tile_px)
            if self.plan.mask[row, column]:
                current = None if self.before is None else self.before.window.cut(top, left, self.plan.tile_px, self.plan.tile_px)
                waiting.append((Tile(top, left, pixels), current))
                if len(waiting) == batch:
                    yield from self._run(waiting)
            else:
                yield from self._run(waiting)
                yield self.runner.levels.from_pixels(pixels)
        yield from self._run(waiting)

    def _run(self, waiting: list[tuple[Tile, Pixels | None]]) -> Iterator[Pixels]:
        tiles = [tile for tile, _ in waiting]
        current = [levels for _, levels in waiting if levels is not None]
        waiting.clear()
        for result in self.runner.run(self.stage, tiles, current):
            self.on_tiles(1)
            yield result


def _padded_right(rows: Pixels, width_px: int) -> Pixels:
    """Rows grown to a width by reflection, then by repeating the last column."""
    missing, width = width_px - rows.shape[1], rows.shape[1]
    mirror = min(missing, width - 1)
    grown = np.pad(rows, ((0, 0), (0, mirror), (0, 0)), mode="reflect") if mirror else rows
    return np.pad(grown, ((0, 0), (0, missing - mirror), (0, 0)), mode="edge") if missing > mirror else grown
