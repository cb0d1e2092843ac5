"""Large images made by a generative system, region by region of the output, so that a slide is what its image would be."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pathorestore.nn.implicit import Lattice, bicubic_on
from pathorestore.pipelines.batch import BadResult
from pathorestore.pipelines.enlarge import Cut, Cuts, Size, unheard

if TYPE_CHECKING:
    from pathorestore.data.task_prompts import TaskSpec
    from pathorestore.pipelines.histo_diffusion import HistoDiffusion
    from pathorestore.pipelines.lpfm import LPFM

_TRIAL_STEPS = (2, 5)


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedPieces:
    """Regions of the large image, `Pieces` of tile_px to a side; overlap_px more on every side are worked at and thrown away.

    A rest of the image that is no wider than the overlap belongs to the region before it, which works at it already.

    Noise and the tiles of the diffusion lie where they would in the whole image, so regions agree if they overlap by about one and a half
    of those tiles. seed: of the noise. coarse_only: leave the generative stage out. Raises ValueError for sides off the system's grid.
    """

    system: "HistoDiffusion"
    tile_px: int = 1024
    overlap_px: int = 192
    seed: int = 0
    coarse_only: bool = False

    def __post_init__(self) -> None:
        grid = self.system.grid_px
        for option, value in (("--tile", self.tile_px), ("--overlap", self.overlap_px)):
            if value < grid or value % grid:
                near = max(grid, round(value / grid) * grid)
                raise ValueError(f"{option} {value} must be a multiple of {grid} px of the output for this model; try {option} {near}")

    @property
    def passes(self) -> int:
        """Steps of the sampler; one where it is left out."""
        return 1 if self.coarse_only else self.system.settings.steps

    def seen(self, image: Tensor) -> "GeneratedPieces":
        """See `Pieces`."""
        del image
        return self

    def cuts(self, size: Size, out_size: Size) -> Cuts:
        """See `Pieces`. An image with a side that is too small for the system is one piece."""
        cuts = self._whole_axis if self._is_small(out_size) else self._cuts
        rows, columns = (tuple(cuts(length, out)) for length, out in zip(size, out_size, strict=True))
        return rows, columns

    @torch.no_grad()
    def make(self, part: Tensor, down: Cut, across: Cut, size: Size, out_size: Size, *, heard: Callable[[], None] = unheard) -> Tensor:
        """See `Pieces`; clamped."""
        if self._is_small(out_size):
            return self._whole(part, out_size, heard)
        cuts, beyond = (down, across), self.overlap_px
        places = (cut.coordinates(length, out, beyond_px=beyond) for cut, length, out in zip(cuts, size, out_size, strict=True))
        enlarged = bicubic_on(part, Lattice(*places)).clamp(0, 1)
        top, left = (cut.worked(out, beyond_px=beyond)[0] for cut, out in zip(cuts, out_size, strict=True))
        # of a batch, progress is told by the last
        hears = [unheard] * (len(enlarged) - 1) + [heard]
        made = torch.cat([self._region(one[None], (top, left), hear) for one, hear in zip(enlarged, hears, strict=True)])
        return made[..., down.made[0] - top : down.made[1] - top, across.made[0] - left : across.made[1] - left]

    def seconds_per_pass(self, down: Cut, across: Cut, device: str) -> float:
        """See `Pieces`: from one tile of the diffusion with few steps and with more, times as many as cover such a region."""
        settings, sides = self.system.settings, [cut.made[1] - cut.made[0] + 2 * self.overlap_px for cut in (down, across)]
        tile = torch.full((1, 3, settings.tile_px, settings.tile_px), 0.8, device=device)
        if self.coarse_only:
            return self._seconds(tile, settings.steps) * math.prod(sides) / settings.tile_px**2
        tiles = math.prod(max(1.0, side / self.system.sampler.grid_px - 1) for side in sides)
        few, more = (self._seconds(tile, steps) for steps in _TRIAL_STEPS)
        step = max(more - few, 0.0) / (_TRIAL_STEPS[1] - _TRIAL_STEPS[0])
        around = max(few - _TRIAL_STEPS[0] * step, 0.0)  # both stages' networks before and after the steps
        return (step + around / settings.steps) * tiles

    def _seconds(self, tile: Tensor, steps: int) -> float:
        settings = self.system.settings
        trial = replace(self, system=self.system.with_settings(replace(settings, steps=min(steps, settings.process.steps - 1))))
        start = perf_counter()
        for _ in range(2):  # the first is slower
            start = perf_counter()
            float(trial._region(tile, (0, 0), unheard).sum())  # waits for an accelerator
        return perf_counter() - start

    def _is_small(self, out_size: Size) -> bool:
        return min(out_size) < self.system.settings.min_px

    def _whole_axis(self, length: int, out: int) -> Iterator[Cut]:
        yield Cut(read=(0, length), made=(0, out))

    def _cuts(self, length: int, out: int) -> Iterator[Cut]:
        for start in range(0, out, self.tile_px):
            # the last region sees the rest of the image anyway
            made = (start, out if start + self.tile_px + self.overlap_px >= out else start + self.tile_px)
            first, last = Cut(read=made, made=made).worked(out, beyond_px=self.overlap_px)
            # cubic interpolation takes two pixels on either side of a centre
            low, high = (math.floor((place + 0.5) * length / out - 0.5) for place in (first, last - 1))
            yield Cut(read=(max(0, low - 1), min(length, high + 3)), made=made)
            if made[1] == out:
                return

    def _whole(self, image: Tensor, out_size: Size, heard: Callable[[], None]) -> Tensor:
        try:
            if not self.coarse_only:
                return self.system.upscale(image, out_size=out_size, seed=self.seed, progress=lambda *_: heard())
            made = self.system.coarse(image, out_size=out_size)
        except BadResult:  # told by whoever knows what to do about it
            made = image.new_full((len(image), 3, *out_size), math.nan)
        heard()
        return made

    def _region(self, part: Tensor, origin_px: Size, heard: Callable[[], None]) -> Tensor:
        if not self.coarse_only:
            return self.system.region(part, origin_px=origin_px, seed=self.seed, progress=lambda *_: heard())
        made = self.system.coarse_region(part)
        heard()
        return made


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptedPieces(GeneratedPieces):
    """Regions made by an `LPFM` under one prompt; what its encoder sees of an image counts if it was looked at, else the prompt alone.

    scale: how many times as large images become.
    """

    lpfm: "LPFM"
    spec: "TaskSpec"
    scale: float = 1.0

    def seen(self, image: Tensor) -> "PromptedPieces":
        """See `Pieces`."""
        return replace(self, system=self.lpfm.working(self.spec, self.lpfm.impression(image, scale=self.scale)))
