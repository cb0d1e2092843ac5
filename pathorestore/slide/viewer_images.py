"""What the viewer shows: slides and image files, opened, and cut into deep-zoom tiles."""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pathorestore.data.slide_crops import import_openslide, slide_mpp
from pathorestore.image import to_uint8
from pathorestore.pipelines.contact_sheet import colour_ramp
from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS, ImageFile, ImageFileError, read_image_file
from pathorestore.pipelines.pixel_size import LARGEST_MICROSCOPE_UM
from pathorestore.pipelines.provenance import Provenance, read_provenance
from pathorestore.pipelines.raster import check_size, finite_positive
from pathorestore.slide.source import Region, SlideReadError, open_slide

if TYPE_CHECKING:
    from openslide import AbstractSlide
    from openslide.deepzoom import DeepZoomGenerator
    from PIL.Image import Image

TILE_PX = 256
MOST_LAYERS = 99
_JPEG_QUALITY = 85
_LARGEST_TOP_PX = 100_000_000  # of a slide's smallest level: the first tiles are made of all of it, 0.7 GB while they are
_LAYER_SIDE_PX, _LAYER_PX = 2048, 64_000_000  # small maps are enlarged to the first: stretching is exact then; the second is the most
_SHAPE_TOLERANCE = 0.01

