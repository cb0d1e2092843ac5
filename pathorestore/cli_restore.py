"""`pathorestore restore`: what it takes, and the work that makes of it, for images and for slides."""

import hashlib
import json
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathorestore.slide.restore_any import RestoreAny as RestoreAny
from pathorestore.slide.restore_any import StopSignal as StopSignal
from pathorestore.slide.restore_any import check_no_slides

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.pipelines.assemble import ReadyRestorer, RestoreOptions
    from pathorestore.pipelines.batch import Job
    from pathorestore.pipelines.trust import RiskMap
    from pathorestore.slide.restore import SlideEstimate, Status
    from pathorestore.slide.work import SlideOptions

_MIB = 2**20
Bar = Callable[..., None]


def fill_restore(command: "ArgumentParser") -> None:
    """Declare the verb's own options."""
    command.add_argument(
        "inputs",
        nargs="+",
        type=str,
        metavar="INPUT",
        help="images (PNG, JPEG, TIFF, BMP), slides (SVS, NDPI, TIFF, ...) or folders of them",
    )
    command.add_argument("-o", "--output", required=True, type=str, help="file for one input; folder, trees mirrored in it, for more")
    command.add_argument("--model", type=str, default=None, help="folder or hub repository owner/name; default: the embedded mop-tiny")
    command.add_argument("--revision", type=str, default=None, help="commit hash or tag of a hub repository")
    command.add_argument("--coarse-only", action="store_true", help="first stage only: faster, and nothing is generated")
    command.add_argument("--steps", type=int, default=None, help="steps of the second stage; default and most: those of the model, 4")
    command.add_argument("--tile", type=int, default=256, help="side of the tiles in px, a multiple of 128 (64 with --coarse-only)")
    command.add_argument("--overlap", type=int, default=32, help="overlap of neighbouring tiles in px, less than half a tile")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute; auto takes CUDA if present")
    command.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto takes bf16 on CUDA that has it")
    command.add_argument("--seed", type=int, default=0, help="seed of the second stage; same seed, same result")
    command.add_argument("--risk-map", action="store_true", help="beside each image, where it may be wrong: NAME.risk.tiff, NAME.risk.png")
    command.add_argument("--risk-seeds", type=int, default=None, help="runs of the second stage for its risk map; default: 3")
    command.add_argument("--shard", type=str, default="", metavar="I/N", help="do only part I (from 0) of N, for arrays of jobs")
    _fill_slides(command)


def _fill_slides(command: "ArgumentParser") -> None:
    from jsonargparse import ActionYesNo

    slides = command.add_argument_group("slides, which are written as pyramidal TIFF")
    slides.add_argument("--pyramid", action="store_true", help="treat plain images as slides too")
    slides.add_argument("--region", type=str, default="", metavar="X,Y,W,H", help="restore a part only, in px of the largest level")
    slides.add_argument("--mpp", type=float, default=None, help="um per pixel, where the slide does not say it or is wrong")
    slides.add_argument("--all-tiles", action="store_true", help="restore glass too, not only what differs from it")
    slides.add_argument(
        "--on-bad-tile", choices=("fail", "pass"), default="fail", help="pass: leave and record what cannot be read or restored"
    )
    resume = ActionYesNo(yes_prefix="", no_prefix="no-")
    slides.add_argument("--resume", action=resume, default=True, help="go on where an unfinished run stopped; --no-resume begins anew")
    slides.add_argument("--geojson", action="store_true", help="write what was restored, and where something went wrong, for QuPath")
    slides.add_argument("--work-dir", type=str, default=None, help="local folder for unfinished work; default: beside the output")
    slides.add_argument(
        "--format", choices=("tiff", "ome-tiff"), default="tiff", help="ome-tiff for Bio-Formats; OpenSlide sees one level of it"
    )
    slides.add_argument(
        "--compression", choices=("auto", "jpeg", "deflate"), default="auto", help="auto: jpeg, deflate (lossless) for 16 bits"
    )
    slides.add_argument("--quality", type=int, default=90, help="of JPEG, 1-100")
    slides.add_argument("--batch", type=int, default=8, help="tiles per pass on a GPU, halved where its memory is short")
    slides.add_argument("--dry-run", action="store_true", help="say what would be done, and how long it takes, and stop")
    slides.add_argument("--json-progress", action="store_true", help="progress as lines of JSON on stderr")


@dataclass(frozen=True)
class RestoreElsewhere:
    """What a worker on Ray makes its work from; it travels there."""

    arguments: "Namespace"
    clock: Callable[[], str]

    def __call__(self, device: str) -> RestoreAny:
        """The work on a device."""
        return _work(self.arguments, replace(restore_options(self.arguments), device=device), self.clock, lambda _: _no_bar, _unheard())


def files_to_restore(
    arguments: "Namespace", clock: Callable[[], str], bar: Callable[[str], Bar], stop: StopSignal
) -> "tuple[list[Job], RestoreAny]":
    """The files that the arguments name, and what is done to each. bar: makes a progress bar for a unit."""
    from pathorestore.pipelines.batch import plan_outputs
    from pathorestore.pipelines.risk_files import check_risk_names
    from pathorestore.slide.journal import sweep
    from pathorestore.slide.room import journal_path

    options = restore_options(arguments)
    if arguments.engine == "ray":  # the driver only plans
        options = replace(options, device="cpu", precision="fp32")
    planned = plan_outputs(arguments.inputs, arguments.output)
    if arguments.risk_map:
        check_no_slides(planned, pyramid=arguments.pyramid)
        check_risk_names(planned)  # before the shards, which would hide some from each other
    jobs = in_shard(planned, arguments.shard, arguments.output)
    for job in jobs:
        sweep(journal_path(job.output, Path(arguments.work_dir) if arguments.work_dir else None), job.output)
    return jobs, _work(arguments, options, clock, bar, stop)


