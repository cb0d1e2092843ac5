"""How well an image or a slide is in focus, tile by tile: read where there is tissue, judged in batches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pathorestore.image import to_uint8
from pathorestore.models.defocus import DefocusEstimator
from pathorestore.pipelines.batch import BadResult
from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS, read_image_file
from pathorestore.pipelines.raster import ImageFileError
from pathorestore.pipelines.restorer import Progress, silent
from pathorestore.slide.focus_verdict import LEAST_TISSUE, Thresholds, TileFocus, edges_px
from pathorestore.slide.plan import SlidePlan, active_tiles, glass_colour
from pathorestore.slide.readers import is_slide
from pathorestore.slide.rows import Pixels
from pathorestore.slide.source import (
    LEAST_MPP,
    MOST_MPP,
    SLIDE_MAX_PIXELS,
    Overview,
    SlideFacts,
    SlideReadError,
    SlideSource,
    believable,
    composited,
    open_slide,
    overview_size,
)

JUDGED_MPP = 0.25
"""The pixel size that the estimator was trained at, and that tiles are brought to."""
COARSEST_MPP = 0.6
_SAME_MPP = 0.02  # a share; the estimate is off by about as much
_LEAST_PX, _CELL_PX = 32, 4
_OVERVIEW_CELLS = 4  # along a tile

Box = tuple[int, int, int, int]
"""x, y, width and height in pixels of the largest level."""


class FocusJudge(Protocol):
    """Tells focus from tiles b 3 h w in [0, 1] and how much of each place is tissue, b 1 h w: distances in um and contrast transfer, b."""

    def __call__(self, tiles: Tensor, tissue: Tensor) -> tuple[Tensor, Tensor]:
        """Of tiles of one size, each with some tissue."""
        ...


class TissueFocus:
    """The estimator's heads on its features averaged over tissue alone; on a tile full of tissue it is `DefocusEstimator.forward`.

    Both heads are linear, so averaging features is averaging what they say. Over the whole tile, glass would be averaged in.
    """

    def __init__(self, estimator: DefocusEstimator, *, device: str = "cpu"):
        self.estimator, self.device = estimator.to(device), device

    @torch.no_grad()
    def __call__(self, tiles: Tensor, tissue: Tensor) -> tuple[Tensor, Tensor]:
        """Absolute distances and contrast transfer in [0, 1]."""
        estimator = self.estimator
        features = estimator.features(tiles.to(self.device))
        weight = F.interpolate(tissue.to(features), size=features.shape[-2:], mode="area")
        pooled = (features * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))
        ctf = estimator.fc(pooled)[:, 0]
        ctf = ctf.sigmoid() if estimator.config.ctf_activation == "sigmoid" else ctf
        return estimator.fc2(pooled)[:, 0].abs().float().cpu(), ctf.clamp(0, 1).float().cpu()


@dataclass(frozen=True, kw_only=True)
class FocusOptions:
    """Wishes; the names in messages are those of the command line.

    tile_px: side of a tile at 0.25 um a pixel. every: judge only every Nth tile, down and across. mpp: side of a pixel in um, in place of
    what the file says. batch_size: tiles in one pass. max_pixels: largest image or slide, None for the limits of `restore`.
    """

    tile_px: int = 256
    every: int = 1
    mpp: float | None = None
    batch_size: int = 8
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.tile_px < 2 * _LEAST_PX:
            raise ValueError(f"--tile {self.tile_px} must be at least {2 * _LEAST_PX} px; smaller tiles show too little to judge")
        if self.every < 1:
            raise ValueError(f"--every {self.every} must be at least 1, which judges all tiles")
        if self.batch_size < 1:
            raise ValueError(f"--batch {self.batch_size} must be at least 1")
        if self.mpp is not None and not LEAST_MPP <= self.mpp <= MOST_MPP:
            raise ValueError(f"--mpp {self.mpp} must lie in {LEAST_MPP}..{MOST_MPP} um; slides at 40x have about 0.25")


@dataclass(frozen=True, kw_only=True, eq=False)
class FocusMap:
    """The focus of one file. rows_px, columns_px: borders of its tiles. every: 1, or only every Nth tile is in `tiles`.

    mpp: side of a pixel that was reckoned with; mpp_assumed: nobody told it. thumbnail: h w 3 uint8, None where there is
    no small level.
    """

    rows_px: tuple[int, ...]
    columns_px: tuple[int, ...]
    tiles: tuple[TileFocus, ...]
    every: int
    mpp: float
    mpp_assumed: bool
    thumbnail: NDArray[np.uint8] | None
    notes: tuple[str, ...]

    @property
    def width_px(self) -> int:
        """Of the largest level."""
        return self.columns_px[-1]

    @property
    def height_px(self) -> int:
        """Of the largest level."""
        return self.rows_px[-1]


class _Waiting(NamedTuple):
    """A tile that has been read: its number in the list, its picture 1 3 h w at the judged scale, its tissue 1 1 h w."""

    number: int
    picture: Tensor
    tissue: Tensor


class _Sight(NamedTuple):
    """A slide as it is looked at: judged pixels to one of its own, its overview, the colour of its glass."""

    source: SlideSource
    scale: float
    overview: NDArray[np.uint8] | None
    glass: NDArray[np.float64] | None

    def inhabited(self, boxes: Sequence[Box], tile_px: int) -> list[bool]:
        """Which boxes show anything but glass on the overview, by the rule of the slide engine; all of them where nothing is known."""
        if self.overview is None or self.glass is None:
            return [True] * len(boxes)
        facts = self.source.facts
        cell = max(_CELL_PX, round(tile_px / self.scale) // _OVERVIEW_CELLS)
        mask = active_tiles(SlidePlan(facts.height_px, facts.width_px, cell, 0), self.overview, self.glass)
        return [
            bool(mask[y // cell : -(-(y + height) // cell), x // cell : -(-(x + width) // cell)].any()) for x, y, width, height in boxes
        ]

    def read(self, index: int, box: Box) -> _Waiting:
        """A tile as the judge takes it. Raises SlideReadError where it cannot be decoded."""
        x, y, width, height = box
        picture = _as_image(self.source.read(y, x, height, width))
        if self.scale != 1.0:
            size = [max(_LEAST_PX, round(side * self.scale)) for side in (height, width)]
            picture = F.interpolate(picture, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return _Waiting(index, picture, tissue_of(picture, self.glass))


@dataclass(frozen=True, kw_only=True, eq=False)
class FocusFile:
    """Judges one image or slide. Of its pixels no more than a batch of tiles is held, of an image file all.

    judge: tells the focus of tiles. progress: hears (done, total) tiles with tissue.
    """

    judge: FocusJudge
    options: FocusOptions
    thresholds: Thresholds
    progress: Progress = silent

    def __call__(self, path: Path) -> FocusMap:
        """Read and judge.

        Raises OSError or ImageFileError for a file that cannot be read (also for want of OpenSlide), is too coarse or too small; BadResult
        if the judge gives values that are not finite.
        """
        source = open_source(path, self.options.max_pixels)
        try:
            return self._judged(source, path)
        finally:
            source.close()

    def _judged(self, source: SlideSource, path: Path) -> FocusMap:
        facts, options = source.facts, self.options
        notes = list(facts.notes)
        mpp = options.mpp or facts.mpp
        if mpp is None:
            notes.append(f"pixel size unknown, {JUDGED_MPP} um assumed; --mpp sets it")
        scale = _scale(path, facts, mpp or JUDGED_MPP)
        overview = source.overview()
        glass = None if overview is None else glass_colour(overview.whole)
        if glass is None:
            notes.append("no glass to be told from tissue, so every tile was judged")
        rows, columns = (edges_px(side, round(options.tile_px / scale)) for side in (facts.height_px, facts.width_px))
        tiles = self._tiles(_Sight(source, scale, None if overview is None else overview.part, glass), rows, columns)
        bad = sum(tile.verdict == "unreadable" for tile in tiles)
        if bad:
            notes.append(f"{bad} tiles cannot be decoded and were not judged")
        return FocusMap(
            rows_px=tuple(rows),
            columns_px=tuple(columns),
            tiles=tuple(tiles),
            every=options.every,
            mpp=mpp or JUDGED_MPP,
            mpp_assumed=mpp is None,
            thumbnail=None if overview is None else overview.part,
            notes=tuple(notes),
        )

    def _tiles(self, sight: _Sight, rows: Sequence[int], columns: Sequence[int]) -> list[TileFocus]:
        """All tiles that are looked at, row by row, those with tissue judged."""
        boxes = list(boxes_of(rows, columns, self.options.every))
        tiles = [TileFocus(*box, None, None, 0.0, "glass") for box in boxes]
        waiting: dict[tuple[int, ...], list[_Waiting]] = {}
        todo = [index for index, there in enumerate(sight.inhabited(boxes, self.options.tile_px)) if there]
        for done, index in enumerate(todo, start=1):
            self.progress(done, len(todo))
            try:
                read = sight.read(index, boxes[index])
            except SlideReadError:
                tiles[index] = tiles[index]._replace(verdict="unreadable")
                continue
            share = float(read.tissue.mean())
            tiles[index] = tiles[index]._replace(tissue_share=share)
            if share >= LEAST_TISSUE:
                # tiles of the last row and column are of other sizes, so that up to four batches fill at a time
                alike = waiting.setdefault(tuple(read.picture.shape), [])
                alike.append(read)
                if len(alike) == self.options.batch_size:
                    self._settle(tiles, alike)
        for alike in waiting.values():
            self._settle(tiles, alike)
        return tiles

    def _settle(self, tiles: list[TileFocus], alike: list[_Waiting]) -> None:
        """Judge tiles of one size, and let go of them."""
        if not alike:
            return
        distances, transfers = self.judge(torch.cat([one.picture for one in alike]), torch.cat([one.tissue for one in alike]))
        for one, distance, ctf in zip(alike, distances.tolist(), transfers.tolist(), strict=True):
            tile = tiles[one.number]
            if not (math.isfinite(distance) and math.isfinite(ctf)):
                raise BadResult(f"the estimator gave values that are not finite for the tile at x={tile.x_px}, y={tile.y_px}")
            tiles[one.number] = tile._replace(defocus_um=distance, ctf=ctf, verdict=self.thresholds.verdict(distance, ctf))
        alike.clear()


def boxes_of(rows: Sequence[int], columns: Sequence[int], every: int) -> Iterator[Box]:
    """Every Nth tile between borders, row by row, as x, y, width, height; the first is in the middle of its N by N."""
    first = [min((every - 1) // 2, len(edges) - 2) for edges in (rows, columns)]
    for row in range(first[0], len(rows) - 1, every):
        for column in range(first[1], len(columns) - 1, every):
            yield columns[column], rows[row], columns[column + 1] - columns[column], rows[row + 1] - rows[row]


def tissue_of(picture: Tensor, glass: NDArray[np.float64] | None) -> Tensor:
    """How much of each place of a tile 1 3 h w is tissue, 1 1 h/4 w/4: 0 or 1 by the rule that tells glass on a slide's overview."""
    height, width = (max(1, side // _CELL_PX) for side in picture.shape[-2:])
    if glass is None:
        return torch.ones(1, 1, height, width)
    small = to_uint8(F.interpolate(picture, size=(height, width), mode="area"))
    plan = SlidePlan(_CELL_PX * height, _CELL_PX * width, _CELL_PX, 0)
    return torch.from_numpy(active_tiles(plan, small, glass)).float()[None, None]


def open_source(path: Path, max_pixels: int | None = None) -> SlideSource:
    """A slide by its reader; any other image held whole, without OpenSlide. Raises OSError or ImageFileError."""
    if not is_slide(path):
        return _HeldImage(path, max_pixels or DEFAULT_MAX_PIXELS)
    try:
        return open_slide(path, max_pixels=max_pixels or SLIDE_MAX_PIXELS)
    except ImportError as error:  # one file that cannot be read here, and no reason to call it unforeseen
        raise ImageFileError(f"{path}: {error}") from None


def _scale(path: Path, facts: SlideFacts, mpp: float) -> float:
    """Judged pixels to one of the file's. Raises ImageFileError for what is too coarse or too small to be judged."""
    scale = 1.0 if abs(mpp / JUDGED_MPP - 1) <= _SAME_MPP else mpp / JUDGED_MPP
    if mpp > COARSEST_MPP:
        raise ImageFileError(
            f"{path}: has pixels of {mpp:.3g} um, and focus cannot be told where they are larger than {COARSEST_MPP} um; "
            "give a finer scan or level, or --mpp if the file is wrong about it"
        )
    if round(min(facts.height_px, facts.width_px) * scale) < _LEAST_PX:
        raise ImageFileError(
            f"{path}: is {facts.width_px} x {facts.height_px} px; focus takes at least {math.ceil(_LEAST_PX / scale)} px on a side to judge"
        )
    return scale


def _as_image(pixels: Pixels) -> Tensor:
    """Pixels of a slide as an image 1 3 h w in [0, 1]."""
    values = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    return torch.from_numpy(values)[None].div_(np.iinfo(pixels.dtype).max)


class _HeldImage:
    """An image file as a slide, whatever its suffix: held whole, transparent pixels white."""

    background = (255, 255, 255)

    def __init__(self, path: Path, max_pixels: int):
        file = read_image_file(path, max_pixels=max_pixels)
        dtype: np.dtype[Any] = np.dtype(np.uint8 if file.bit_depth == 8 else np.uint16)
        values = file.image[0].permute(1, 2, 0).mul(np.iinfo(dtype).max).round()
        self._pixels: Pixels = values.numpy().astype(dtype)
        if file.alpha is not None:
            self._pixels = composited(np.concatenate([self._pixels, file.alpha[..., None]], axis=2), self.background)
        facts = SlideFacts(
            width_px=self._pixels.shape[1],
            height_px=self._pixels.shape[0],
            mpp=None,
            icc=None,
            bit_depth=file.bit_depth,
            stored_tile_px=(256, 256),
            levels=1,
            reader="image",
            notes=file.notes,
        )
        self.facts = believable(facts, file.pixel_um, file.pixel_um)

    def read(self, y_px: int, x_px: int, height_px: int, width_px: int) -> Pixels:
        """Pixels h w 3."""
        return self._pixels[y_px : y_px + height_px, x_px : x_px + width_px]

    def overview(self) -> Overview:
        """The image made smaller."""
        from PIL import Image

        eight = self._pixels if self._pixels.dtype == np.uint8 else (self._pixels >> 8).astype(np.uint8)
        size = overview_size(self.facts.width_px, self.facts.height_px)
        return Overview(*[np.asarray(Image.fromarray(eight).resize(size, Image.Resampling.BOX))] * 2)

    def close(self) -> None:
        """Nothing to let go of."""
