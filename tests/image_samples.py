"""Small images, on disk and in memory, that the tests of image files share."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms

from pathorestore.pipelines.image_file import ImageFile
from pathorestore.pipelines.provenance import Provenance

RECORD = Provenance(
    version="0.1.0",
    model_id="sharpener",
    weights_sha256="ab" * 32,
    seed=3,
    parameters={"tile_px": 256},
    input_sha256="cd" * 32,
    pixel_um=0.25,
    created_utc="2026-01-31T12:00:00+00:00",
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels_of(height: int, width: int, channels: int, bit_depth: int, seed: int = 0) -> np.ndarray:
    top, dtype = (255, np.uint8) if bit_depth == 8 else (65535, np.uint16)
    return np.random.default_rng(seed).integers(0, top, (height, width, channels), endpoint=True).astype(dtype)


def save_tiff(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """Write h w c pixels with tifffile, alpha last where c is even."""
    channels = pixels.shape[2]
    tifffile.imwrite(
        path,
        pixels[..., 0] if channels == 1 else pixels,
        photometric=options.pop("photometric", "rgb" if channels > 2 else "minisblack"),
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        metadata=None,
        **options,
    )
    return path


def stored(file: ImageFile) -> np.ndarray:
    """The pixels of a file as integers h w 3."""
    top = 2**file.bit_depth - 1
    return (file.image[0].permute(1, 2, 0).double().numpy() * top).round().astype(np.uint8 if file.bit_depth == 8 else np.uint16)


def rgb_of(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., :1], 3, axis=2) if pixels.shape[2] < 3 else pixels[..., :3]


def read_elsewhere(path: Path, bit_depth: int) -> np.ndarray:
    """Pixels h w c as Pillow (8 bits) or OpenCV (16 bits) reads them, RGB order."""
    if bit_depth == 8:
        with Image.open(path) as image:
            planes = np.array(image)
        return planes[..., None] if planes.ndim == 2 else planes
    planes = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    planes = planes[..., None] if planes.ndim == 2 else planes
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[planes.shape[2]]
    return planes[..., order]


def png_bytes(pixels: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG", **options)
    return out.getvalue()


def written(tmp_path: Path, image: Image.Image, name: str, **options: Any) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name
