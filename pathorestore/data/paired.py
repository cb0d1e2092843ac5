"""Pairs as they were photographed: degraded and clean images of one field, focal planes and their fused target among them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pathorestore.data.batches import PairBatch
from pathorestore.data.drawing import CropConfig, Draws, Window
from pathorestore.data.image_cache import ArrayCache, read_rgb
from pathorestore.data.manifest import Row
from pathorestore.data.source_images import area_px, common_size, fitting
from pathorestore.image import from_uint8


class PairedCrops(Dataset[PairBatch]):
    """Item `key` is a PairBatch without its batch axis that depends on (seed, key) alone: one window, turned alike, of both images.

    rows: images with a target, such as the planes of a focal stack; paths are taken below `folder`. Pairs are drawn in proportion to their
    area. Raises ValueError if none is left or a margin is asked for; UnreadableImage as `SharpCrops` does, and for partners of unequal
    size.
    """

    def __init__(self, rows: Sequence[Row], config: CropConfig, *, folder: Path = Path(), seed: int = 0):
        if config.margin_px:
            raise ValueError(f"margin_px={config.margin_px}, but pairs are as they were photographed and need no margin; set margin_px: 0")
        self.config = config
        self.images = fitting([((folder / row.path, folder / row.target), row) for row in rows], config)
        self._draws = Draws([area_px(image, config) for image in self.images], config, seed)
        self._cache = ArrayCache(config.cache_mb)

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, key: int) -> PairBatch:
        degraded, clean, row = self._draws(key, self._cut)
        return _item(degraded, clean, row, key)

    def _cut(self, which: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Row]:
        paths, row, size_px = self.images[which]
        window = Window.draw(size_px, self.config.source_px(row.mpp), self.config, generator)
        degraded, clean = (window.cut(self._pixels(path)) for path in paths)
        return degraded, clean, row

    def _pixels(self, path: Path) -> NDArray[np.uint8]:
        return self._cache.get(path, lambda: read_rgb(path))


class WholePairs(Dataset[PairBatch]):
    """Whole pairs 3 h w, one an item; the key is the row's number among `rows`. Raises UnreadableImage, also for unequal sizes."""

    def __init__(self, rows: Sequence[Row], *, folder: Path = Path()):
        self.rows, self.folder = tuple(rows), folder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PairBatch:
        row = self.rows[index]
        paths = (self.folder / row.path, self.folder / row.target)
        common_size(paths)
        degraded, clean = (from_uint8(read_rgb(path))[0] for path in paths)
        return _item(degraded, clean, row, index)


def _item(degraded: Tensor, clean: Tensor, row: Row, key: int) -> PairBatch:
    defocus_um, ctf = (torch.tensor(float("nan") if label is None else label, dtype=torch.float32) for label in (row.z_um, row.ctf))
    return PairBatch(degraded, clean, defocus_um, ctf, torch.tensor(key))
