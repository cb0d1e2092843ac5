"""One slide restored into one pyramid: planned, streamed, kept row by row, written whole."""

import json
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

from pathorestore.atomic import write_atomic
from pathorestore.pipelines.batch import Done, Job, PlanError
from pathorestore.pipelines.image_file import check_target
from pathorestore.pipelines.provenance import Parameter, Provenance, inherited
from pathorestore.pipelines.raster import ImageFileError
from pathorestore.slide.codec import TileCodec
from pathorestore.slide.events import BAD_KINDS, EVENT_NOTES, Event, counted
from pathorestore.slide.journal import Journal, OtherSettings
from pathorestore.slide.plan import OUT_TILE_PX
from pathorestore.slide.pyramid import Pyramid, build_levels, cut_tiles, write_pyramid
from pathorestore.slide.regions import write_regions
from pathorestore.slide.room import check_room, journal_path, output_bytes, peak_mib, short
from pathorestore.slide.rows import Levels, Pixels
from pathorestore.slide.source import Region, SlideSource, content_sha256, open_slide, read_rows
from pathorestore.slide.stream import SourceStream, Stream
from pathorestore.slide.work import Hearing, SlideOptions, SlideRun, SlideWork
from pathorestore.version import __version__


class Status(NamedTuple):
    """How far a slide is. phase: "tiles", "levels" or "write". done, total: tile passes, or rows of tiles. peak_mib: memory so far."""

    phase: Literal["tiles", "levels", "write"]
    done: int
    total: int
    peak_mib: int


