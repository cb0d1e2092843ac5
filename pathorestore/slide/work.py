"""What is done to a slide: how its rows become those of the output, and what is asked of whoever does that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pathorestore.pipelines.provenance import Parameter
from pathorestore.slide.events import Event
from pathorestore.slide.source import LEAST_MPP, MOST_MPP, SLIDE_MAX_PIXELS, SlideSource
from pathorestore.slide.stream import ReadRows, SourceStream, Stream
from pathorestore.slide.tiles import OnBad


@dataclass(frozen=True, kw_only=True)
class SlideOptions:
    """Wishes for a slide; the names in messages are those of the command line.

    tile_px, overlap_px: of the model's tiles. batch_size: tiles per pass on an accelerator. format: "tiff" or "ome-tiff". compression:
    "auto", "jpeg" or "deflate". quality: of JPEG. mpp: side of a pixel where the slide does not tell it. region: x, y, width, height in
    pixels of the largest level. all_tiles: glass too. on_bad_tile: "fail", or "pass" what cannot be decoded or restored on, marked in the
    record. resume: go on where an earlier run with the same settings stopped. work_dir: for the journal; it must be a local disk. regions:
    write NAME.geojson too. encoders: threads that compress.
    """

    tile_px: int = 256
    overlap_px: int = 32
    batch_size: int = 8
    format: str = "tiff"
    compression: str = "auto"
    quality: int = 90
    mpp: float | None = None
    region: tuple[int, int, int, int] | None = None
    all_tiles: bool = False
    on_bad_tile: OnBad = "fail"
    resume: bool = True
    work_dir: Path | None = None
    regions: bool = False
    max_pixels: int = SLIDE_MAX_PIXELS
    encoders: int = 2

    def __post_init__(self) -> None:
        if self.mpp is not None and not LEAST_MPP <= self.mpp <= MOST_MPP:
            raise ValueError(f"--mpp {self.mpp} must lie in {LEAST_MPP}..{MOST_MPP} um; slides at 40x have about 0.25")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality} must lie in 1..100")
        if self.batch_size < 1:
            raise ValueError(f"--batch {self.batch_size} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """Who hears what goes on in a slide: every deviation, and every finished pass of so many tiles."""

    event: Callable[[Event], None]
    passes: Callable[[int], None]


class Cells(NamedTuple):
    """Where the tiles lie on the output: the borders between them in px, top to bottom and left to right, and which are worked at."""

    rows_px: tuple[int, ...]
    columns_px: tuple[int, ...]
    mask: NDArray[np.bool_]


class SlideRun(Protocol):
    """The work on one open slide, before anything is done."""

    @property
    def height_px(self) -> int:
        """Of the output."""
        ...

    @property
    def width_px(self) -> int:
        """Of the output."""
        ...

    @property
    def mpp(self) -> float | None:
        """Side of a pixel of the output in um."""
        ...

    @property
    def all_passes(self) -> int:
        """Passes of tiles through stages if glass were worked at, too."""
        ...

    @property
    def memory_bytes(self) -> int:
        """What it holds at most, beside the program, the model and the reader's cache."""
        ...

    @property
    def cells(self) -> Cells:
        """Its tiles on the output."""
        ...

    @property
    def work(self) -> "SlideWork":
        """The work that it is."""
        ...

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The settings that change pixels and that no one else knows."""
        ...

    def passes(self, start_px: int = 0) -> int:
        """Passes of tiles through stages that the rows from one of the output on take."""
        ...

    def streams(self, read: ReadRows, start_px: int, hearing: Hearing) -> tuple[SourceStream, Stream]:
        """The source's rows and the output's, each beginning where the next needs it: row `start_px` is as in a run from the top."""
        ...

    def seconds_per_pass(self) -> float:
        """How long a pass of a tile takes here, by doing it; remembered by the work."""
        ...

    def box(self, event: Event) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where an event was: the first and the last corner (y, x) in px of the output, not cut at its edges."""
        ...


class SlideWork(Protocol):
    """What is done to slides."""

    @property
    def notice(self) -> str:
        """What a viewer of the output must know."""
        ...

    @property
    def done(self) -> str:
        """What is done to tissue, as a participle."""
        ...

    @property
    def mpp_option(self) -> str:
        """The option that says how large the pixels of a slide are."""
        ...

    def run(self, source: SlideSource, options: SlideOptions) -> SlideRun:
        """The work on an open slide. Raises ValueError for wishes that do not fit it."""
        ...
