"""Loading: the share of training that waits for data, and what a crop costs beside the step that it feeds.

A step here keeps a core busy for as long as a training step of the tiny P-former on 8 crops of 64 px took on two CPU cores (0.35 s);
PATHORESTORE_BENCH_STEP_S sets another. A GPU is faster and waits for a larger share.
"""

import os
import statistics
import time
from collections.abc import Iterable
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from taking_turns import TakingTurns
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pathorestore.data.drawing import CropConfig
from pathorestore.data.image_cache import read_rgb
from pathorestore.data.manifest import Row
from pathorestore.data.paired import PairedCrops
from pathorestore.data.sampling import KeySampler
from pathorestore.data.sharp_crops import SharpCrops
from pathorestore.data.slide_crops import SlideCrops

STEP_S = float(os.environ.get("PATHORESTORE_BENCH_STEP_S", "0.35"))
BATCH, STEPS, WARM_UP, IMAGES, SIDE_PX = 8, 12, 4, 24, 1024
SHARP = {"crop_px": 64, "margin_px": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth noise as JPEG images and as one slide: what pictures of tissue cost to decode, more or less."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(IMAGES):
        coarse = Image.fromarray(rng.integers(60, 256, (SIDE_PX // 4, SIDE_PX // 4, 3), dtype=np.uint8))
        coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=90)
    pixels = np.asarray(coarse.resize((4 * SIDE_PX, 4 * SIDE_PX), Image.Resampling.BICUBIC))
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(folder / "slide.tif") as writer:
        for level in range(3):
            writer.write(pixels[:: 2**level, :: 2**level], subfiletype=int(level > 0), **options)
    return folder


def _crops(kind: str, folder: Path) -> Dataset[tuple[Tensor, ...]]:
    rows = [Row(path=f"{index}.jpg", target=f"{(index + 1) % IMAGES}.jpg", mpp=0.25) for index in range(IMAGES)]
    if kind == "pairs":
        return PairedCrops(rows, CropConfig(crop_px=128), folder=folder)
    if kind == "slide patches":
        return SlideCrops([Row(path="slide.tif", mpp=0.25)], CropConfig(**SHARP, target_mpp=0.5), folder=folder)
    options = {
        "kept in memory": CropConfig(**SHARP),
        "resampled": CropConfig(**SHARP, target_mpp=0.4),
        "decoded for each crop": CropConfig(**SHARP, cache_mb=0),
        "decoded for every 16 crops": CropConfig(**SHARP, cache_mb=3 * 8, crops_per_image=16, images_at_once=8),
    }
    return SharpCrops(rows, options[kind], folder=folder)


def _busy(seconds: float) -> None:
    end, work = time.perf_counter() + seconds, np.ones((64, 64), dtype=np.float32)
    while time.perf_counter() < end:
        work = work @ work * 1e-3


def _waited(batches: Iterable[object]) -> float:
    """Share of a training loop that goes into waiting for batches, once the first few have started workers and filled caches."""
    feed, waited = iter(batches), 0.0
    for _ in islice(feed, WARM_UP):
        _busy(STEP_S)
    begin = time.perf_counter()
    for _ in range(STEPS):
        asked = time.perf_counter()
        next(feed)
        waited += time.perf_counter() - asked
        _busy(STEP_S)
    return waited / (time.perf_counter() - begin)


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["kept in memory", "decoded for each crop", "pairs", "slide patches"])
def test_waiting_for_data(benchmark: BenchmarkFixture, folder: Path, kind: str, workers: int) -> None:
    crops, keys = _crops(kind, folder), KeySampler(epoch_size=BATCH * (WARM_UP + STEPS), batch_size=BATCH)
    loader = DataLoader(crops, batch_size=BATCH, sampler=keys, num_workers=workers)
    shares: list[float] = []
    benchmark.pedantic(lambda: shares.append(_waited(loader)), rounds=3)
    benchmark.extra_info |= {"waiting, % of training": round(100 * statistics.median(shares), 2), "s per step": STEP_S}


@pytest.mark.parametrize(
    "kind", ["kept in memory", "resampled", "decoded for each crop", "decoded for every 16 crops", "pairs", "slide patches"]
)
def test_cutting_crops(taking_turns: TakingTurns, folder: Path, kind: str) -> None:
    crops, keys = _crops(kind, folder), count()
    contenders = {
        "crops": lambda: [crops[key] for key in islice(keys, 128)],
        "decoding as many images": lambda: [read_rgb(folder / "0.jpg") for _ in range(128)],
    }
    medians = taking_turns(contenders, rounds=3)
    taking_turns.benchmark.extra_info |= {"crops per second": round(128 / medians["crops"]), "image side px": SIDE_PX}