def _work(
    arguments: "Namespace", options: "RestoreOptions", clock: Callable[[], str], bar: Callable[[str], Bar], stop: StopSignal
) -> RestoreAny:
    from pathorestore.pipelines.assemble import ready_restorer
    from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS
    from pathorestore.pipelines.restore_file import RestoreFile
    from pathorestore.slide.restore import RestoreSlide
    from pathorestore.slide.restoring import Restoring
    from pathorestore.slide.source import SLIDE_MAX_PIXELS

    slide_options = _slide_options(arguments, SLIDE_MAX_PIXELS)
    ready = ready_restorer(options, progress=bar("tile"))
    shared: dict[str, Any] = {
        "model_id": ready.model_id,
        "weights_sha256": ready.weights_sha256,
        "parameters": ready.parameters,
        "clock": clock,
        "seed": options.seed,
        "overwrite": arguments.overwrite,
    }
    risk = _risk_map(arguments, options, ready, bar) if arguments.risk_map or arguments.risk_seeds is not None else None
    image = RestoreFile(
        restorer=ready.restorer,
        max_pixels=arguments.max_pixels or DEFAULT_MAX_PIXELS,
        risk=risk,
        replace_maps=arguments.skip_existing,
        **shared,
    )
    told = _json_lines if arguments.json_progress else _bars(bar)
    slide = RestoreSlide(
        work=Restoring(system=ready.system, device=ready.device, precision=ready.precision, seed=options.seed),
        options=slide_options,
        on_status=told,
        stop=lambda: stop.asked,
        **shared,
    )
    return RestoreAny(image=image, slide=slide, pyramid=arguments.pyramid, stop=stop)


def _risk_map(arguments: "Namespace", options: "RestoreOptions", ready: "ReadyRestorer", bar: Callable[[str], Bar]) -> "RiskMap":
    from pathorestore.pipelines.trust import DEFAULT_SEEDS, ready_risk_map

    seeds = arguments.risk_seeds
    if not arguments.risk_map:
        raise ValueError("--risk-seeds belongs to --risk-map; give both or none")
    risk = ready_risk_map(ready, options, seeds=DEFAULT_SEEDS if seeds is None else seeds, progress=bar("tile"))
    if seeds is not None and not risk.model.needs_spread:
        raise ValueError(f"--risk-seeds {seeds} changes nothing: this risk map is made without runs from other seeds; leave it out")
    return risk


def restore_options(arguments: "Namespace") -> "RestoreOptions":
    """The arguments that say how to restore."""
    from pathorestore.pipelines.assemble import RestoreOptions

    return RestoreOptions(
        model=arguments.model,
        revision=arguments.revision,
        coarse_only=arguments.coarse_only,
        steps=arguments.steps,
        tile_px=arguments.tile,
        overlap_px=arguments.overlap,
        device=arguments.device,
        precision=arguments.precision,
        seed=arguments.seed,
    )


def _slide_options(arguments: "Namespace", max_pixels: int) -> "SlideOptions":
    from pathorestore.slide.work import SlideOptions

    return SlideOptions(
        tile_px=arguments.tile,
        overlap_px=arguments.overlap,
        batch_size=arguments.batch,
        format=arguments.format,
        compression=arguments.compression,
        quality=arguments.quality,
        mpp=arguments.mpp,
        region=_four_numbers(arguments.region),
        all_tiles=arguments.all_tiles,
        on_bad_tile=arguments.on_bad_tile,
        resume=arguments.resume,
        regions=arguments.geojson,
        work_dir=Path(arguments.work_dir) if arguments.work_dir else None,
        max_pixels=arguments.max_pixels or max_pixels,
    )


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
    per_tile = 0.0
    for job in jobs:
        if not work.takes_slide(job):
            rows.append([str(job.input), "image", "", "", "", "", ""])
            continue
        try:
            found: SlideEstimate = work.slide.estimate(job.input)
        except Exception as error:  # the others can be told all the same
            fail(explain(error))
            codes.append(code_of(error, job))
            continue
        per_tile = per_tile or work.slide.seconds_per_tile()
        rows.append(
            [
                str(job.input),
                f"{found.width_px} x {found.height_px}",
                f"{found.mpp:.4g}" if found.mpp else "unknown",
                f"{found.tiles} of {found.all_tiles}",
                f"{found.output_bytes / _MIB:.0f}",
                f"{found.memory_bytes / _MIB:.0f}",
                f"{found.tiles * per_tile / 60:.1f}",
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


def _unheard() -> StopSignal:
    return StopSignal(lambda _: None)


def _no_bar(*_: object) -> None:
    pass


def _json_lines(status: "Status") -> None:
    print(json.dumps(status._asdict()), file=sys.stderr, flush=True)


def _bars(bar: Callable[[str], Bar]) -> "Callable[[Status], None]":
    bars = {"restore": bar("tile"), "levels": bar("row"), "write": bar("file")}

    def show(status: "Status") -> None:
        bars[status.phase](status.done, status.total, f"{status.peak_mib} MiB")

    return show