Recolour = Callable[["Image"], "Image"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One image as tiles of at most 256 x 256 px, at full size on the last level and at 1 px on level 0, without overlap.

    key: names it in paths and URLs, and is never taken from a file name. label: for readers. suffix: jpg, or png where `alpha` holds the
    opacity. mpp: side of a pixel in um. legend: lowest and highest stored value of a map that was given false colours.
    """

    key: str
    label: str
    path: Path
    tiles: "DeepZoomGenerator"
    alpha: "DeepZoomGenerator | None" = None
    recolour: Recolour = lambda tile: tile
    suffix: str = "jpg"
    mpp: float | None = None
    legend: tuple[int, int] | None = None

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.tiles.level_dimensions[-1]

    @property
    def addresses(self) -> Iterator[tuple[int, int, int]]:
        """Level, column and row of every tile, smallest level first."""
        for level, (columns, rows) in enumerate(self.tiles.level_tiles):
            yield from ((level, column, row) for row in range(rows) for column in range(columns))

    def has(self, level: int, column: int, row: int) -> bool:
        """Whether there is such a tile."""
        if not 0 <= level < self.tiles.level_count:
            return False
        columns, rows = self.tiles.level_tiles[level]
        return 0 <= column < columns and 0 <= row < rows

    def tile(self, level: int, column: int, row: int) -> bytes:
        """One tile as the bytes of its file. Raises ImageFileError where the slide is damaged."""
        openslide, out = import_openslide(), io.BytesIO()
        try:
            tile = self.recolour(self._cut(self.tiles, level, (column, row)))
            if self.alpha is not None:
                tile.putalpha(self._cut(self.alpha, level, (column, row)).getchannel(0))
        except openslide.OpenSlideError as error:
            raise ImageFileError(f"{self.path}: OpenSlide says {error}; the file is damaged, so take an intact copy of it") from None
        tile.info.clear()  # a profile in each of them would outweigh the pixels
        tile.save(out, "PNG") if self.suffix == "png" else tile.save(out, "JPEG", quality=_JPEG_QUALITY)
        return out.getvalue()

    @staticmethod
    def _cut(tiles: "DeepZoomGenerator", level: int, address: tuple[int, int]) -> "Image":
        tile, size = tiles.get_tile(level, address), tiles.get_tile_dimensions(level, address)
        return tile if tile.size == size else tile.resize(size)  # narrow ones at the edge may come out a pixel off


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """All that a page shows; closes its slides when left as a context.

    record: how the image was made, None without one. trouble: why the record could not be read. mpp: side of a pixel of `restored` in um.
    """

    restored: Picture
    degraded: Picture | None
    layers: tuple[Picture, ...]
    record: Provenance | None
    trouble: str
    slides: ExitStack

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """From the bottom to the top."""
        return (*([self.degraded] if self.degraded else []), self.restored, *self.layers)

    @property
    def mpp(self) -> float | None:
        """Side of a pixel of `restored` in um, from either image or the record."""
        if self.record and finite_positive(self.record.pixel_um):
            return self.record.pixel_um
        if self.restored.mpp or not self.degraded or not self.degraded.mpp:
            return self.restored.mpp
        return self.degraded.mpp * self.degraded.size_px[0] / self.restored.size_px[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.slides.close()


def open_view(
    restored: Path, *, compare: Path | None = None, layers: Mapping[str, Path] | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> View:
    """Open an image, the one it was made from, and maps to lay over it; no tile is made yet.

    Whatever OpenSlide reads is read by region; other files are decoded whole, up to `max_pixels`. Layers are stretched over the image, and
    gray ones get false colours. Raises ImportError without OpenSlide, OSError for files that cannot be opened, ImageFileError for files
    that are no images, damaged, or of another shape than `restored`, ValueError for too many layers.
    """
    if len(layers or {}) > MOST_LAYERS:
        raise ValueError(f"{len(layers or {})} layers were named; a view has at most {MOST_LAYERS}")
    with ExitStack() as stack:
        main = _open_picture(restored, "restored", stack, max_pixels)
        record, trouble = _record(restored)
        before = _open_picture(compare, "degraded", stack, max_pixels) if compare else None
        region = record.parameters.get("region") if record else None
        if before and isinstance(region, str) and before.size_px != main.size_px:
            before = _of_region(before.path, region, max_pixels)
        if before:
            _check_shape(main, before)
        maps = tuple(
            _open_layer(path, f"layer{number}", label, main.size_px, max_pixels)
            for number, (label, path) in enumerate((layers or {}).items(), 1)
        )
        return View(restored=main, degraded=before, layers=maps, record=record, trouble=trouble, slides=stack.pop_all())


def shown_name(path: Path) -> str:
    """The name of a file as text, whatever bytes it holds."""
    return path.name.encode("utf-8", "backslashreplace").decode()


def _open_picture(path: Path, key: str, stack: ExitStack, max_pixels: int) -> Picture:
    openslide = import_openslide()
    with path.open("rb"):
        pass  # an OSError here tells what OpenSlide would not
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor is None:
        return _of_file(read_image_file(path, max_pixels=max_pixels), key)
    try:
        slide = stack.enter_context(openslide.OpenSlide(path))
    except openslide.OpenSlideError as error:
        if vendor == "generic-tiff":  # such as 16 bits, which OpenSlide refuses
            return _of_file(read_image_file(path, max_pixels=max_pixels), key)
        raise ImageFileError(f"{path}: OpenSlide says {error}; the file is damaged, so take an intact copy of it") from None
    width, height = slide.level_dimensions[-1]
    if width * height > _LARGEST_TOP_PX:
        reason = f"its smallest level has {width} x {height} px, and a view is made from the top"
        raise ImageFileError(f"{path}: {reason}; save it as a pyramid (vips tiffsave --tile --pyramid)")
    mpp = slide_mpp(slide)
    return Picture(
        key=key,
        label=shown_name(path),
        path=path,
        tiles=_tiles(slide),
        recolour=_to_srgb(lambda: slide.color_profile),
        mpp=mpp if mpp and mpp <= LARGEST_MICROSCOPE_UM else None,  # larger ones are a printer's resolution
    )


def _of_region(path: Path, region: str, max_pixels: int) -> Picture:
    """The part of a slide that was restored, x,y,width,height in pixels of its largest level."""
    from PIL import Image, ImageCms

    source = open_slide(path)
    try:
        part = Region(source, *map(int, region.split(",")))
        check_size(part.facts.width_px, part.facts.height_px, max_pixels)
        pixels = part.read(0, 0, part.facts.height_px, part.facts.width_px)
    except (ValueError, TypeError, SlideReadError) as error:
        raise ImageFileError(f"{path}: its part {region}, of which the other image was made, cannot be shown: {error}") from None
    finally:
        source.close()
    icc = part.facts.icc
    eight = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    return Picture(
        key="degraded",
        label=shown_name(path),
        path=path,
        tiles=_tiles(import_openslide().ImageSlide(Image.fromarray(eight))),
        recolour=_to_srgb(lambda: ImageCms.ImageCmsProfile(io.BytesIO(icc)) if icc else None),
        mpp=part.facts.mpp,
    )


def _of_file(file: ImageFile, key: str) -> Picture:
    from PIL import Image, ImageCms

    picture = Image.fromarray(to_uint8(file.image))
    return Picture(
        key=key,
        label=shown_name(file.path),
        path=file.path,
        tiles=_tiles(import_openslide().ImageSlide(picture)),
        recolour=_to_srgb(lambda: ImageCms.ImageCmsProfile(io.BytesIO(file.icc)) if file.icc else None),
        mpp=file.pixel_um,
    )


def _open_layer(path: Path, key: str, label: str, size_px: tuple[int, int], max_pixels: int) -> Picture:
    from PIL import Image

    file = read_image_file(path, max_pixels=max_pixels)
    pixels, legend = _false_colours(file) if file.mode == "gray" else (to_uint8(file.image), None)
    alpha = None
    if file.alpha is not None:
        opacity = (file.alpha >> (file.bit_depth - 8)).astype(np.uint8)
        alpha = _stretched(Image.fromarray(opacity), size_px).convert("RGB")
    openslide = import_openslide()
    return Picture(
        key=key,
        label=label.encode("utf-8", "backslashreplace").decode(),
        path=path,
        tiles=_tiles(openslide.ImageSlide(_stretched(Image.fromarray(pixels), size_px))),
        alpha=None if alpha is None else _tiles(openslide.ImageSlide(alpha)),
        suffix="png",
        legend=legend,
    )


def _false_colours(file: ImageFile) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Gray values on a colour ramp: 8 bits from 0 to 255, 16 bits, which are rarely used to the full, from 0 to the highest there is."""
    gray, full = file.image[0, 0].numpy(), 2**file.bit_depth - 1
    highest = 255 if file.bit_depth == 8 else max(1, round(float(gray.max()) * full))
    ramp = to_uint8(colour_ramp(torch.linspace(0, 1, 256)[None, None, None]))[0]
    return ramp[np.rint(gray * (255 * full / highest)).astype(np.uint8)], (0, highest)


def _stretched(layer: "Image", size_px: tuple[int, int]) -> "Image":
    """A layer in the shape of the image below it, no larger than that one."""
    from PIL.Image import Resampling

    width, height = size_px
    factor = max(layer.width / width, layer.height / height, _LAYER_SIDE_PX / max(size_px))
    factor = min(1.0, factor, (_LAYER_PX / (width * height)) ** 0.5)
    wanted = (max(1, round(width * factor)), max(1, round(height * factor)))
    return layer if layer.size == wanted else layer.resize(wanted, Resampling.BILINEAR)


def _tiles(slide: "AbstractSlide") -> "DeepZoomGenerator":
    from openslide.deepzoom import DeepZoomGenerator

    return DeepZoomGenerator(slide, tile_size=TILE_PX, overlap=0, limit_bounds=False)


def _to_srgb(profile: Callable[[], Any]) -> Recolour:
    """What turns tiles with this ICC profile (None: none) into sRGB; a profile that cannot be used is passed over, as viewers do."""
    from PIL import ImageCms

    try:
        found = profile()
        if found is None or found.profile.xcolor_space.strip() != "RGB":
            return lambda tile: tile
        transform = ImageCms.buildTransform(found, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError):
        return lambda tile: tile
    return lambda tile: ImageCms.applyTransform(tile, transform) or tile


def _check_shape(restored: Picture, degraded: Picture) -> None:
    (width, height), (before_width, before_height) = restored.size_px, degraded.size_px
    if abs(width * before_height / (height * before_width) - 1) > _SHAPE_TOLERANCE:
        sizes = f"it has {before_width} x {before_height} px, and {restored.path} {width} x {height} px"
        raise ImageFileError(f"{degraded.path}: does not show the same field: {sizes}; name the image that the other was made from")


def _record(path: Path) -> tuple[Provenance | None, str]:
    try:
        return read_provenance(path), ""
    except ImageFileError as error:  # no reason not to look at the slide
        return None, "" if "provenance" not in str(error) else str(error).removeprefix(f"{path}: ")
