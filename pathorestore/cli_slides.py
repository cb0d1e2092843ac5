"""What the verbs that write slides share: options, parts of a batch, estimates, progress."""

import hashlib
import json
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pathorestore.slide.restore_any import RestoreAny, StopSignal, check_no_slides

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.pipelines.batch import Job
    from pathorestore.pipelines.image_work import Risk
    from pathorestore.slide.restore import SlideEstimate, Status
    from pathorestore.slide.work import SlideOptions

R = TypeVar("R", bound="Risk")
_MIB = 2**20
Bar = Callable[..., None]


def fill_slides(command: "ArgumentParser", *, verb: str) -> None:
    """Declare the options for slides. verb: what is done to them."""
    from jsonargparse import ActionYesNo

    slides = command.add_argument_group("slides, which are written as pyramidal TIFF")
    slides.add_argument("--pyramid", action="store_true", help="treat plain images as slides too")
    slides.add_argument("--region", type=str, default="", metavar="X,Y,W,H", help=f"{verb} a part only, in px of the largest level")
    slides.add_argument("--all-tiles", action="store_true", help=f"{verb} glass too, not only what differs from it")
    slides.add_argument(
        "--on-bad-tile",
        choices=("fail", "pass"),
        default="fail",
        help="pass: leave and record what cannot be read or computed",
    )
    resume = ActionYesNo(yes_prefix="", no_prefix="no-")
    slides.add_argument("--resume", action=resume, default=True, help="go on where an unfinished run stopped; --no-resume begins anew")
    slides.add_argument("--geojson", action="store_true", help="write where tissue was, and where something went wrong, for QuPath")
    slides.add_argument("--work-dir", type=str, default=None, help="local folder for unfinished work; default: beside the output")
    slides.add_argument(
        "--format", choices=("tiff", "ome-tiff"), default="tiff", help="ome-tiff for Bio-Formats; OpenSlide sees one level of it"
    )
    slides.add_argument(
        "--compression", choices=("auto", "jpeg", "deflate"), default="auto", help="auto: jpeg, deflate (lossless) for 16 bits"
    )
    slides.add_argument("--quality", type=int, default=90, help="of JPEG, 1-100")
    slides.add_argument("--dry-run", action="store_true", help="say what would be done, and how long it takes, and stop")
    slides.add_argument("--json-progress", action="store_true", help="progress as lines of JSON on stderr")


@dataclass(frozen=True)
class Elsewhere:
    """What a worker on Ray makes its work from; it travels there. work: of arguments, options, clock, bar and stop."""

    work: Callable[..., RestoreAny]
    options: Any
    arguments: "Namespace"
    clock: Callable[[], str]

    def __call__(self, device: str) -> RestoreAny:
        """The work on a device."""
        return self.work(self.arguments, replace(self.options, device=device), self.clock, lambda _: no_bar, unheard())


def planned(arguments: "Namespace", *, mark: str = "", check: "Callable[[list[Job]], None]" = lambda _: None) -> "list[Job]":
    """The jobs that the arguments name, of the shard if one is named; what stopped runs left behind is swept away.

    mark: part of the names of outputs in folders. check: sees all of them before the shard, which would hide some from each other.
    """
    from pathorestore.pipelines.batch import plan_outputs
    from pathorestore.slide.journal import sweep
    from pathorestore.slide.room import journal_path

    every = plan_outputs(arguments.inputs, arguments.output, mark=mark)
    check(every)
    jobs = in_shard(every, arguments.shard, arguments.output)
    for job in jobs:
        sweep(journal_path(job.output, Path(arguments.work_dir) if arguments.work_dir else None), job.output)
    return jobs


def check_maps(arguments: "Namespace", jobs: "list[Job]") -> None:
    """Refuse risk maps of slides, and those that would have the name of something else."""
    from pathorestore.pipelines.risk_files import check_risk_names

    if arguments.get("risk_map"):
        check_no_slides(jobs, pyramid=arguments.pyramid)
        check_risk_names(jobs)


def risk_of_seeds(arguments: "Namespace", default: int, make: Callable[[int], R]) -> R:
    """The risk map that `make` gives for the wished number of seeds. Raises ValueError for a number that changes nothing."""
    seeds = arguments.risk_seeds
    if not arguments.risk_map:
        raise ValueError("--risk-seeds belongs to --risk-map; give both or none")
    risk = make(default if seeds is None else seeds)
    if seeds is not None and not risk.model.needs_spread:
        raise ValueError(f"--risk-seeds {seeds} changes nothing: this risk map is made without runs from other seeds; leave it out")
    return risk


