"""Restoration in tiles: megapixels per second, and what tiling and blending add to the time of the network on those tiles.

PATHORESTORE_BENCH_SIDE sets the side of the image in px (1024).
"""

import os

import pytest
import torch
from taking_turns import TakingTurns
from torch import Tensor

from pathorestore.functional.noise import NoiseField
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.tiled import TiledRestorer
from pathorestore.tiling import TilePlan

SIDE_PX = int(os.environ.get("PATHORESTORE_BENCH_SIDE", "1024"))
TILE_PX, OVERLAP_PX = 256, 32
NOISE = NoiseField.whole(0, 1)


@pytest.mark.parametrize("stages", ["coarse only", "two-stage"])
def test_restoring_an_image(taking_turns: TakingTurns, untrained: MoPRestorer, stages: str) -> None:
    restorer = untrained.coarse_only() if stages == "coarse only" else untrained
    tiled = TiledRestorer(restorer, tile_px=TILE_PX, overlap_px=OVERLAP_PX)
    image = torch.rand(1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))
    plan = TilePlan(SIDE_PX, SIDE_PX, TILE_PX, OVERLAP_PX)
    tiles = [plan.cut(image, index) for index in range(len(plan))]

    @torch.no_grad()
    def network_on_the_tiles() -> list[Tensor]:
        return [restorer(tile, noise=NOISE) for tile in tiles]

    medians = taking_turns({"tiled": lambda: tiled.restore(image), "network on its tiles": network_on_the_tiles}, rounds=3)
    seen = len(tiles) * TILE_PX**2 / SIDE_PX**2
    taking_turns.benchmark.extra_info |= {
        "megapixels per second": round(SIDE_PX**2 / 1e6 / medians["tiled"], 4),
        "side px": SIDE_PX,
        "tiles": len(tiles),
        "pixels computed per pixel": round(seen, 3),
    }
