"""One image file in, one image file out, with everything that must survive the trip: depth, gray, alpha, pixel size, ICC, provenance."""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathorestore.atomic import write_atomic
from pathorestore.image import check_image
from pathorestore.pipelines.pillow_file import check_jpeg_size, decode_bmp, decode_jpeg, decode_png, encode_jpeg, encode_png
from pathorestore.pipelines.provenance import Provenance
from pathorestore.pipelines.raster import DEFAULT_MAX_PIXELS, ImageFileError, OutputFileError, Pixels, Raster, rounded, sniff
from pathorestore.pipelines.tiff_file import decode_tiff, decode_tiff_stack, encode_tiff

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "READ_SUFFIXES",
    "WRITE_SUFFIXES",
    "ImageFile",
    "ImageFileError",
    "read_image_file",
    "read_image_stack",
    "write_image_file",
]

T = TypeVar("T")

Encoder = Callable[[Raster, Provenance], tuple[bytes, tuple[str, ...]]]

_DECODERS = {"PNG": decode_png, "JPEG": decode_jpeg, "TIFF": decode_tiff, "BMP": decode_bmp}
_ENCODERS: dict[str, Encoder] = {".png": encode_png, ".jpg": encode_jpeg, ".jpeg": encode_jpeg, ".tif": encode_tiff, ".tiff": encode_tiff}

READ_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
WRITE_SUFFIXES = tuple(sorted(_ENCODERS))  # no BMP: it has no place for the provenance

# ITU-R BT.709 luminance, which sums to one: a gray picture that stayed gray comes back unchanged.
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFile:
    """An image with what its file said about it.

    image: 1 3 h w float32 in [0, 1], RGB, upright. bit_depth: 8 or 16. mode: "gray" or "rgb", as stored. alpha: h w of the stored dtype,
    or None. icc: profile of the pixels. pixel_um: side of a pixel, None if the file does not say. input_sha256: of the file's bytes.
    format: "PNG", "JPEG", "TIFF" or "BMP". notes: a sentence for each thing that the reader changed.
    """

    path: Path
    image: Tensor
    bit_depth: Literal[8, 16]
    mode: Literal["gray", "rgb"]
    alpha: Pixels | None
    icc: bytes | None
    pixel_um: float | None
    input_sha256: str
    format: str
    notes: tuple[str, ...]

    @property
    def has_alpha(self) -> bool:
        """Whether the file has an alpha plane."""
        return self.alpha is not None

    @property
    def megapixels(self) -> float:
        """Million pixels."""
        return self.image.shape[-1] * self.image.shape[-2] / 1e6


