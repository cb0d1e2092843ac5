"""Which image a crop comes from, which window of it, and how it is turned: functions of a seed and the crop's number alone."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pathorestore.data.image_cache import UnreadableImage
from pathorestore.functional.noise import stream
from pathorestore.image import from_uint8

T = TypeVar("T")

_log = logging.getLogger(__name__)
_ATTEMPTS = 1000


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How crops are cut.

    crop_px: side of a crop. margin_px: rim around it on every side, which simulation cuts off after blurring; pairs need none.
    zoom: factors by which the source may be resized first, drawn evenly. Below 1 they sharpen soft sources, but a network trained on that
    takes every soft image for a defocused one; above 1 they stand for oversampled scans, which are soft in focus and must be left so.
    target_mpp: size of a pixel in um that sources of known pixel size are brought to; None leaves all as they are.
    augment: random flips and quarter turns.
    on_unreadable: "stop" at a file that cannot be read, or "skip" it, say so, and draw another image for the crop.
    cache_mb: mebibytes of decoded images that each process keeps.
    crops_per_image: crops that are cut from an image before others take its place; `images_at_once` are in turn at any time. More than 1
    spares decoding where images are large and many, if that many fit into the cache; crops of one image then come closer together.
    """

    crop_px: int = 64
    margin_px: int = 0
    zoom: tuple[float, ...] = (1.0,)
    target_mpp: float | None = None
    augment: bool = True
    on_unreadable: Literal["stop", "skip"] = "stop"
    cache_mb: int = 1024
    crops_per_image: int = 1
    images_at_once: int = 16

    def __post_init__(self) -> None:
        if self.crop_px < 8 or self.margin_px < 0:
            raise ValueError(f"crop_px={self.crop_px} must be at least 8 and margin_px={self.margin_px} at least 0")
        if not self.zoom or not all(0.1 <= factor <= 10 for factor in self.zoom):
            raise ValueError(f"zoom={self.zoom} must be one or more factors in [0.1, 10]; (1.0,) leaves sources as they are")
        if self.target_mpp is not None and not 0.01 <= self.target_mpp <= 100:
            raise ValueError(f"target_mpp={self.target_mpp} must be a pixel size in um, e.g. 0.25, or null")
        if self.on_unreadable not in ("stop", "skip"):
            raise ValueError(f"on_unreadable={self.on_unreadable!r} must be 'stop' or 'skip'")
        if self.cache_mb < 0 or self.crops_per_image < 1 or self.images_at_once < 1:
            raise ValueError(f"cache_mb must be at least 0, crops_per_image and images_at_once at least 1; got {self}")

    @property
    def side_px(self) -> int:
        """Side of what is cut: the crop and its margins."""
        return self.crop_px + 2 * self.margin_px

    def source_px(self, mpp: float | None) -> float:
        """Pixels of a source image, of pixel size `mpp` in um, that become one side of a crop where zoom is 1."""
        return self.side_px * (self.target_mpp / mpp if self.target_mpp and mpp else 1.0)


class Draws:
    """Draws the image for each crop with the given odds, and draws again where it cannot be read, if the configuration says so."""

    def __init__(self, odds: Sequence[float], config: CropConfig, seed: int):
        self.config, self.seed = config, seed
        weights = np.asarray(odds, dtype=np.float64)
        self._cumulative = torch.from_numpy(np.cumsum(weights / weights.sum()))
        self._unreadable: set[int] = set()

    def __call__(self, key: int, cut: Callable[[int, torch.Generator], T]) -> T:
        """What `cut(image's number, generator of the crop)` gives for the first image drawn for `key` that can be read.

        Raises UnreadableImage naming the file, or, where such files are passed over, once nothing readable is left to draw.
        """
        for attempt in range(_ATTEMPTS):
            which = self.which(key, attempt)
            if which in self._unreadable:
                continue
            try:
                return cut(which, stream(self.seed, 1, key, attempt))
            except UnreadableImage as error:
                if self.config.on_unreadable == "stop":
                    raise
                self._unreadable.add(which)
                _log.warning("passed over: %s", error)
        raise UnreadableImage(
            f"{len(self._unreadable)} of {len(self._cumulative)} images cannot be read, and none was found for crop {key} "
            f"in {_ATTEMPTS} draws; the log names them. Check the manifest with `pathorestore data check`"
        )

    def which(self, key: int, attempt: int = 0) -> int:
        """The number of the image that crop `key` comes from. Crops take turns at the images of their block, each with its odds."""
        turns = self.config.images_at_once if self.config.crops_per_image > 1 else 1
        block, slot = key // (turns * self.config.crops_per_image), key % turns
        at = torch.rand(1, generator=stream(self.seed, 0, block, slot, attempt), dtype=torch.float64)
        return int(torch.searchsorted(self._cumulative, at, right=True).clamp_max(len(self._cumulative) - 1))


@dataclass(frozen=True, kw_only=True)
class Window:
    """A square of an image, what it is resized to, and which of the eight flips and quarter turns it takes."""

    top_px: int
    left_px: int
    source_px: int
    side_px: int
    turn: int = 0

    @classmethod
    def draw(cls, size_px: tuple[int, int], source_px: float, config: CropConfig, generator: torch.Generator) -> "Window":
        """A window anywhere in an image of this height and width. source_px: its side where zoom is 1."""
        factor = config.zoom[below(len(config.zoom), generator)]
        source = max(1, min(round(source_px / factor), *size_px))
        top, left = (below(side - source + 1, generator) for side in size_px)
        turn = below(8, generator) if config.augment else 0
        return cls(top_px=top, left_px=left, source_px=source, side_px=config.side_px, turn=turn)

    def cut(self, pixels: NDArray[np.uint8]) -> Tensor:
        """The window of h w 3 pixels as 3 s s in [0, 1]."""
        crop = from_uint8(pixels[self.top_px : self.top_px + self.source_px, self.left_px : self.left_px + self.source_px])
        if self.source_px != self.side_px:
            crop = F.interpolate(crop, size=(self.side_px,) * 2, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return turned(crop[0], self.turn)


def below(bound: int, generator: torch.Generator) -> int:
    """An integer from 0 to bound - 1."""
    return int(torch.randint(bound, (1,), generator=generator))


def turned(crop: Tensor, which: int) -> Tensor:
    """One of the eight flips and quarter turns of a square c s s; 0 leaves it alone."""
    rotated = torch.rot90(crop, which % 4, dims=(1, 2))
    return (rotated.flip(2) if which >= 4 else rotated).contiguous()