def slide_options(arguments: "Namespace", *, tile_px: int, overlap_px: int, mpp: float | None = None, batch: int = 1) -> "SlideOptions":
    """The arguments that are about slides, and what was found otherwise.

    mpp: how large their pixels are, if it was said. batch: tiles per pass on an accelerator.
    """
    from pathorestore.slide.source import SLIDE_MAX_PIXELS
    from pathorestore.slide.work import SlideOptions

    return SlideOptions(
        tile_px=tile_px,
        overlap_px=overlap_px,
        batch_size=batch,
        format=arguments.format,
        compression=arguments.compression,
        quality=arguments.quality,
        mpp=mpp,
        region=_four_numbers(arguments.region),
        all_tiles=arguments.all_tiles,
        on_bad_tile=arguments.on_bad_tile,
        resume=arguments.resume,
        regions=arguments.geojson,
        work_dir=Path(arguments.work_dir) if arguments.work_dir else None,
        max_pixels=arguments.max_pixels or SLIDE_MAX_PIXELS,
    )


def for_slides(options: "SlideOptions") -> tuple[str, ...]:
    """Those of the wishes for slides that plain images cannot have, as on the command line."""
    asked = {
        "--region": options.region,
        "--geojson": options.regions,
        "--format ome-tiff": options.format != "tiff",
        "--compression": options.compression != "auto",
    }
    return tuple(name for name, wish in asked.items() if wish)


def in_shard(jobs: "Sequence[Job]", shard: str, output: str | Path) -> "list[Job]":
    """The jobs of part I of N, by the hash of their output's name below `output`: every job is in one part, whichever machine asks.

    "" is all of them. Raises ValueError for anything but I/N with 0 <= I < N.
    """
    from pathorestore.slide.jobs import relative_name

    if not shard:
        return list(jobs)
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ValueError(f"--shard {shard} must be I/N with I from 0 to N - 1, such as 0/4")
    return [job for job in jobs if _key(relative_name(job.output, Path(output))) % int(parts) == int(part)]


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


def estimates(jobs: "Sequence[Job]", work: RestoreAny, fail: Callable[[str], None]) -> tuple[list[list[str]], int]:
    """A table of what restoring would take, a row for each file that can be read, and the exit code that the others ask for.

    The time is that of a tile restored for it. fail: hears a line for each file that cannot be read.
    """
    from pathorestore.pipelines.batch import EXIT_SOME_FAILED, code_of, explain

    codes = []
    rows = [["file", "size px", "mpp", "tiles", "disk MiB", "rows MiB", "minutes"]]
    for job in jobs:
        if not work.takes_slide(job):
            rows.append([str(job.input), "image", "", "", "", "", ""])
            continue
        try:
            found: SlideEstimate = work.slide.estimate(job.input, timed=True)
        except Exception as error:  # the others can be told all the same
            fail(explain(error))
            codes.append(code_of(error, job))
            continue
        rows.append(
            [
                str(job.input),
                f"{found.width_px} x {found.height_px}",
                f"{found.mpp:.4g}" if found.mpp else "unknown",
                f"{found.tiles} of {found.all_tiles}",
                f"{found.output_bytes / _MIB:.0f}",
                f"{found.memory_bytes / _MIB:.0f}",
                f"{(found.seconds or 0) / 60:.1f}",
            ]
        )
    return rows, max(codes, default=0) if len(jobs) == 1 else EXIT_SOME_FAILED * bool(codes)


def _four_numbers(text: str) -> tuple[int, int, int, int] | None:
    if not text:
        return None
    parts = text.replace(" ", "").split(",")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise ArgumentError(None, f"--region {text} must be four whole numbers X,Y,W,H, none negative, such as 1000,2000,4096,4096")
    x, y, width, height = map(int, parts)
    return x, y, width, height


def unheard() -> StopSignal:
    """A wish to stop that nobody utters."""
    return StopSignal(lambda _: None)


def no_bar(*_: object) -> None:
    """The bar that shows nothing."""


def json_lines(status: "Status") -> None:
    """Progress as a line of JSON on stderr."""
    print(json.dumps(status._asdict()), file=sys.stderr, flush=True)


def bars_of(bar: Callable[[str], Bar]) -> "Callable[[Status], None]":
    """Progress as a bar for each phase."""
    bars = {"tiles": bar("tile"), "levels": bar("row"), "write": bar("file")}

    def show(status: "Status") -> None:
        bars[status.phase](status.done, status.total, f"{status.peak_mib} MiB")

    return show
