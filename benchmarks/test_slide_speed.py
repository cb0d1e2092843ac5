"""The slide engine: megapixels per second without a model, what it adds to the time of one, and whether its memory knows a slide's height.

PATHORESTORE_BENCH_SLIDE sets the side of the synthetic slide in px (20480), PATHORESTORE_BENCH_SIDE that of the restored part (1024).
"""

import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from synthetic_slide import write_synthetic_slide
from taking_turns import TakingTurns
from torch import Tensor

from pathorestore.functional.noise import NoiseField
from pathorestore.image import from_uint8
from pathorestore.pipelines.batch import Job
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.slide.restore import RestoreSlide
from pathorestore.slide.restoring import Restoring
from pathorestore.slide.room import peak_mib
from pathorestore.slide.source import open_slide
from pathorestore.slide.work import SlideOptions

SLIDE_PX = int(os.environ.get("PATHORESTORE_BENCH_SLIDE", "20480"))
SIDE_PX = int(os.environ.get("PATHORESTORE_BENCH_SIDE", "1024"))
MIB = 2**20
NOTHING = namedtuple("NOTHING", "nothing")


class Identity:
    """A model that takes no time."""

    tile_px, multiple_px = 256, 8

    def prepare(self, degraded: Tensor) -> NOTHING:
        return NOTHING(degraded[:, :0])

    @property
    def stages(self):  # type: ignore[no-untyped-def]
        return (lambda current, degraded, context, noise: current,)

    def restore(self, image: Tensor, *, seed: int = 0) -> Tensor:
        return image


def work(system: object, **wishes: object) -> RestoreSlide:
    """The work of the engine."""
    options = SlideOptions(**wishes)  # type: ignore[arg-type]
    shared = {"model_id": "benchmark", "weights_sha256": None, "parameters": {}, "clock": lambda: "2026-01-01T00:00:00+00:00"}
    return RestoreSlide(work=Restoring(system=system), options=options, overwrite=True, **shared)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_slide(tmp_path_factory.mktemp("slide") / "slide.tif", SLIDE_PX)


def test_a_slide_without_a_model(benchmark: BenchmarkFixture, slide: Path) -> None:
    identity, target = work(Identity()), slide.with_name("out.tif")
    benchmark.pedantic(lambda: identity(Job(slide, target)), rounds=1)
    seconds = benchmark.stats.stats.mean
    benchmark.extra_info |= {"side px": SLIDE_PX, "megapixels per second": round(SLIDE_PX**2 / 1e6 / seconds, 1), "peak MiB": peak_mib()}


def test_the_engine_beside_its_model(taking_turns: TakingTurns, untrained: MoPRestorer, slide: Path) -> None:
    coarse, corner = untrained.coarse_only(), (SLIDE_PX - SIDE_PX) // 2
    engine = work(coarse, region=(corner, corner, SIDE_PX, SIDE_PX))
    plan = Restoring(system=coarse).run(engine._open(slide), engine.options).plan
    image = from_uint8(open_slide(slide).read(corner, corner, SIDE_PX, SIDE_PX))
    tiles = [image[..., y : y + 256, x : x + 256].contiguous() for y in plan.rows.starts_px for x in plan.columns.starts_px]
    assert plan.mask.all()

    @torch.no_grad()
    def model_on_the_tiles() -> list[Tensor]:
        return [coarse(tile, noise=NoiseField.whole(0, 1)) for tile in tiles]

    target = slide.with_name("part.tif")
    taking_turns({"slide engine": lambda: engine(Job(slide, target)), "model on its tiles": model_on_the_tiles}, rounds=3)


MEASURED = """
import json, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_slide_speed import Identity, Job, work
from pathorestore.slide.room import peak_mib
identity, source = work(Identity(), resume=False), Path(sys.argv[1])
small = Path(sys.argv[2])
identity(Job(small, small.with_name("warm.tif")))  # libraries, caches
before = peak_mib()
identity(Job(source, source.with_name("out.tif")))
print(json.dumps([before, peak_mib(), identity.estimate(source).memory_bytes]))
"""


def test_memory_knows_no_height(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    small = write_synthetic_slide(tmp_path / "small.tif", 1024, levels=2)
    script, told = MEASURED.format(here=str(Path(__file__).parent)), {}

    def measure() -> None:
        for side in (8192, 24576):
            source = write_synthetic_slide(tmp_path / f"{side}.tif", side)
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", script, source, small], capture_output=True, text=True, check=True)
            before, peak, formula = json.loads(done.stdout)
            told[side] = (before, peak, formula / MIB, time.perf_counter() - start)
            source.unlink()
            source.with_name("out.tif").unlink()

    benchmark.pedantic(measure, rounds=1)
    for side, (before, peak, formula, seconds) in told.items():
        benchmark.extra_info[f"{side} px: peak MiB"] = peak
        benchmark.extra_info[f"{side} px: MiB before"] = before
        benchmark.extra_info[f"{side} px: MiB by the formula"] = round(formula)
        benchmark.extra_info[f"{side} px: s"] = round(seconds, 1)
        cache = 64  # of OpenSlide
        assert peak - before <= 1.2 * (formula + cache)
