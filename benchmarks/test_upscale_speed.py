"""Time and memory of enlarging: against decoding chunk by chunk as the released code does, and as images grow."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from taking_turns import TakingTurns
from torch import Tensor

from pathorestore.models.iste import Search, rendering_footprint
from pathorestore.nn.implicit import grid
from pathorestore.pipelines.iste import ISTE, ISTEConfig

QUERY_CHUNK = 30_000  # of the released code
SIDE_PX = 64


@pytest.fixture(scope="module")
def system() -> ISTE:
    """A tiny system as it is born; training changes no time."""
    torch.manual_seed(0)
    return ISTE.of(ISTEConfig.tiny()).eval()


@torch.no_grad()
def chunk_by_chunk(system: ISTE, image: Tensor, scale: int) -> Tensor:
    """The encoder for each chunk of queries, and in the chunk every query compared with every other."""
    size = (image.shape[-2] * scale, image.shape[-1] * scale)
    footprint = rendering_footprint((image.shape[-2], image.shape[-1]), size)[None]
    places = grid(*size)
    return torch.cat([system(image, chunk[None], footprint)[0] for chunk in places.split(QUERY_CHUNK)])


@pytest.mark.parametrize("scale", [4, 8])
def test_a_tile_beside_decoding_chunk_by_chunk(taking_turns: TakingTurns, system: ISTE, scale: int) -> None:
    """The same tile and network; ours searches among all pixels, the other among those of a chunk."""
    image = torch.rand(1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))
    contenders = {
        "two passes": lambda: system.upscale(image, scale=scale),
        "chunk by chunk": lambda: chunk_by_chunk(system, image, scale),
    }
    taking_turns(contenders, rounds=2)
    assert taking_turns.benchmark.extra_info["chunk by chunk / two passes"] > 3


def test_fewer_keys(taking_turns: TakingTurns, system: ISTE) -> None:
    """As many keys as in training make large scales cheap; the picture differs a little."""
    image = torch.rand(1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))

    def searching(keys: int | None) -> Tensor:
        system.search = Search(max_keys=keys)
        made = system.upscale(image, scale=4)
        system.search = Search()
        return made

    taking_turns({"2304 keys": lambda: searching(2304), "all keys": lambda: searching(None)}, rounds=3)


def test_time_grows_with_the_pixels_that_are_made(benchmark: BenchmarkFixture, system: ISTE) -> None:
    """At a fixed tile and scale; images of whole tiles, so that no tile is smaller."""
    core = 48  # of tiles of 64 px that share 8 px

    def seconds(tiles: int) -> float:
        image = torch.rand(1, 3, core * tiles, core * tiles, generator=torch.Generator().manual_seed(0))
        start = time.perf_counter()
        system.upscale(image, scale=2)
        return time.perf_counter() - start

    seconds(2)
    ratios = []
    benchmark.pedantic(lambda: ratios.append(seconds(4) / seconds(2)), rounds=3)  # type: ignore[no-untyped-call]
    benchmark.extra_info["time of four times the pixels"] = round(sorted(ratios)[1], 2)
    assert 3 < sorted(ratios)[1] < 5.5  # tiles at the edges see fewer neighbours


MEASURED = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from pathorestore.pipelines.iste import ISTE, ISTEConfig

def status_mib(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0]) / 1024

torch.manual_seed(0)
system = ISTE.of(ISTEConfig.tiny()).eval()
system.upscale(torch.rand(1, 3, 16, 16), scale=4)
image = torch.rand(1, 3, {side}, {side})
before = status_mib("VmRSS:")
made = system.upscale(image, scale={scale})
# the output and its clamped self are the caller's
print(status_mib("VmHWM:") - before - made.numel() * 4 / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc/self/status")
def test_memory_is_the_tiles(benchmark: BenchmarkFixture) -> None:
    """Beside input and output, whatever the size of the image."""
    told = benchmark.extra_info

    def measure() -> None:
        for side, scale in ((64, 4), (256, 4), (64, 8)):
            code = MEASURED.format(side=side, scale=scale)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
            told[f"MiB beside a {side} px image x{scale}"] = round(float(done.stdout), 1)

    benchmark.pedantic(measure, rounds=1)  # type: ignore[no-untyped-call]
    # what an allocator keeps differs by as much between runs of one size
    assert max(value for value in told.values() if isinstance(value, float)) < 200
