"""Small slides, restorers that are cheap and tell what they did, and a run of the slide engine in one call."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from pathorestore.pipelines.batch import Done, Job
from pathorestore.slide.restore import RestoreSlide
from pathorestore.slide.restoring import Restoring
from pathorestore.slide.work import SlideOptions

CLOCK = "2026-01-01T00:00:00+00:00"
Seen = namedtuple("Seen", "mean")


class Identity:
    """A restorer of so many stages that changes nothing."""

    tile_px, multiple_px = 64, 8

    def __init__(self, stages: int = 1):
        self.count = stages

    def prepare(self, degraded: torch.Tensor) -> Seen:
        return Seen(degraded.mean(dim=(1, 2, 3))[:, None])

    @property
    def stages(self):
        return (lambda current, degraded, context, noise: current,) * self.count

    def restore(self, image: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
        return image


class Lively(Identity):
    """Two stages that look at everything a stage is given: neighbours, the degraded tile, its context and the noise where it lies."""

    def __init__(self):
        super().__init__(2)

    @property
    def stages(self):
        return (self._smooth, self._noisy)

    def _smooth(self, current, degraded, context, noise):
        padded = torch.nn.functional.pad(current, (2, 2, 2, 2), mode="replicate")
        return torch.nn.functional.avg_pool2d(padded, 5, 1)

    def _noisy(self, current, degraded, context, noise):
        field = noise.draw(0, channels=3, height_px=current.shape[2], width_px=current.shape[3])
        return 0.5 * current + 0.5 * degraded + 0.02 * context.mean[..., None, None] + 0.02 * field


def tissue_pixels(height: int, width: int, *, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    """Pixels h w 3 without two equal rows or columns; colours change slowly, as JPEG needs them to."""
    top = np.iinfo(dtype).max
    y, x = np.mgrid[:height, :width]
    waves = 0.5 + 0.25 * np.sin(x / 7.0 + y / 31.0) + 0.25 * np.cos(y / 5.0)
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, (height, width, 1))
    return np.rint(np.clip(waves[..., None] * [0.9, 0.6, 0.8] + noise, 0, 1) * top).astype(dtype)


def write_slide(path: Path, pixels: np.ndarray, *, levels: int = 2, mpp: float | None = 0.25, tile: int = 64, **changes: Any) -> Path:
    """A tiled pyramid without loss, whose smaller levels are every second pixel."""
    options: dict[str, Any] = {"tile": (tile, tile), "photometric": "rgb", "compression": "zlib", "metadata": None} | changes
    resolution = {} if mpp is None else {"resolution": (10_000 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            small = pixels[:: 2**level, :: 2**level]
            writer.write(small, subfiletype=int(level > 0), **options, **(resolution if level == 0 else {}))
    return path


OPTIONS = SlideOptions(tile_px=64, overlap_px=16, compression="deflate", all_tiles=True)


def slide_work(
    restorer: Any = None, *, options: SlideOptions = OPTIONS, wishes: dict[str, Any] | None = None, **fields: Any
) -> RestoreSlide:
    """The work of the slide engine, by default the identity without loss. wishes: changed options."""
    settings: dict[str, Any] = {"model_id": "test", "weights_sha256": None, "parameters": {}, "clock": lambda: CLOCK} | fields
    computing = {name: settings.pop(name) for name in ("device", "precision") if name in settings} | {"seed": settings.get("seed", 0)}
    work = Restoring(system=restorer or Identity(), **computing)
    return RestoreSlide(work=work, options=replace(options, **(wishes or {})), **settings)


def run_slide(source: Path, target: Path, restorer: Any = None, **changes: Any) -> Done:
    """Restore one slide."""
    return slide_work(restorer, **changes)(Job(source, target))


def level_pixels(path: Path, level: int = 0) -> np.ndarray:
    """Pixels of a level of a written slide."""
    with tifffile.TiffFile(path) as tiff:
        return np.asarray(tiff.series[0].levels[level].asarray()).reshape(*tiff.series[0].levels[level].pages[0].shape)


def files_in(folder: Path) -> list[str]:
    """Names of all files of a folder, hidden ones too."""
    return sorted(item.name for item in folder.iterdir())
