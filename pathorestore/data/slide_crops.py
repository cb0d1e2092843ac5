"""Tissue patches straight from whole slides, by OpenSlide, at a pixel size of one's choice."""

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pathorestore.data.batches import SharpBatch
from pathorestore.data.drawing import CropConfig, Draws, below, turned
from pathorestore.data.image_cache import ArrayCache, UnreadableImage
from pathorestore.data.manifest import Row
from pathorestore.image import from_uint8

if TYPE_CHECKING:
    from openslide import OpenSlide

_THUMBNAIL_PX = 512
_LARGEST_OVERVIEW_PX = 100_000_000  # of the level that the thumbnail is made from: 0.4 GB while it is read
_LEAST_SATURATION = 10  # of 255; what glass has by dust and compression
_DARKEST = 32
_OPEN_SLIDES, _TISSUE_MB = 64, 64
_log = logging.getLogger(__name__)


class SlideFacts(NamedTuple):
    """Width and height of the largest level, and the side of its pixels in um if anybody knows."""

    width_px: int
    height_px: int
    mpp: float | None


class SlideCrops(Dataset[SharpBatch]):
    """Item `key` is a SharpBatch without its batch axis that depends on (seed, key) alone, whatever the number of workers.

    rows: whole slides (svs, ndpi, mrxs, tif, ...); paths are taken below `folder`, and `mpp` of a row goes before what the slide says.
    Slides are drawn evenly, and the middle of a patch evenly from the slide's tissue: what is more saturated than Otsu's threshold on a
    thumbnail. Patches are read from the finest level needed and averaged down to `target_mpp`; None takes the largest level as it is.
    cache_mb bounds the decoded slide tiles that each process keeps.

    Raises ImportError without OpenSlide; UnreadableImage for files that are no slides, slides of unknown pixel size where one is asked
    for, slides smaller than a patch, without tissue, or damaged where a patch is read, unless such files are to be skipped.
    """

    def __init__(self, rows: Sequence[Row], config: CropConfig, *, folder: Path = Path(), seed: int = 0):
        import_openslide()
        self.config, self.rows = config, tuple(rows)
        self.paths = [folder / row.path for row in rows]
        self._slides, self._tissue = OpenSlides(config.cache_mb), ArrayCache(_TISSUE_MB)
        # slides that cannot serve are found before training starts, not when their turn comes
        odds = [self._odds(which) for which in range(len(self.rows))]
        if not any(odds):
            raise ValueError(f"none of {len(self.rows)} slides serves; the log says why for each")
        self._draws = Draws(odds, config, seed)

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, key: int) -> SharpBatch:
        return SharpBatch(self._draws(key, self._cut), torch.tensor(key), torch.tensor(self.config.margin_px))

    def _odds(self, which: int) -> float:
        path = self.paths[which]
        try:
            self._facts(which)
        except UnreadableImage as error:
            if self.config.on_unreadable == "stop":
                raise
            _log.warning("passed over: %s", error)
            return 0.0
        finally:
            self._slides.close(path)
        return 1.0

    def _facts(self, which: int) -> SlideFacts:
        """Size and pixel size of a slide that a patch fits into."""
        path, slide = self.paths[which], self._slides.get(self.paths[which])
        facts = SlideFacts(*slide.dimensions, self.rows[which].mpp or slide_mpp(slide))
        if self.config.target_mpp and not facts.mpp:
            reason = "neither the slide nor the manifest's column mpp says how large a pixel is, which target_mpp needs"
            raise UnreadableImage.of(path, reason)
        if min(facts[:2]) < self.config.source_px(facts.mpp):
            reason = f"{facts.width_px} x {facts.height_px} px are less than a patch, which takes {self.config.source_px(facts.mpp):.0f} px"
            raise UnreadableImage.of(path, reason)
        return facts

    def _cut(self, which: int, generator: torch.Generator) -> Tensor:
        path, (width, height, mpp) = self.paths[which], self._facts(which)
        slide = self._slides.get(path)
        with naming(path, self._slides):
            cells = self._tissue.get(path, lambda: tissue_cells(_thumbnail(slide, path)))
            if not len(cells):
                raise UnreadableImage.of(path, "no tissue was found on it")
            cell_px = max(1.0, max(width, height) / _THUMBNAIL_PX)
            y, x = ((float(cell) + float(torch.rand(1, generator=generator))) * cell_px for cell in cells[below(len(cells), generator)])
            factor = self.config.zoom[below(len(self.config.zoom), generator)]
            source = min(self.config.source_px(mpp) / factor, width, height)
            left, top = (min(max(middle - source / 2, 0.0), side - source) for middle, side in ((x, width), (y, height)))
            pixels = read_patch(slide, left, top, source_px=source, side_px=self.config.side_px)
        patch = from_uint8(pixels)[0]
        return turned(patch, below(8, generator)) if self.config.augment else patch


