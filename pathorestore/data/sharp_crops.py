"""Sharp crops: an endless, reproducible stream of training crops from a handful of sharp images held in memory."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pathorestore.functional.noise import stream
from pathorestore.image import from_uint8

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


def image_files(folder: Path, *, manifest: Path | None = None) -> list[Path]:
    """The image files of a folder, sorted by name.

    manifest: a CSV with columns `file` (relative to the manifest's own folder) and `non_commercial`; only its rows marked "no" are kept,
    so that what is trained may be shipped. Raises FileNotFoundError if nothing is left.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if manifest is not None:
        with manifest.open(newline="", encoding="utf-8") as stream:
            free = {
                (manifest.parent / row["file"]).resolve() for row in csv.DictReader(stream) if row["non_commercial"].strip().lower() == "no"
            }
        files = [path for path in files if path.resolve() in free]
    if not files:
        raise FileNotFoundError(
            f"no usable images under {folder}; expected PNG, JPEG, TIFF or BMP files that the manifest marks non_commercial=no"
        )
    return files


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Decode an 8-bit image file to h w 3 uint8. Raises ValueError for other depths, which would be clipped."""
    from PIL import Image

    with Image.open(path) as picture:
        if picture.mode not in ("RGB", "RGBA", "L", "LA", "P"):
            raise ValueError(f"{path} has mode {picture.mode}; expected an 8-bit gray, palette or RGB image")
        return np.array(picture.convert("RGB"))


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How crops are cut. size_px: side of the crop, margins included. augment: random flips and quarter turns.

    zoom: factors by which the source may be resized first, drawn evenly. Below 1 they sharpen soft sources, but a network trained on that
    takes every soft image for a defocused one; above 1 they stand for oversampled scans, which are soft in focus and must be left so.
    """

    size_px: int = 128
    zoom: tuple[float, ...] = (1.0,)
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size_px < 8 or not self.zoom or not all(0.1 <= factor <= 10 for factor in self.zoom):
            raise ValueError(f"size_px must be at least 8 and zoom factors in [0.1, 10]; got {self}")


class SharpCrops(Dataset[Tensor]):
    """Item i is a 3 size size crop that depends on (seed, i) alone, whatever the number of workers or the resume point.

    Images are drawn in proportion to their area, so that every pixel is equally likely.
    """

    def __init__(self, files: Sequence[Path], config: CropConfig):
        self.config = config
        self.images = [read_rgb(path) for path in files]
        self.images = [pixels for pixels in self.images if min(pixels.shape[:2]) >= config.size_px]
        if not self.images:
            raise ValueError(f"none of {len(files)} images is as large as size_px={config.size_px}; use a smaller crop")
        areas = np.array([pixels.shape[0] * pixels.shape[1] for pixels in self.images], dtype=np.float64)
        self._cumulative = torch.from_numpy(np.cumsum(areas / areas.sum()))

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, index: int) -> Tensor:
        generator = stream(self.config.seed, index)
        which = int(
            torch.searchsorted(self._cumulative, torch.rand(1, generator=generator, dtype=torch.float64)).clamp_max(len(self.images) - 1)
        )
        pixels, size = self.images[which], self.config.size_px
        factor = self.config.zoom[int(torch.randint(len(self.config.zoom), (1,), generator=generator))]
        source = min(round(size / factor), *pixels.shape[:2])
        top, left = (int(torch.randint(side - source + 1, (1,), generator=generator)) for side in pixels.shape[:2])
        crop = from_uint8(pixels[top : top + source, left : left + source])
        if source != size:
            crop = F.interpolate(crop, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return _dihedral(crop[0], int(torch.randint(8, (1,), generator=generator))) if self.config.augment else crop[0]


def _dihedral(crop: Tensor, which: int) -> Tensor:
    """One of the eight flips and quarter turns of a square."""
    turned = torch.rot90(crop, which % 4, dims=(1, 2))
    return (turned.flip(2) if which >= 4 else turned).contiguous()


class FromStep(Sampler[int]):
    """Counts up from `first`, endlessly: a resumed run goes on with the crops that come next."""

    def __init__(self, first: int = 0):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        index = self.first
        while True:
            yield index
            index += 1
