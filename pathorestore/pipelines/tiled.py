"""Any size of image through a restorer that only ever sees tiles."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pathorestore.functional.noise import NoiseField
from pathorestore.image import check_image, pad_to, round_up
from pathorestore.pipelines.restorer import Progress, StagedRestorer, silent
from pathorestore.tiling import Accumulator, TilePlan

_GRID_PX = 8
Order = Callable[[int], Sequence[int]]


class TiledRestorer:
    """Wraps a staged restorer and is a restorer: every part sees tiles of exactly tile_px; each stage is blended over the whole image.

    The result depends on the image and the seed alone: noise is keyed by image coordinates, sums are integers, and on the CPU tiles go
    through the network one by one (its kernels choose their order of summation by batch size), so that batch_size and order change no bit
    there. On an accelerator the size of a batch may change the last bits.

    overlap_px, halo_px: of neighbouring tiles, see `TilePlan`. device: where the restorer is; images stay on the CPU and tiles travel, so
    that the device's memory is bounded by the tile. batch_size: tiles per forward pass on an accelerator. progress: called with (done,
    total) tile passes. order: the order in which `count` tiles are visited.
    """

    context_bytes = 1 << 30
    """How much memory the tiles' prompts may take between stages; beyond it they are computed again."""

    def __init__(
        self,
        restorer: StagedRestorer,
        *,
        tile_px: int | None = None,
        overlap_px: int = 32,
        halo_px: int = 0,
        device: str = "cpu",
        batch_size: int = 1,
        progress: Progress = silent,
        order: Order = range,
    ):
        self.restorer, self.overlap_px, self.halo_px = restorer, overlap_px, halo_px
        self.device, self.batch_size = device, batch_size
        self.tile_px = tile_px or restorer.tile_px
        self.progress, self.order = progress, order
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self.tile_px % restorer.multiple_px:
            near = round_up(self.tile_px, restorer.multiple_px)
            raise ValueError(f"tile_px={self.tile_px} must be a multiple of {restorer.multiple_px} for this restorer; try {near}")
        TilePlan(self.tile_px, self.tile_px, self.tile_px, overlap_px, halo_px)

    @torch.no_grad()
    def restore(self, image: Tensor, *, seed: int = 0) -> Tensor:
        """Restore images b 3 h w in [0, 1] of any size, one after the other; returns the same shape, clamped, on the CPU."""
        check_image(image)
        return torch.cat([self._restore_one(one[None], seed) for one in image])

    def _restore_one(self, image: Tensor, seed: int) -> Tensor:
        height, width = image.shape[-2:]
        # a grid that tiles start on even at the far edges, where the last one is moved back
        sides = [round_up(max(side, self.tile_px), math.gcd(self.tile_px, _GRID_PX)) for side in (height, width)]
        padded = pad_to(image.float().cpu(), *sides)
        plan = TilePlan(sides[0], sides[1], self.tile_px, self.overlap_px, self.halo_px)
        contexts: dict[int, Any] = {}
        current = padded
        for number, stage in enumerate(self.restorer.stages):
            blend = Accumulator(plan, batch=1, channels=3)
            for done, index in enumerate(self._visit(plan, padded, contexts, stage, current, seed, blend), start=1):
                del index
                self.progress(number * len(plan) + done, len(self.restorer.stages) * len(plan))
            current = blend.image()
        return current[..., :height, :width].clamp(0, 1)

    def _visit(
        self,
        plan: TilePlan,
        degraded: Tensor,
        contexts: dict[int, Any],
        stage: Callable[[Tensor, Tensor, Any, NoiseField], Tensor],
        current: Tensor,
        seed: int,
        blend: Accumulator,
    ) -> Any:
        """Run one stage over all tiles; yields each tile's index when its result is in the blend."""
        order = list(self.order(len(plan)))
        for group in self._groups(order):
            tiles = torch.cat([plan.cut(degraded, index) for index in group]).to(self.device)
            context = self._context(tiles, group, contexts)
            noise = NoiseField(seed, tuple(plan.origins_px[index] for index in group))
            result = stage(torch.cat([plan.cut(current, index) for index in group]).to(self.device), tiles, context, noise)
            for index, tile in zip(group, result, strict=True):
                blend.add(index, tile[None])
                yield index

    def _groups(self, order: list[int]) -> list[list[int]]:
        size = 1 if self.device == "cpu" else self.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _context(self, tiles: Tensor, group: Sequence[int], contexts: dict[int, Any]) -> Any:
        """The tiles' context, kept from the last stage if it was."""
        if all(index in contexts for index in group):
            kept = [contexts[index] for index in group]
            return type(kept[0])(*(torch.cat(parts).to(tiles.device) for parts in zip(*kept, strict=True)))
        context = self.restorer.prepare(tiles)
        per_tile = sum(part.element_size() * part[0].numel() for part in context)
        for position, index in enumerate(group):
            if (len(contexts) + 1) * per_tile <= self.context_bytes:
                contexts[index] = type(context)(*(part[position : position + 1].cpu() for part in context))
        return context