def read_image_file(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageFile:
    """Read a PNG, JPEG, TIFF or BMP, whatever its suffix says.

    Palettes are looked up, CMYK becomes sRGB, EXIF and TIFF orientation is applied. The size is checked against `max_pixels` in the header,
    before anything is decoded. Raises OSError if the file cannot be opened, ImageFileError if it is no image, damaged, or too large.
    """
    raster, kind, digest = _decoded(path, _DECODERS, max_pixels)
    return _image_file(path, raster, kind, digest)


def read_image_stack(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> list[ImageFile]:
    """Read the planes of a multi-page TIFF or OME-TIFF z-stack; `max_pixels` is the limit for all of them together.

    Raises OSError if the file cannot be opened, ImageFileError if it is no stack, damaged, or too large.
    """
    rasters, kind, digest = _decoded(path, dict.fromkeys(_DECODERS, _one_plane) | {"TIFF": decode_tiff_stack}, max_pixels)
    return [_image_file(path, raster, kind, digest) for raster in rasters]


def _one_plane(file: BinaryIO, max_pixels: int) -> NoReturn:
    raise ImageFileError(
        "holds one plane, and a stack has two or more; name their folder, all of their files, or a TIFF with a page for each"
    )


def _decoded(path: Path, decoders: Mapping[str, Callable[[BinaryIO, int], T]], max_pixels: int) -> tuple[T, str, str]:
    """What the decoder of a file's format makes of it, the format, and the hash of its bytes."""
    if path.exists() and not path.is_file():
        raise ImageFileError(f"{path}: is {'a folder' if path.is_dir() else 'not a regular file'}; expected an image file")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn about odd metadata, which is not what is wanted of the file
        kind = "image"
        try:
            kind = sniff(file)
            decoded = decoders[kind](file, max_pixels)
        except ImageFileError as error:
            raise ImageFileError(f"{path}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes decoders raise almost anything
            raise ImageFileError(f"{path}: damaged or truncated {kind} ({_one_line(error)}); copy or export it again") from error
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return decoded, kind, digest


def write_image_file(path: Path, image: Tensor, like: ImageFile, provenance: Provenance, *, overwrite: bool = False) -> tuple[str, ...]:
    """Write an image 1 3 h w as `like` was stored: its depth, gray, alpha, pixel size and ICC profile; and the provenance.

    The suffix picks the format. The file appears whole or not at all. Returns a sentence for each thing the format could not hold.
    Raises ImageFileError for an unknown suffix, an existing file without `overwrite`, or the input itself (through links too);
    OSError if it cannot be written; ValueError if the image is not of the size of `like`, not finite, or outside [0, 1].
    """
    encode = check_target(path, like.path, overwrite=overwrite)
    check_image(image)
    if image.shape != like.image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected {tuple(like.image.shape)}, the shape of {like.path}")
    planes: list[NDArray[np.floating[Any]]] = list(image[0].detach().cpu().numpy())
    if like.mode == "gray":
        planes = [np.tensordot(_LUMINANCE, planes, axes=1)]
    pixels = np.stack([rounded(plane, like.bit_depth) for plane in planes], axis=-1)
    raster = Raster(pixels=pixels, alpha=like.alpha, icc=like.icc, pixel_um=like.pixel_um)
    try:
        data, notes = encode(raster, provenance)
    except ImageFileError as error:
        raise OutputFileError(f"{path}: {error}") from error
    check_target(path, like.path, overwrite=overwrite)  # encoding took a while
    write_atomic(path, data)
    return notes


def check_target(path: Path, input_path: Path, *, overwrite: bool) -> Encoder:
    """The encoder for an output path that may be written. Raises ImageFileError with the remedy for one that may not."""
    encode = encoder_for(path)
    if path.is_dir():
        raise OutputFileError(f"{path}: is a folder; expected the path of a file")
    if path.exists() and input_path.exists() and path.samefile(input_path):
        raise OutputFileError(f"{path}: is the input itself; write to another file or folder, the input is never replaced")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise OutputFileError(f"{path}: exists already; --overwrite replaces it")
    return encode


def check_size_for(path: Path, height_px: int, width_px: int) -> None:
    """Raise OutputFileError for an image that the format of an output path cannot hold."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        try:
            check_jpeg_size(height_px, width_px)
        except ImageFileError as error:
            raise OutputFileError(f"{path}: {error}") from None


def encoder_for(path: Path) -> Encoder:
    """The encoder that a suffix asks for. Raises ImageFileError for one that is not written."""
    suffix = path.suffix.lower()
    if suffix not in _ENCODERS:
        why = "BMP has no place for the provenance" if suffix == ".bmp" else f"{suffix or 'no suffix'!r} is not a format written here"
        raise OutputFileError(f"{path}: {why}; name the output with one of {', '.join(WRITE_SUFFIXES)}")
    return _ENCODERS[suffix]


def _image_file(path: Path, raster: Raster, kind: str, digest: str) -> ImageFile:
    height, width, channels = raster.pixels.shape
    image = torch.empty(1, 3, height, width)
    for channel in range(3):  # one by one, since a large image is several gigabytes
        stored = raster.pixels[..., channel % channels].astype(np.float32)
        image[0, channel] = torch.from_numpy(stored).div_(np.iinfo(raster.pixels.dtype).max)
    return ImageFile(
        path=path,
        image=image,
        bit_depth=8 if raster.pixels.dtype == np.uint8 else 16,
        mode="gray" if raster.pixels.shape[2] == 1 else "rgb",
        alpha=raster.alpha,
        icc=raster.icc,
        pixel_um=raster.pixel_um,
        input_sha256=digest,
        format=kind,
        notes=raster.notes,
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
