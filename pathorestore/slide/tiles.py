"""Tiles of a slide through a staged restorer: batches, what is kept between stages, and what happens when something goes wrong."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pathorestore.functional.noise import NoiseField
from pathorestore.pipelines.batch import BadResult
from pathorestore.pipelines.restorer import StagedRestorer
from pathorestore.slide.events import Event
from pathorestore.slide.rows import Levels, Pixels

OnBad = Literal["fail", "pass"]


class Tile(NamedTuple):
    """A tile of the degraded slide: its top-left corner in the slide, and its pixels t t 3 uint8 or uint16."""

    y_px: int
    x_px: int
    pixels: Pixels


@dataclass(kw_only=True, eq=False)
class TileRunner:
    """Runs the stages of a restorer on tiles.

    levels: how results are stored. batch_size: tiles per pass on an accelerator; on a CPU they go one by one, since kernels there choose
    their order of summation by batch size. It is halved when the device runs out of memory. on_bad: what to do with a tile whose result is
    not finite: "fail", or "pass" the degraded pixels on. on_event: hears of every deviation.
    """

    restorer: StagedRestorer
    levels: Levels
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    batch_size: int = 1
    on_bad: OnBad = "fail"
    on_event: Callable[[Event], None] = lambda _: None
    context_bytes: int = 1 << 28
    _contexts: dict[tuple[int, int], Any] = field(default_factory=dict)

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.restorer.stages)

    def run(self, stage: int, tiles: Sequence[Tile], current: Sequence[Pixels]) -> Iterator[Pixels]:
        """Results t t 3 uint16 of a stage for tiles and their current images (uint16, of the stage before)."""
        start = 0
        while start < len(tiles):
            size = 1 if self.device == "cpu" else self.batch_size
            group = slice(start, start + size)
            try:
                results = self._run(stage, tiles[group], current[group])
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                torch.cuda.empty_cache()
                self.batch_size = size // 2  # stays so: the next tiles are no smaller
                self.on_event(Event("smaller batch", *tiles[start][:2]))
                continue
            yield from results
            start += size

    def _run(self, stage: int, tiles: Sequence[Tile], current: Sequence[Pixels]) -> list[Pixels]:
        result = self._computed(stage, tiles, current, self.precision)
        sound = torch.isfinite(result).flatten(1).all(dim=1)
        if not bool(sound.all()) and self.precision != "fp32":
            for index in torch.nonzero(~sound).flatten().tolist():
                self.on_event(Event("single precision", *tiles[index][:2]))
                self._contexts.pop(tiles[index][:2], None)
                result[index : index + 1] = self._computed(stage, tiles[index : index + 1], current[index : index + 1], "fp32")
            sound = torch.isfinite(result).flatten(1).all(dim=1)
        stored = list(self.levels.encode(result.nan_to_num()))
        for index in torch.nonzero(~sound).flatten().tolist():
            y, x, pixels = tiles[index]
            if self.on_bad == "fail":
                raise BadResult(f"the model gave values that are not finite for the tile at x={x}, y={y}; {self._remedy()}")
            self.on_event(Event("not finite", y, x))
            stored[index] = self.levels.from_pixels(pixels)
        if stage == self.stages - 1:
            for tile in tiles:
                self._contexts.pop(tile[:2], None)
        return stored

    def _remedy(self) -> str:
        wider = "--on-bad-tile pass keeps the degraded pixels there and marks the place"
        return wider if self.precision == "fp32" else f"try --precision fp32, or {wider}"

    @torch.no_grad()
    def _computed(self, stage: int, tiles: Sequence[Tile], current: Sequence[Pixels], precision: str) -> Tensor:
        degraded = torch.cat([image_of(tile.pixels) for tile in tiles]).to(self.device)
        before = degraded if stage == 0 else torch.cat([self.levels.decode(one[None]) for one in current]).to(self.device)
        noise = NoiseField(self.seed, tuple(tile[:2] for tile in tiles))
        with torch.autocast(self.device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext():
            context = self._context(tiles, degraded)
            return self.restorer.stages[stage](before, degraded, context, noise).float()

    def _context(self, tiles: Sequence[Tile], degraded: Tensor) -> Any:
        """What the restorer knows of these tiles, kept from the stage before if it was."""
        keys = [tile[:2] for tile in tiles]
        if all(key in self._contexts for key in keys):
            kept = [self._contexts[key] for key in keys]
            return type(kept[0])(*(torch.cat(parts).to(degraded.device) for parts in zip(*kept, strict=True)))
        context = self.restorer.prepare(degraded)
        per_tile = sum(part.element_size() * part[0].numel() for part in context)
        for position, key in enumerate(keys):
            if self.stages > 1 and (len(self._contexts) + 1) * per_tile <= self.context_bytes:
                self._contexts[key] = type(context)(*(part[position : position + 1].cpu() for part in context))
        return context


def image_of(pixels: Pixels) -> Tensor:
    """Pixels of a slide as an image 1 3 h w in [0, 1]."""
    top = 255 if pixels.dtype == "uint8" else 65535
    stored = torch.from_numpy(pixels.astype("int32", copy=False) if top > 255 else pixels)
    return stored.permute(2, 0, 1)[None].contiguous().float() / top
