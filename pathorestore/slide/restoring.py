"""Slides through the stages of a restorer, in blended tiles; what comes out is as large as what went in."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter

import numpy as np

from pathorestore.pipelines.provenance import RESTORED_NOTICE, Parameter
from pathorestore.pipelines.restorer import StagedRestorer
from pathorestore.slide.events import Event
from pathorestore.slide.plan import SlidePlan, active_tiles, glass_colour
from pathorestore.slide.room import memory_bytes
from pathorestore.slide.rows import Levels, Pixels
from pathorestore.slide.source import SlideSource
from pathorestore.slide.stream import ReadRows, SourceStream, StageStream
from pathorestore.slide.tiles import Tile, TileRunner
from pathorestore.slide.work import Cells, Hearing, SlideOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class Restoring:
    """The work of a restorer, which is on `device`. precision: "fp32" or "bf16". seed: of its noise."""

    system: StagedRestorer
    device: str = "cpu"
    precision: str = "fp32"
    seed: int = 0
    notice: str = RESTORED_NOTICE
    mpp_option: str = "--mpp"
    done: str = "restored"
    _seconds: dict[int, float] = field(default_factory=dict)

    def run(self, source: SlideSource, options: SlideOptions) -> "RestoringRun":
        """The work on an open slide. Raises ValueError for tiles that cannot be."""
        facts = source.facts
        plan = SlidePlan(facts.height_px, facts.width_px, options.tile_px, options.overlap_px)
        overview = None if options.all_tiles else source.overview()
        glass = None if overview is None else glass_colour(overview.whole)
        if overview is not None and glass is not None:
            plan = replace(plan, active=active_tiles(plan, overview.part, glass))
        return RestoringRun(work=self, source=source, options=options, plan=plan)

    def seconds_per_pass(self, options: SlideOptions) -> float:
        """Of a tile through a stage."""
        if options.tile_px not in self._seconds:
            self._seconds[options.tile_px] = self._timed(options)
        return self._seconds[options.tile_px]

    def _timed(self, options: SlideOptions) -> float:
        runner = self.runner(options, 8, lambda _: None)
        tile = Tile(0, 0, np.full((options.tile_px, options.tile_px, 3), 200, np.uint8))
        for _ in range(2):  # the first is slower
            start = perf_counter()
            current: list[Pixels] = []
            for stage in range(runner.stages):
                current = list(runner.run(stage, [tile], current))
        return (perf_counter() - start) / runner.stages

    def runner(self, options: SlideOptions, bit_depth: int, on_event: Callable[[Event], None]) -> TileRunner:
        """What runs tiles of a slide through the stages."""
        return TileRunner(
            restorer=self.system,
            levels=Levels.of(bit_depth),
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            batch_size=options.batch_size,
            on_bad=options.on_bad_tile,
            on_event=on_event,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RestoringRun:
    """The work of a restorer on one slide, see `SlideRun`."""

    work: Restoring
    source: SlideSource
    options: SlideOptions
    plan: SlidePlan

    @property
    def height_px(self) -> int:
        """As that of the slide."""
        return self.plan.height_px

    @property
    def width_px(self) -> int:
        """As that of the slide."""
        return self.plan.width_px

    @property
    def mpp(self) -> float | None:
        """As that of the slide."""
        return self.options.mpp or self.source.facts.mpp

    @property
    def all_passes(self) -> int:
        """Tiles times stages."""
        return self.plan.mask.size * len(self.work.system.stages)

    @property
    def memory_bytes(self) -> int:
        """See `room.memory_bytes`."""
        return memory_bytes(self.plan, self.source, stages=len(self.work.system.stages))

    @cached_property
    def cells(self) -> Cells:
        """The tiles, each up to where the next begins."""
        rows, columns = self.plan.rows.starts_px, self.plan.columns.starts_px
        return Cells((*rows, self.height_px), (*columns, self.width_px), self.plan.mask)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The tiles."""
        mask = self.plan.mask
        return {"tiles": mask.size, "tiles_restored": int(mask.sum()), "mask": hashlib.sha256(mask.tobytes()).hexdigest()[:16]}

    def passes(self, start_px: int = 0) -> int:
        """Active tiles times stages."""
        return int(self.plan.mask[self.plan.first_row(start_px) :].sum()) * len(self.work.system.stages)

    def streams(self, read: ReadRows, start_px: int, hearing: Hearing) -> tuple[SourceStream, StageStream]:
        """The source and the last stage."""
        runner = self.work.runner(self.options, self.source.facts.bit_depth, hearing.event)
        starts = [start_px]
        for _ in range(runner.stages):
            starts.insert(0, StageStream.reaches_up_to(self.plan, starts[0]))
        facts = self.source.facts
        size_px = (self.height_px, self.width_px)
        reader = SourceStream(
            read, size_px, starts[0], facts.stored_tile_px[0], offset_px=facts.offset_px[0], padded_px=self.plan.padded_px
        )
        stages: list[StageStream] = []
        for stage in range(runner.stages):
            stages.append(StageStream(runner, stage, self.plan, reader, stages[-1] if stages else None, starts[stage + 1]))
            stages[-1].on_tiles = hearing.passes
        return reader, stages[-1]

    def seconds_per_pass(self) -> float:
        """Of a tile through a stage."""
        return self.work.seconds_per_pass(self.options)

    def box(self, event: Event) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of a piece of the slide that cannot be decoded, else of a tile."""
        tile_px = self.options.tile_px
        height, width = self.source.facts.stored_tile_px if event.kind == "unreadable" else (tile_px, tile_px)
        return (event.y_px, event.x_px), (event.y_px + height, event.x_px + width)
