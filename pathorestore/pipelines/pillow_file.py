"""PNG, JPEG and BMP files to rasters and back; Pillow reads them, imagecodecs takes the 16-bit PNG that Pillow would cut to 8."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np

from pathorestore.pipelines.pixel_size import CENTIMETRE_UM, INCH_UM, from_density
from pathorestore.pipelines.provenance import EXIF_ASCII, EXIF_COMMENT, EXIF_DESCRIPTION, EXIF_IFD, EXIF_SOFTWARE, PNG_KEYWORD, Provenance
from pathorestore.pipelines.raster import ImageFileError, Pixels, Raster, check_size, cmyk_to_rgb, matching_icc, turned

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

T = TypeVar("T")

JPEG_QUALITY = 95
_JPEG_LARGEST_SIDE_PX = 65_500
_EXIF_ORIENTATION, _EXIF_X, _EXIF_Y, _EXIF_UNIT, _UNIT_INCH, _UNIT_CENTIMETRE = 0x0112, 0x011A, 0x011B, 0x0128, 2, 3


def decode_png(file: BinaryIO, max_pixels: int) -> Raster:
    """Decode PNG of any kind: 1-16 bits, gray, RGB, palette, with or without alpha."""
    from PIL.PngImagePlugin import PngImageFile

    image = PngImageFile(file)
    check_size(*image.size, max_pixels)
    file.seek(0)
    stored = file.read()
    bit_depth = stored[24]  # IHDR: after signature 8, length 4, type 4, width 4, height 4
    raster = _decode_png16(stored, image) if bit_depth == 16 else _from_pillow(image)
    return turned(raster, _orientation(image))


def decode_jpeg(file: BinaryIO, max_pixels: int) -> Raster:
    """Decode baseline or progressive JPEG: gray, YCbCr, RGB, CMYK, YCCK."""
    from PIL.JpegImagePlugin import JpegImageFile

    image = JpegImageFile(file)
    check_size(*image.size, max_pixels)
    return turned(_from_pillow(image), _orientation(image))


def decode_bmp(file: BinaryIO, max_pixels: int) -> Raster:
    """Decode Windows bitmaps."""
    from PIL.BmpImagePlugin import BmpImageFile

    image = BmpImageFile(file)
    check_size(*image.size, max_pixels)
    return _from_pillow(image)


def encode_png(raster: Raster, provenance: Provenance) -> tuple[bytes, tuple[str, ...]]:
    """PNG bytes with pHYs, iCCP and the record as iTXt; and nothing that had to be left out."""
    import imagecodecs

    planes = raster.pixels if raster.alpha is None else np.concatenate([raster.pixels, raster.alpha[..., None]], axis=2)
    planes = planes[..., 0] if planes.shape[2] == 1 else planes
    bare = bytes(imagecodecs.png_encode(np.ascontiguousarray(planes)))
    chunks = [
        _chunk(b"tEXt", f"Software\0pathorestore {provenance.version}".encode("latin-1", "replace")),
        _chunk(b"tEXt", f"Disclaimer\0{provenance.notice}".encode("latin-1", "replace")),
        _chunk(b"iTXt", f"{PNG_KEYWORD}\0\0\0\0\0{provenance.to_json()}".encode()),
    ]
    if raster.icc:
        chunks.append(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(raster.icc)))
    if raster.pixel_um:
        per_metre = round(1e6 / raster.pixel_um)
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1)))
    header = 8 + 25  # signature and IHDR
    return bare[:header] + b"".join(chunks) + bare[header:], ()


def check_jpeg_size(height_px: int, width_px: int) -> None:
    """Raise ImageFileError for an image that JPEG cannot hold."""
    if max(height_px, width_px) > _JPEG_LARGEST_SIDE_PX:
        raise ImageFileError(f"is {width_px} x {height_px} px and JPEG ends at {_JPEG_LARGEST_SIDE_PX}; write .tif or .png")


def encode_jpeg(raster: Raster, provenance: Provenance) -> tuple[bytes, tuple[str, ...]]:
    """JPEG bytes (quality 95, full colour resolution) with EXIF, JFIF density and ICC; and what JPEG could not hold."""
    from PIL import Image

    pixels, notes = raster.pixels, []
    check_jpeg_size(pixels.shape[0], pixels.shape[1])
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257.0).astype(np.uint8)
        notes.append("16-bit values reduced to 8 bits, all that JPEG holds; write .png or .tif to keep them")
    if raster.alpha is not None and raster.alpha.min() < np.iinfo(raster.alpha.dtype).max:
        notes.append("alpha plane left out, JPEG holds none; write .png or .tif to keep it")
    out = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    exif = _exif(provenance, raster.pixel_um)
    image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0, exif=exif, icc_profile=raster.icc)
    return _with_density(out.getvalue(), raster.pixel_um), tuple(notes)


def _from_pillow(image: "Image") -> Raster:
    icc = image.info.get("icc_profile")
    pixel_um = _pixel_um(image)
    image.load()
    notes: tuple[str, ...] = ()
    if image.mode == "CMYK":
        image, note = cmyk_to_rgb(image, icc)
        notes, icc = (note,), None
    else:
        image = _plain(image)
    planes = np.array(image)
    planes = planes[..., None] if planes.ndim == 2 else planes
    return _split(planes, icc, pixel_um, notes)


def _plain(image: "Image") -> "Image":
    """The same picture as L, LA, RGB or RGBA; palettes are looked up and a transparent colour becomes an alpha plane."""
    see_through = image.has_transparency_data
    if image.mode in ("1", "L", "LA"):
        return image.convert("LA" if see_through else "L")
    if image.mode in ("P", "PA", "RGB", "RGBA"):
        return image.convert("RGBA" if see_through else "RGB")
    raise ImageFileError(f"holds pixels of kind {image.mode}; expected gray, RGB, palette or CMYK, so convert it to one of these")


def _decode_png16(stored: bytes, image: "Image") -> Raster:
    import imagecodecs

    planes: Pixels = imagecodecs.png_decode(stored)
    return _split(planes[..., None] if planes.ndim == 2 else planes, image.info.get("icc_profile"), _pixel_um(image), ())


def _split(planes: Pixels, icc: bytes | None, pixel_um: float | None, notes: tuple[str, ...]) -> Raster:
    """Raster from h w c planes with c = 1, 2 (gray and alpha), 3 or 4 (RGB and alpha)."""
    colours = planes.shape[2] - (planes.shape[2] % 2 == 0)
    alpha = np.ascontiguousarray(planes[..., -1]) if planes.shape[2] > colours else None
    icc, dropped = matching_icc(icc, colours)
    return Raster(pixels=np.ascontiguousarray(planes[..., :colours]), alpha=alpha, icc=icc, pixel_um=pixel_um, notes=notes + dropped)


def _orientation(image: "Image") -> int:
    return _tag(lambda: int(image.getexif().get(_EXIF_ORIENTATION, 1)), 1)


def _pixel_um(image: "Image") -> float | None:
    """EXIF resolution first (a fraction), then what Pillow calls dpi (pHYs, JFIF or BMP header: whole numbers)."""
    exif_um = _tag(lambda: _exif_pixel_um(image.getexif()), None) if image.format == "JPEG" else None
    x, y = image.info.get("dpi", (0.0, 0.0))
    return exif_um or from_density(float(x), float(y), INCH_UM)


def _exif_pixel_um(exif: "Exif") -> float | None:
    unit_um = {_UNIT_INCH: INCH_UM, _UNIT_CENTIMETRE: CENTIMETRE_UM}.get(exif.get(_EXIF_UNIT, _UNIT_INCH))
    return from_density(float(exif[_EXIF_X]), float(exif[_EXIF_Y]), unit_um) if unit_um and _EXIF_X in exif and _EXIF_Y in exif else None


def _tag(read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except Exception:  # damaged EXIF is no reason to refuse sound pixels
        return otherwise


def _exif(provenance: Provenance, pixel_um: float | None) -> "Exif":
    from PIL.Image import Exif
    from PIL.TiffImagePlugin import IFDRational

    exif = Exif()
    exif[EXIF_DESCRIPTION] = provenance.notice
    exif[EXIF_SOFTWARE] = f"pathorestore {provenance.version}"
    exif.get_ifd(EXIF_IFD)[EXIF_COMMENT] = EXIF_ASCII + provenance.to_json().encode("ascii")
    if pixel_um:
        exif[_EXIF_X] = exif[_EXIF_Y] = IFDRational(CENTIMETRE_UM / pixel_um)
        exif[_EXIF_UNIT] = _UNIT_CENTIMETRE
    return exif


def _with_density(jpeg: bytes, pixel_um: float | None) -> bytes:
    """The same JPEG with pixels per centimetre in its JFIF header, which Pillow cannot write; left alone where 16 bits do not hold them."""
    at = jpeg.find(b"JFIF\0", 0, 64) + 7  # after the name (5) and the version (2): units, x density, y density
    per_centimetre = round(CENTIMETRE_UM / pixel_um) if pixel_um else 0
    if at < 7 or not 1 <= per_centimetre <= 0xFFFF:
        return jpeg
    return jpeg[:at] + struct.pack(">BHH", 2, per_centimetre, per_centimetre) + jpeg[at + 5 :]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
