"""The readers behind `open_slide`."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathorestore.data.slide_crops import import_openslide, positive
from pathorestore.data.slide_files import SLIDE_SUFFIXES
from pathorestore.pipelines.image_file import READ_SUFFIXES, read_image_file
from pathorestore.pipelines.raster import ImageFileError, matching_icc, sniff
from pathorestore.pipelines.tiff_file import check_samples, check_whole, holds_pyramid, tiff_pixel_um
from pathorestore.slide.rows import Pixels
from pathorestore.slide.source import Overview, SlideFacts, SlideReadError, SlideSource, believable, composited, overview_size

if TYPE_CHECKING:
    from openslide import OpenSlide

_CACHE_BYTES = 64 << 20
_MOST_OVERVIEW_PX = 100_000_000  # of the level that an overview is made from
_MOST_PIECE_PX = 200_000_000  # of what cannot be decoded in parts: 0.6 GB
_LARGEST_TILE_PX = 4096  # larger ones are strips
_ALPHA_NOTE = "transparent pixels show white, as where a scanner leaves out glass"
_CMYK, _PALETTE, _MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _YCBCR = 5, 3, 0, 1, 2, 6


def is_slide(path: Path) -> bool:
    """Whether a file is one for the slide engine: by its suffix, or a TIFF with a pyramid in it. A file that cannot be read is none."""
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return True
    if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
        return False
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            return holds_pyramid(tiff)
    except Exception:  # whoever reads it will say what is wrong
        return False


def opened(path: Path) -> SlideSource:
    """The source for a file. See `open_slide`."""
    if path.suffix.lower() in READ_SUFFIXES and path.suffix.lower() not in (".tif", ".tiff"):
        return PlainImage(path)
    # a scanner's own format is OpenSlide's business: tifffile would read what is left of a torn one
    tiff = None if path.suffix.lower() in SLIDE_SUFFIXES else _tiff_of(path)
    if tiff is not None:
        page = tiff.pages[0]
        deep_or_ome = int(page.bitspersample) > 8 or tiff.is_ome
        if deep_or_ome or not _openslide_knows(path):
            return TiffSlide(path, tiff)
        photometric = int(page.photometric)
        tiff.close()
        if photometric in (_CMYK, _PALETTE):
            raise ImageFileError(f"{path}: holds {page.photometric.name} pixels, which slides cannot; convert it to RGB first")
    return OpenSlideSource(path)


class OpenSlideSource:
    """A slide through OpenSlide, which knows most vendors' formats; 8 bits."""

    def __init__(self, path: Path):
        self.path = path
        self._slide = self._open()
        properties = self._slide.properties
        width, height = self._slide.dimensions
        colour = properties.get("openslide.background-color", "ffffff")
        self.background = (int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16))
        profile = self._slide.color_profile
        icc, notes = matching_icc(profile.tobytes() if profile is not None else None, 3)
        stored = [int(properties.get(f"openslide.level[0].tile-{side}", 256)) for side in ("height", "width")]
        facts = SlideFacts(
            width_px=width,
            height_px=height,
            mpp=None,
            icc=icc,
            bit_depth=8,
            stored_tile_px=(stored[0], stored[1]) if max(stored) <= _LARGEST_TILE_PX else (256, 256),
            levels=self._slide.level_count,
            reader="openslide",
            notes=notes,
        )
        mpp_x, mpp_y = (positive(properties.get(f"openslide.mpp-{axis}", "")) for axis in "xy")
        self.facts = believable(facts, mpp_x, mpp_y)

    def read(self, y_px: int, x_px: int, height_px: int, width_px: int) -> Pixels:
        """Pixels h w 3 uint8."""
        try:
            region = self._slide.read_region((x_px, y_px), 0, (width_px, height_px))
        except import_openslide().OpenSlideError as error:
            self._slide.close()  # it answers no more
            self._slide = self._open()
            raise SlideReadError(str(error)) from None
        return composited(np.asarray(region), self.background)

    def overview(self) -> Overview | None:
        """From the smallest level that is fine enough."""
        size = overview_size(*self._slide.dimensions)
        level = self._slide.get_best_level_for_downsample(self._slide.dimensions[0] / size[0])
        width, height = self._slide.level_dimensions[level]
        if width * height > _MOST_OVERVIEW_PX:
            return None
        try:
            thumbnail = self._slide.get_thumbnail(size)
        except import_openslide().OpenSlideError:
            self._slide.close()
            self._slide = self._open()
            return None
        return Overview(*[np.asarray(thumbnail.convert("RGB"))] * 2)

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()

    def _open(self) -> "OpenSlide":
        openslide = import_openslide()
        try:
            slide = openslide.OpenSlide(self.path)
        except openslide.OpenSlideUnsupportedFormatError:
            raise ImageFileError(
                f"{self.path}: is no slide that OpenSlide knows, or is torn; expected SVS, NDPI, MRXS, a tiled TIFF or the like, whole"
            ) from None
        except openslide.OpenSlideError as error:
            raise ImageFileError(f"{self.path}: damaged or truncated slide (OpenSlide says {error}); copy or export it again") from None
        slide.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
        return slide


