"""Decoded pixels between a file and the image contract: gray or RGB, 8 or 16 bits, with what the file said beside them."""

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.unsignedinteger[Any]]

# Twice what Pillow warns about: at that size the float image alone takes 2 GB.
DEFAULT_MAX_PIXELS = 178_956_970

_ICC_CHANNELS = {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}


class ImageFileError(ValueError):
    """A file that cannot be read as, or written from, an image; the message names the file, the reason and the remedy."""


class OutputFileError(ImageFileError):
    """One that is about the output: it exists already, has a suffix that is not written, cannot hold what it should."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Raster:
    """What a decoder hands over.

    pixels: h w c, uint8 or uint16, c = 1 (gray) or 3 (RGB). alpha: h w of the same dtype, or None. icc: profile that belongs to these
    pixels. pixel_um: side of a pixel. notes: one sentence for each thing that was changed on the way in.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    icc: bytes | None = None
    pixel_um: float | None = None
    notes: tuple[str, ...] = ()


def check_size(width_px: int, height_px: int, max_pixels: int) -> None:
    """Raise ImageFileError for an empty image or one above the limit; called with the header's numbers, before any pixel is decoded."""
    if width_px < 1 or height_px < 1:
        raise ImageFileError(f"has no pixels ({width_px} x {height_px})")
    if width_px * height_px > max_pixels:
        raise ImageFileError(
            f"claims {width_px} x {height_px} = {width_px * height_px:,} pixels, above the limit of {max_pixels:,}; "
            f"if you trust the file, allow it with --max-pixels {width_px * height_px}"
        )


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels (h w ...) the way EXIF / TIFF orientation 1-8 says they are meant; unknown values leave them alone."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turned(raster: Raster, orientation: int) -> Raster:
    """The raster with pixels and alpha upright."""
    if orientation not in range(2, 9):
        return raster
    alpha = None if raster.alpha is None else upright(raster.alpha, orientation)
    return Raster(pixels=upright(raster.pixels, orientation), alpha=alpha, icc=raster.icc, pixel_um=raster.pixel_um, notes=raster.notes)


def matching_icc(icc: bytes | None, channels: int) -> tuple[bytes | None, tuple[str, ...]]:
    """The profile if its colour space has this many channels, else None with a note: a CMYK profile on RGB pixels would be wrong."""
    if not icc:
        return None, ()
    if _ICC_CHANNELS.get(icc[16:20]) == channels:
        return icc, ()
    space = icc[16:20].decode("ascii", "replace").strip() or "unknown"
    return None, (f"ICC profile dropped: it describes {space} pixels, the image is {'gray' if channels == 1 else 'RGB'}",)


def cmyk_to_rgb(image: "Image", icc: bytes | None) -> tuple["Image", str]:
    """A CMYK Pillow image as sRGB, through its profile where it has a usable one; and the sentence that says which way was taken."""
    from PIL import ImageCms

    if icc and icc[16:20] == b"CMYK":
        try:
            source: Any = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            converted = None
        if converted is not None:
            return converted, "CMYK converted to sRGB through its ICC profile"
    return image.convert("RGB"), "CMYK converted to RGB without an ICC profile, so colours are approximate"


def rounded(values: NDArray[np.floating[Any]], bit_depth: int) -> Pixels:
    """Values in [0, 1] as uint8 or uint16, clipped and rounded half to even; undoes the division of the reader exactly."""
    scaled = np.rint(np.clip(values, 0, 1) * float(2**bit_depth - 1))
    stored: Pixels = scaled.astype(np.uint8 if bit_depth == 8 else np.uint16)
    return stored


def finite_positive(value: float | None) -> bool:
    """Whether a pixel size is a usable number."""
    return value is not None and math.isfinite(value) and value > 0


def sniff(file: BinaryIO) -> str:
    """The format by content: "PNG", "JPEG", "TIFF" or "BMP". The file is left at its start. Raises ImageFileError for anything else."""
    head = file.read(132)
    file.seek(0)
    if not head:
        raise ImageFileError("is empty (0 bytes)")
    for name, magics in _MAGICS.items():
        if head.startswith(magics):
            return name
    for name, offset, magic in _KNOWN_STRANGERS:
        if head[offset : offset + len(magic)] == magic:
            raise ImageFileError(f"is a {name} file; expected PNG, JPEG, TIFF or BMP, so export it as one of these")
    raise ImageFileError("is not an image that can be read here; expected PNG, JPEG, TIFF or BMP")


_MAGICS: dict[str, tuple[bytes, ...]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
}
_KNOWN_STRANGERS = (
    ("DICOM", 128, b"DICM"),
    ("GIF", 0, b"GIF8"),
    ("WebP", 8, b"WEBP"),
    ("JPEG 2000", 4, b"jP  \r\n"),
    ("JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("HEIF or AVIF", 4, b"ftyp"),
    ("PDF", 0, b"%PDF"),
    ("zip", 0, b"PK\x03\x04"),
    ("Zeiss CZI", 0, b"ZISRAWFILE"),
)
