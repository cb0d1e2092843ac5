"""Sharp crops: an endless, reproducible stream of training crops from sharp images, to be degraded later."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from pathorestore.data.batches import SharpBatch
from pathorestore.data.drawing import CropConfig, Draws, Window
from pathorestore.data.image_cache import ArrayCache
from pathorestore.data.image_cache import read_rgb as read_rgb
from pathorestore.data.manifest import Row
from pathorestore.data.source_images import area_px, fitting
from pathorestore.image import from_uint8

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and below, sorted by name. Raises FileNotFoundError if there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no images under {folder}; expected PNG, JPEG, TIFF or BMP files")
    return files


class SharpCrops(Dataset[SharpBatch]):
    """Item `key` is a SharpBatch without its batch axis that depends on (seed, key) alone, whatever the number of workers.

    rows: images without a target; their paths are taken below `folder`. Images are drawn in proportion to their area (after they are
    brought to `target_mpp`), so that every pixel is equally likely; those too small for a crop are left out. Raises ValueError if none is
    left, and UnreadableImage, here by what headers say and later for damaged pixels, unless such files are to be skipped.
    """

    def __init__(self, rows: Sequence[Row], config: CropConfig, *, folder: Path = Path(), seed: int = 0):
        self.config = config
        self.images = fitting([((folder / row.path,), row) for row in rows], config)
        self._draws = Draws([area_px(image, config) for image in self.images], config, seed)
        self._cache = ArrayCache(config.cache_mb)

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, key: int) -> SharpBatch:
        return SharpBatch(self._draws(key, self._cut), torch.tensor(key), torch.tensor(self.config.margin_px))

    def _cut(self, which: int, generator: torch.Generator) -> torch.Tensor:
        image = self.images[which]
        window = Window.draw(image.size_px, self.config.source_px(image.row.mpp), self.config, generator)
        (path,) = image.paths
        return window.cut(self._cache.get(path, lambda: read_rgb(path)))


class WholeSharp(Dataset[SharpBatch]):
    """Whole sharp images 3 h w without margins, one an item; the key is the row's number among `rows`."""

    def __init__(self, rows: Sequence[Row], *, folder: Path = Path()):
        self.paths = [folder / row.path for row in rows]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> SharpBatch:
        return SharpBatch(from_uint8(read_rgb(self.paths[index]))[0], torch.tensor(index), torch.tensor(0))
