"""A slide of any size with a third of tissue, made tile by tile: JPEG, 256 px tiles, a pyramid by halves."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

TILE_PX = 256
_TEXTURE_PX = 2048


def write_synthetic_slide(path: Path, side_px: int, *, levels: int = 5) -> Path:
    """Write it; tissue is a disc of a third of the area."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(_TEXTURE_PX, _TEXTURE_PX, 3)), (2, 2, 0), mode="wrap")
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    texture = (np.array([120, 60, 110]) + noise * np.array([130, 150, 120])).clip(0, 255).astype(np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in range(levels):
            side = side_px >> level
            writer.write(
                _tiles(side, texture),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                compression="jpeg",
                compressionargs={"level": 90},
                subfiletype=int(level > 0),
                metadata=None,
                resolution=None if level else (40_000, 40_000),
                resolutionunit=None if level else "CENTIMETER",
            )
    return path


def _tiles(side: int, texture: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    glass = np.full((TILE_PX, TILE_PX, 3), 243, np.uint8)
    most = _TEXTURE_PX - TILE_PX
    for y in range(0, side, TILE_PX):
        for x in range(0, side, TILE_PX):
            off = ((y + TILE_PX / 2) / side - 0.5) ** 2 + ((x + TILE_PX / 2) / side - 0.5) ** 2
            yield texture[7 * y % most :, 5 * x % most :][:TILE_PX, :TILE_PX] if off < 1 / (3 * np.pi) else glass