class OpenSlides:
    """Open slides of this process: the ones used last. Handles are never shared with another process, forked or spawned."""

    def __init__(self, cache_mb: int):
        self.cache_mb = cache_mb
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[Path, OpenSlide] = OrderedDict()
        self._tiles: Any = None

    def __reduce__(self) -> tuple[type["OpenSlides"], tuple[int]]:
        return OpenSlides, (self.cache_mb,)

    def get(self, path: Path) -> "OpenSlide":
        """The slide at a path. Raises UnreadableImage."""
        openslide = import_openslide()
        if self._process != os.getpid():
            self._forget()  # what a fork has inherited is its parent's
        if path not in self._open:
            if not path.exists():
                raise UnreadableImage.of(path, "there is no such file")
            try:
                self._open[path] = openslide.OpenSlide(path)
            except openslide.OpenSlideError as error:
                raise UnreadableImage.of(path, f"OpenSlide says {str(error) or type(error).__name__}") from None
            self._tiles = self._tiles or openslide.OpenSlideCache(self.cache_mb << 20)
            self._open[path].set_cache(self._tiles)
        self._open.move_to_end(path)
        while len(self._open) > _OPEN_SLIDES:
            self._open.popitem(last=False)[1].close()
        return self._open[path]

    def close(self, path: Path) -> None:
        """Close a slide if it is open."""
        if path in self._open:
            self._open.pop(path).close()


@contextmanager
def naming(path: Path, slides: OpenSlides) -> Iterator[None]:
    """Turn what OpenSlide says of a damaged slide into an UnreadableImage; the slide is closed, for it answers no more."""
    openslide = import_openslide()
    try:
        yield
    except openslide.OpenSlideError as error:
        slides.close(path)
        raise UnreadableImage.of(path, f"OpenSlide says {error}") from None


def import_openslide() -> ModuleType:
    """The module `openslide`. Raises ImportError that says how to get it."""
    try:
        import openslide
    except ImportError as error:
        raise ImportError(f'reading slides needs OpenSlide ({error}); pip install "pathorestore[slides]"') from None
    return openslide


def read_patch(slide: "OpenSlide", left_px: float, top_px: float, *, source_px: float, side_px: int) -> NDArray[np.uint8]:
    """A square of `source_px` of the largest level, from (left, top) in its pixels, as side side 3 uint8.

    It is read from the coarsest level that is fine enough and averaged down; only where the slide has no such detail is it enlarged.
    What the scanner left empty has the slide's background colour.
    """
    from PIL import Image

    wanted = source_px / side_px
    level = slide.get_best_level_for_downsample(1.001 * wanted)
    coarseness = slide.level_downsamples[level]
    span = source_px / coarseness
    if abs(span - side_px) < 0.5:
        span = float(side_px)  # a pixel is a pixel: resampling would only soften it
    # whole pixels of the level, between which OpenSlide would interpolate
    corner = tuple(round(round(start / coarseness) * coarseness) for start in (left_px, top_px))
    whole = math.ceil(span - 1e-6)
    region = slide.read_region((corner[0], corner[1]), level, (whole, whole))
    patch = Image.new("RGB", region.size, f"#{slide.properties.get('openslide.background-color', 'ffffff')}")
    patch.paste(region, None, region)
    if span != side_px:
        how = Image.Resampling.BOX if span > side_px else Image.Resampling.BICUBIC
        patch = patch.resize((side_px, side_px), how, box=(0, 0, span, span))
    return np.array(patch)


def tissue_cells(thumbnail: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Row and column (n 2) of the pixels of a thumbnail h w 3 that show tissue: those above Otsu's threshold of saturation."""
    import cv2

    brightest, darkest = thumbnail.max(axis=2), thumbnail.min(axis=2)
    saturation = (255.0 * (brightest - darkest) / np.maximum(brightest, 1)).astype(np.uint8)
    saturation[brightest < _DARKEST] = 0  # black has no colour, but its noise has
    threshold, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return np.argwhere(saturation > max(threshold, _LEAST_SATURATION)).astype(np.uint16)


def slide_mpp(slide: "OpenSlide") -> float | None:
    """Side of a pixel in um as the slide says: its own property, else by the objective's power (10 um over it)."""
    mpp, power = (positive(slide.properties.get(name, "")) for name in ("openslide.mpp-x", "openslide.objective-power"))
    return mpp or (10 / power if power else None)


def positive(text: str) -> float | None:
    """The number that a text holds, None for anything but a positive finite one."""
    with suppress(ValueError):
        value = float(text)
        return value if math.isfinite(value) and value > 0 else None
    return None


def _thumbnail(slide: "OpenSlide", path: Path) -> NDArray[np.uint8]:
    level = slide.get_best_level_for_downsample(max(slide.dimensions) / _THUMBNAIL_PX)
    width, height = slide.level_dimensions[level]
    if width * height > _LARGEST_OVERVIEW_PX:
        reason = f"it has no small overview, only a level of {width} x {height} px; save it as a pyramid (vips tiffsave --tile --pyramid)"
        raise UnreadableImage.of(path, reason)
    return np.array(slide.get_thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX)))
