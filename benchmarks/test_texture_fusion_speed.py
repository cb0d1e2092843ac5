"""Time and memory of the streamed search of self-texture fusion; each claim is a ratio or a peak, so that it holds on any machine."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pathorestore.nn.texture_fusion import Keys, naive_similarity, smallest_stride, streamed_similarity, strided_index

CELLS, DIM = 64, 256


def textures(side: int, *, scale: int) -> tuple[Tensor, Keys]:
    """The queries of a side x side tile, and its keys at a scale: one sine for each channel, amplitude and frequency by cell."""
    generator = torch.Generator().manual_seed(0)
    amplitude, frequency, queries = (torch.randn(side * side, DIM, generator=generator) for _ in range(3))

    def keys(start: int, stop: int) -> Tensor:
        place = torch.arange(start, stop)
        row, column = place // (side * scale), place % (side * scale)
        phase = (row % scale + column % scale)[:, None] / scale
        cell = row // scale * side + column // scale
        return amplitude[cell] * torch.sin(frequency[cell] * phase)

    return queries, keys


def seconds(action, repeats: int = 3) -> float:  # type: ignore[no-untyped-def]
    action()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return min(taken)


def peak_mb(side: int, scale: int) -> float:
    """Memory that the search added to its process at most, in 10^6 bytes; in a process of its own, as a peak is never forgotten.

    From the kernel's high-water mark of this program: `ru_maxrss` would carry the size of the parent over.
    """
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_texture_fusion_speed import textures
from pathorestore.nn.texture_fusion import streamed_similarity

def status_kb(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0])

queries, keys = textures({side}, scale={scale})
streamed_similarity(queries[:10], 600, keys)
before = status_kb("VmRSS:")
streamed_similarity(queries, {(side * scale) ** 2}, keys)
print(status_kb("VmHWM:") - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout) * 1024 / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc/self/status")
@pytest.mark.parametrize("scale", [4, 8])
def test_a_64_px_tile_is_searched_in_little_memory(scale: int, benchmark) -> None:  # type: ignore[no-untyped-def]
    """One corner of the local ensemble."""
    queries, keys = textures(CELLS, scale=scale)
    count = (CELLS * scale) ** 2
    match = benchmark.pedantic(lambda: streamed_similarity(queries, count, keys), rounds=1)
    assert match.score.shape == (CELLS**2,)
    benchmark.extra_info["peak_extra_mb"] = round(peak_mb(CELLS, scale), 1)
    benchmark.extra_info["naive_n_by_n_gb"] = round(4 * count**2 / 1e9, 1)
    assert 1 < benchmark.extra_info["peak_extra_mb"] < 200


def test_twice_the_keys_take_twice_the_time(benchmark) -> None:  # type: ignore[no-untyped-def]
    queries, keys = textures(32, scale=8)
    benchmark.pedantic(lambda: streamed_similarity(queries, 65_536, keys), rounds=1)
    ratio = seconds(lambda: streamed_similarity(queries, 65_536, keys)) / seconds(lambda: streamed_similarity(queries, 32_768, keys))
    benchmark.extra_info["time_of_twice_the_keys"] = round(ratio, 2)
    assert 1.4 < ratio < 2.8


def test_distinct_queries_and_blocks_beat_the_naive_matrix(benchmark) -> None:  # type: ignore[no-untyped-def]
    """A 24 px tile at x4: small enough for the naive form, every point a query."""
    cells, keys = textures(24, scale=4)
    count = (24 * 4) ** 2
    place = torch.arange(count)
    nearest = place // 96 // 4 * 24 + place % 96 // 4
    stored = keys(0, count)
    benchmark.pedantic(lambda: streamed_similarity(cells, count, keys).at(nearest), rounds=3)
    naive = seconds(lambda: naive_similarity(cells[nearest], stored), 2)
    ours = seconds(lambda: streamed_similarity(cells, count, keys).at(nearest), 2)
    found, expected = streamed_similarity(cells, count, keys).at(nearest), naive_similarity(cells[nearest], stored)
    benchmark.extra_info["naive_over_streamed"] = round(naive / ours, 1)
    benchmark.extra_info["largest_difference"] = float((found.score - expected.score).abs().max())
    benchmark.extra_info["same_index"] = float((found.index == expected.index).float().mean())
    assert naive > 4 * ours
    assert benchmark.extra_info["largest_difference"] < 1e-6


def test_2304_strided_keys_make_x8_cheap(benchmark) -> None:  # type: ignore[no-untyped-def]
    queries, keys = textures(CELLS, scale=8)
    side = CELLS * 8
    index = strided_index(side, side, stride=smallest_stride(side, side, max_keys=2304))
    thinned = keys(0, side * side)[index]
    benchmark.extra_info["keys"] = len(index)
    benchmark(lambda: streamed_similarity(queries, len(index), lambda start, stop: thinned[start:stop]))
