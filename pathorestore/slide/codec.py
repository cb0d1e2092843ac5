"""Tiles of a written slide to bytes and back, and the TIFF tags that say how."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pathorestore.pipelines.batch import PlanError
from pathorestore.slide.plan import OUT_TILE_PX
from pathorestore.slide.rows import Pixels

COMPRESSIONS = ("auto", "jpeg", "deflate")
_DEFLATE_LEVEL = 6


@dataclass(frozen=True)
class TileCodec:
    """compression: "jpeg" (8 bits) or "deflate" (lossless). quality: of JPEG, 1-100.

    JPEG stores colour, not brightness, at half the width (4:2:2): Bio-Formats 7.3, and so QuPath, shows JPEG tiles without subsampling in
    wrong colours, since it takes them out of YCbCr twice.
    """

    compression: str
    quality: int = 90

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS[1:] or not 1 <= self.quality <= 100:
            raise ValueError(f"compression {self.compression!r} with quality {self.quality}; expected jpeg or deflate, 1..100")

    @classmethod
    def choose(cls, compression: str, bit_depth: int, quality: int) -> "TileCodec":
        """The codec for a slide: auto takes JPEG for 8 bits and deflate for 16. Raises PlanError for 16-bit JPEG."""
        if compression == "jpeg" and bit_depth == 16:
            raise PlanError("--compression jpeg holds 8 bits and the slide has 16; use deflate, or auto")
        return cls(("jpeg" if bit_depth == 8 else "deflate") if compression == "auto" else compression, quality)

    def encode(self, tile: Pixels) -> bytes:
        """Bytes of a tile t t 3; smaller tiles, at the slide's edges, are grown by repeating their last row and column."""
        import imagecodecs

        missing = [(0, OUT_TILE_PX - side) for side in tile.shape[:2]]
        full = np.pad(tile, (*missing, (0, 0)), mode="edge") if any(after for _, after in missing) else np.ascontiguousarray(tile)
        if self.compression == "jpeg":
            return bytes(imagecodecs.jpeg8_encode(full, level=self.quality, subsampling="422"))
        return bytes(imagecodecs.zlib_encode(np.asarray(imagecodecs.delta_encode(full, axis=1)).tobytes(), level=_DEFLATE_LEVEL))

    def decode(self, data: bytes, dtype: np.dtype[Any]) -> Pixels:
        """Undo `encode`: a whole tile."""
        import imagecodecs

        if self.compression == "jpeg":
            return np.asarray(imagecodecs.jpeg8_decode(data))
        flat = np.frombuffer(imagecodecs.zlib_decode(data), dtype).reshape(OUT_TILE_PX, OUT_TILE_PX, 3)
        return np.asarray(imagecodecs.delta_decode(flat, axis=1))

    @property
    def tags(self) -> dict[str, Any]:
        """What tifffile must be told about tiles that are encoded already."""
        if self.compression == "jpeg":
            return {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 1)}
        return {"compression": "zlib", "predictor": True, "photometric": "rgb"}

    @property
    def bytes_per_px(self) -> float:
        """A careful guess, for looking whether the disk has room: of H&E at this quality, or of losslessly packed tissue."""
        return 0.2 + 1.3 * (self.quality / 100) ** 4 if self.compression == "jpeg" else 2.6