class TiffSlide:
    """The first page of a TIFF through tifffile, tile by tile: 16 bits, OME-TIFF, and what OpenSlide does not know. Gray becomes RGB.

    Pieces that are too large to be read anew for every row of tiles, such as an image in one strip, are kept while they are needed.
    """

    background = (255, 255, 255)

    def __init__(self, path: Path, tiff: Any):
        self.path, self._tiff = path, tiff
        page = self._page = tiff.pages[0]
        try:
            check_samples(page)
            check_whole(page, tiff.filehandle)
            if int(page.photometric) not in (_MIN_IS_BLACK, _RGB, _YCBCR) or page.planarconfig != 1:
                raise ImageFileError(f"holds {page.photometric.name} pixels or separate planes; expected gray or RGB, planes interleaved")
            if int(page.bitspersample) not in (8, 16):
                raise ImageFileError(f"holds samples of {page.bitspersample} bits; expected 8 or 16")
            if len(tiff.series[0].levels[0].pages) > 1:
                told = " x ".join(f"{axis} {size}" for axis, size in zip(tiff.series[0].axes, tiff.series[0].shape, strict=True))
                raise ImageFileError(f"holds {told}, planes apart; expected one gray or RGB image, so save one plane, colours interleaved")
            self._piece_px = (
                (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
            )
            if self._piece_px[0] * self._piece_px[1] > _MOST_PIECE_PX:
                told = f"{self._piece_px[1]} x {self._piece_px[0]} px"
                raise ImageFileError(
                    f"is stored in pieces of {told}, each of which must be decoded whole; save it in tiles (vips tiffsave --tile)"
                )
        except ImageFileError as error:
            tiff.close()
            raise ImageFileError(f"{path}: {error}") from None
        gray = int(page.photometric) == _MIN_IS_BLACK
        icc, notes = matching_icc(page.iccprofile, 3)
        notes += ("gray slide: stored as RGB",) if gray else ()
        notes += (_ALPHA_NOTE,) if page.samplesperpixel in (2, 4) else ()
        self._premultiplied = bool(page.extrasamples) and int(page.extrasamples[0]) == 1
        self._pieces: dict[int, Pixels] = {}
        facts = SlideFacts(
            width_px=page.imagewidth,
            height_px=page.imagelength,
            mpp=None,
            icc=icc,
            bit_depth=int(page.bitspersample),
            stored_tile_px=self._piece_px if max(self._piece_px) <= _LARGEST_TILE_PX else (256, 256),
            levels=len(tiff.series[0].levels),
            reader="tifffile",
            notes=notes,
        )
        mpp = tiff_pixel_um(page)
        self.facts = believable(facts, mpp, mpp)

    def read(self, y_px: int, x_px: int, height_px: int, width_px: int) -> Pixels:
        """Pixels h w 3 of the slide's depth."""
        rows, columns = self._piece_px
        across = -(-self._page.imagewidth // columns)
        out = np.empty((height_px, width_px, 3), self.facts.dtype)
        for row in range(y_px // rows, -(-(y_px + height_px) // rows)):
            for column in range(x_px // columns, -(-(x_px + width_px) // columns)):
                tile = self._kept(row * across + column)
                top, left = row * rows - y_px, column * columns - x_px
                y, x = max(top, 0), max(left, 0)
                part = tile[y - top : height_px - top, x - left : width_px - left]
                out[y : y + part.shape[0], x : x + part.shape[1]] = part
        return out

    def overview(self) -> Overview | None:
        """From the smallest level that is fine enough."""
        levels = self._tiff.series[0].levels
        size = overview_size(self.facts.width_px, self.facts.height_px)
        fine = [level for level in levels if level.pages[0].imagewidth >= size[0]]
        page = fine[-1].pages[0]
        if page.imagewidth * page.imagelength > _MOST_OVERVIEW_PX:
            return None
        from PIL import Image

        try:
            pixels = self._rgb(page.asarray())
        except Exception:  # a damaged overview is none
            return None
        eight = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
        return Overview(*[np.asarray(Image.fromarray(eight).resize(size, Image.Resampling.BOX))] * 2)

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()

    def _kept(self, index: int) -> Pixels:
        """A piece, decoded once while rows of tiles go through it if it is large."""
        if self.facts.stored_tile_px == self._piece_px:
            return self._decoded(index)
        if index not in self._pieces:
            while len(self._pieces) > 1:
                del self._pieces[next(iter(self._pieces))]
            self._pieces[index] = self._decoded(index)
        return self._pieces[index]

    def _decoded(self, index: int) -> Pixels:
        page = self._page
        if index >= len(page.dataoffsets) or not page.databytecounts[index]:  # never written: a sparse file's background
            return np.full((*self._piece_px, 3), np.iinfo(self.facts.dtype).max, self.facts.dtype)
        handle = self._tiff.filehandle
        handle.seek(page.dataoffsets[index])
        data = handle.read(page.databytecounts[index])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                decoded, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        except Exception as error:  # damaged data makes decoders raise almost anything
            raise SlideReadError(" ".join(str(error).split())) from None
        if decoded is None:
            raise SlideReadError("no data")
        return self._rgb(decoded[0])

    def _rgb(self, pixels: Pixels) -> Pixels:
        """Any of h w, h w 1..4 (or with leading axes of length 1) as h w 3, over the background."""
        samples = pixels.reshape(pixels.shape[-3:]) if pixels.ndim > 2 else pixels[..., None]
        colours = samples if samples.shape[-1] >= 3 else np.concatenate([np.repeat(samples[..., :1], 3, -1), samples[..., 1:]], axis=-1)
        if colours.shape[-1] == 4:
            return composited(colours, self.background, premultiplied=self._premultiplied)
        return np.ascontiguousarray(colours)


class PlainImage:
    """A PNG, JPEG or BMP as a slide: held whole, for files that fit."""

    background = (255, 255, 255)

    def __init__(self, path: Path):
        from pathorestore.slide.rows import Levels

        file = read_image_file(path)
        levels = Levels(0.0, 1.0)
        dtype = np.dtype(np.uint8 if file.bit_depth == 8 else np.uint16)
        self._pixels = levels.to_pixels(levels.encode(file.image)[0], dtype)
        if file.alpha is not None:
            self._pixels = composited(np.concatenate([self._pixels, file.alpha[..., None]], axis=2), self.background)
        notes = (*file.notes, *(("gray image: stored as RGB",) if file.mode == "gray" else ()))
        notes += (_ALPHA_NOTE,) if file.has_alpha else ()
        icc, said = matching_icc(file.icc, 3)
        facts = SlideFacts(
            width_px=self._pixels.shape[1],
            height_px=self._pixels.shape[0],
            mpp=None,
            icc=icc,
            bit_depth=file.bit_depth,
            stored_tile_px=(256, 256),
            levels=1,
            reader="image",
            notes=notes + said,
        )
        self.facts = believable(facts, file.pixel_um, file.pixel_um)

    def read(self, y_px: int, x_px: int, height_px: int, width_px: int) -> Pixels:
        """Pixels h w 3."""
        return self._pixels[y_px : y_px + height_px, x_px : x_px + width_px]

    def overview(self) -> Overview | None:
        """The image made smaller."""
        from PIL import Image

        eight = self._pixels if self._pixels.dtype == np.uint8 else (self._pixels >> 8).astype(np.uint8)
        size = overview_size(self.facts.width_px, self.facts.height_px)
        return Overview(*[np.asarray(Image.fromarray(eight).resize(size, Image.Resampling.BOX))] * 2)

    def close(self) -> None:
        """Nothing to let go of."""


def _tiff_of(path: Path) -> Any:
    """The open TIFF that a file is, None if it is none that tifffile reads."""
    import tifffile

    with path.open("rb") as file:
        try:
            if sniff(file) != "TIFF":
                return None
        except ImageFileError:
            return None
    try:
        tiff = tifffile.TiffFile(path)
    except Exception:
        return None  # OpenSlide may know better
    try:
        check_whole(tiff.pages[0], tiff.filehandle)
    except Exception as error:
        tiff.close()
        if isinstance(error, ImageFileError):
            raise ImageFileError(f"{path}: {error}") from None
        return None
    return tiff


def _openslide_knows(path: Path) -> bool:
    return import_openslide().OpenSlide.detect_format(path) is not None