@dataclass(frozen=True, kw_only=True)
class SlideEstimate:
    """What a slide will take. tiles: passes of tiles through stages. output_bytes: a careful guess. memory_bytes: see `room`.

    seconds: of computing, None where that was not timed.
    """

    width_px: int
    height_px: int
    mpp: float | None
    tiles: int
    all_tiles: int
    output_bytes: int
    memory_bytes: int
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RestoreSlide:
    """The work of `run_batch` on slides: restores the input of a job into a pyramid, resumably, in memory that knows no height.

    work: what is done to them. parameters: what the record says of how it computes. seed: of its noise. on_status: hears of progress. stop:
    asked after each row of output tiles; true ends the run with KeyboardInterrupt, all finished rows being kept.
    """

    work: SlideWork
    model_id: str
    weights_sha256: str | None
    parameters: Mapping[str, Parameter]
    clock: Callable[[], str]
    options: SlideOptions
    seed: int = 0
    overwrite: bool = False
    on_status: Callable[[Status], None] = lambda _: None
    stop: Callable[[], bool] = lambda: False

    def __call__(self, job: Job) -> Done:
        """Restore one slide. Raises ImageFileError or OSError for what the user can mend."""
        start = perf_counter()
        check_target(job.output, job.input, overwrite=self.overwrite)
        if job.output.suffix.lower() not in (".tif", ".tiff"):
            raise PlanError(f"{job.output}: a slide is written as TIFF; name the output with .tiff, or cut a part out of the slide first")
        source = self._open(job.input)
        try:
            return self._restore(job, source, start)
        finally:
            source.close()

    def estimate(self, path: Path, *, timed: bool = False) -> SlideEstimate:
        """What the slide at a path will take; nothing is restored. timed: do a tile, to tell how long all of them take."""
        source = self._open(path)
        try:
            run = self._run(path, source)
            codec = TileCodec.choose(self.options.compression, source.facts.bit_depth, self.options.quality)
            return SlideEstimate(
                width_px=run.width_px,
                height_px=run.height_px,
                mpp=run.mpp,
                tiles=run.passes(),
                all_tiles=run.all_passes,
                output_bytes=_output_bytes(run, codec, source),
                memory_bytes=run.memory_bytes,
                seconds=run.passes() * run.seconds_per_pass() if timed else None,
            )
        finally:
            source.close()

    def _open(self, path: Path) -> SlideSource:
        source = open_slide(path, max_pixels=self.options.max_pixels)
        if self.options.region is None:
            return source
        try:
            return Region(source, *self.options.region)
        except ValueError as error:
            source.close()
            raise PlanError(f"{path}: {error}") from None

    def _run(self, path: Path, source: SlideSource) -> SlideRun:
        try:
            return self.work.run(source, self.options)
        except ImageFileError as error:
            raise ImageFileError(f"{path}: {error}") from None

    def _restore(self, job: Job, source: SlideSource, start: float) -> Done:
        codec = TileCodec.choose(self.options.compression, source.facts.bit_depth, self.options.quality)
        run = self._run(job.input, source)
        kept_at = journal_path(job.output, self.options.work_dir)
        check_room(job.output.parent, kept_at, _output_bytes(run, codec, source))
        digest = content_sha256(job.input)
        parameters = self._parameters(run, source, codec)
        # rows that are kept already had no bad tile, so another wish about those does not concern them
        same = {name: value for name, value in parameters.items() if name != "on_bad_tile"}
        of_model = {"version": __version__, "model": self.model_id, "weights": self.weights_sha256, "seed": self.seed}
        journal = Journal(kept_at, {"input": digest, **of_model, **same}, fresh=not self.options.resume)
        try:
            check_target(job.output, job.input, overwrite=self.overwrite)  # whoever had the lock before may have written it
            self._check_events(journal)
            created = journal.remember("created_utc", self.clock())
            self._fill(journal, run, source, codec)
            before = inherited(job.input, self.work.notice)
            provenance = Provenance(
                version=__version__,
                model_id=self.model_id,
                weights_sha256=self.weights_sha256,
                seed=self.seed,
                parameters=before.over(parameters | {event.replace(" ", "_"): count for event, count in counted(journal.events).items()}),
                input_sha256=digest,
                pixel_um=run.mpp,
                created_utc=None,
                notice=before.notice,
            )
            pyramid = Pyramid(
                width_px=run.width_px,
                height_px=run.height_px,
                dtype=source.facts.dtype,
                mpp=provenance.pixel_um,
                icc=source.facts.icc,
                description=provenance.to_json(),
                software=f"pathorestore {__version__}",
                codec=codec,
                format=self.options.format,
            )
            events = journal.events
            self._build_levels(journal, pyramid)
            # first what lies beside the slide: whoever sees the slide has the record
            self._write_record(job.output, provenance, created, events, perf_counter() - start)
            if self.options.regions:
                write_regions(job.output.with_name(f"{short(job.output.name)}.geojson"), run, events)
            self.on_status(Status("write", 0, 1, peak_mib()))
            write_pyramid(journal, pyramid, job.output, overwrite=self.overwrite)
            self.on_status(Status("write", 1, 1, peak_mib()))
        except BaseException:
            journal.close()
            raise
        journal.discard()
        notes = [*source.facts.notes]
        if not provenance.pixel_um:
            notes.append(f"the slide does not say how large a pixel is, so neither does the output; {self.work.mpp_option} would")
        notes += before.notes
        notes += [EVENT_NOTES[kind].format(count) for kind, count in counted(events).items()]
        return Done(megapixels=source.facts.width_px * source.facts.height_px / 1e6, notes=tuple(notes))

    def _fill(self, journal: Journal, run: SlideRun, source: SlideSource, codec: TileCodec) -> None:
        """Restore what the journal does not hold yet; the rows behind are encoded while the next are computed."""
        first, bands = journal.lines(0), -(-run.height_px // OUT_TILE_PX)
        if first >= bands:
            return
        events: deque[Event] = deque()
        reader, final = self._streams(run, source, first * OUT_TILE_PX, events.append)
        pending: deque[tuple[int, list[Future[bytes]], list[Event]]] = deque()
        encoders = ThreadPoolExecutor(self.options.encoders, thread_name_prefix="slide-encoder")
        try:
            for band in range(first, bands):
                y, bottom = band * OUT_TILE_PX, min((band + 1) * OUT_TILE_PX, run.height_px)
                final.need(bottom)
                rows = final.window.cut(y, 0, bottom - y, run.width_px)
                final.window.forget(bottom)
                pending.append((band, [encoders.submit(self._encoded, tile, codec, source) for tile in cut_tiles(rows)], _taken(events)))
                while len(pending) > 1 or (pending and band == bands - 1):
                    _keep(journal, *pending.popleft())
                if self.stop():
                    while pending:
                        _keep(journal, *pending.popleft())
                    raise KeyboardInterrupt
        finally:
            reader.close()
            encoders.shutdown(wait=True, cancel_futures=True)

    def _streams(self, run: SlideRun, source: SlideSource, start_px: int, on_event: Callable[[Event], None]) -> tuple[SourceStream, Stream]:
        """The rows of the source and of the output from one on."""

        def read(y_px: int, height_px: int) -> Pixels:
            rows, bad = read_rows(source, y_px, height_px)
            if bad and self.options.on_bad_tile == "fail":
                y, x = bad[0]
                raise ImageFileError(
                    f"the tile at x={x}, y={y} of the slide's largest level cannot be decoded; copy or export the slide again, or let the "
                    "background's colour stand there with --on-bad-tile pass"
                )
            for y, x in bad:
                on_event(Event("unreadable", y, x))
            return rows

        total, done, peak = run.passes(start_px), 0, peak_mib()
        often = max(1, run.cells.mask.shape[1])

        def count(tiles: int) -> None:
            nonlocal done, peak
            peak = peak if done % often else peak_mib()  # asking takes as long as copying a tile
            done += tiles
            self.on_status(Status("tiles", min(done, total), total, peak))

        return run.streams(read, start_px, Hearing(event=on_event, passes=count))

    def _encoded(self, levels: Pixels, codec: TileCodec, source: SlideSource) -> bytes:
        return codec.encode(Levels.of(source.facts.bit_depth).to_pixels(levels, source.facts.dtype))

    def _check_events(self, journal: Journal) -> None:
        """Refuse to go on with a run that let bad tiles pass where none may."""
        passed = [event for event in journal.events if event.kind in BAD_KINDS]
        if passed and self.options.on_bad_tile == "fail":
            raise OtherSettings(
                f"{journal.path}: the unfinished run let {len(passed)} bad tiles pass; go on with --on-bad-tile pass, or begin anew with "
                "--no-resume"
            )

    def _build_levels(self, journal: Journal, pyramid: Pyramid) -> None:
        total = sum(pyramid.lines(level) for level in range(1, len(pyramid.sizes)))
        done = sum(journal.lines(level) for level in range(1, len(pyramid.sizes)))

        def count(lines: int) -> None:
            nonlocal done
            done += lines
            self.on_status(Status("levels", done, total, peak_mib()))
            if self.stop():
                raise KeyboardInterrupt

        build_levels(journal, pyramid, count)

    def _parameters(self, run: SlideRun, source: SlideSource, codec: TileCodec) -> dict[str, Parameter]:
        """The settings that change pixels of the output."""
        options = self.options
        return {
            **self.parameters,
            "tile_px": options.tile_px,
            "overlap_px": options.overlap_px,
            "region": None if options.region is None else ",".join(map(str, options.region)),
            "on_bad_tile": options.on_bad_tile,
            "format": options.format,
            "compression": codec.compression,
            "quality": codec.quality if codec.compression == "jpeg" else None,
            "mpp_given": options.mpp,
            "reader": source.facts.reader,
            "bit_depth": source.facts.bit_depth,
            **run.parameters,
        }

    def _write_record(self, target: Path, provenance: Provenance, created: str, events: list[Event], seconds: float) -> None:
        """What is different in every run, and every place where something went wrong, beside the slide."""
        record: dict[str, Any] = json.loads(provenance.to_json()) | {"created_utc": created, "seconds_of_last_run": round(seconds, 1)}
        record["events"] = [event._asdict() for event in events]
        record["peak_mib"] = peak_mib()
        write_atomic(target.with_name(f"{short(target.name)}.provenance.json"), (json.dumps(record, indent=1) + "\n").encode())


def _output_bytes(run: SlideRun, codec: TileCodec, source: SlideSource) -> int:
    return output_bytes((run.height_px, run.width_px), codec, source.facts.dtype.itemsize, tissue=float(run.cells.mask.mean()))


def _keep(journal: Journal, band: int, tiles: list[Future[bytes]], events: list[Event]) -> None:
    journal.keep(0, band, (tile.result() for tile in tiles), events)


def _taken(events: deque[Event]) -> list[Event]:
    return [events.popleft() for _ in range(len(events))]  # the reading thread may add to them meanwhile
