"""`pathorestore upscale`: what it takes, and the work that makes of it, for images and for slides."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathorestore.cli_slides import Bar, bars_of, fill_slides, for_slides, in_shard, json_lines, no_bar, slide_options, unheard
from pathorestore.slide.restore_any import RestoreAny, StopSignal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.pipelines.batch import Job
    from pathorestore.pipelines.upscale_file import UpscaleOptions


def fill_upscale(command: "ArgumentParser") -> None:
    """Declare the verb's own options."""
    command.add_argument(
        "inputs",
        nargs="+",
        type=str,
        metavar="INPUT",
        help="images (PNG, JPEG, TIFF, BMP), slides (SVS, NDPI, TIFF, ...) or folders of them",
    )
    command.add_argument("-o", "--output", required=True, type=str, help="file for one input; folder, trees mirrored in it, for more")
    command.add_argument("--scale", type=float, default=None, help="how many times as large, 1 to 16, whole or not, such as 2.7")
    command.add_argument("--mpp", type=float, default=None, help="in place of --scale: the wanted um per pixel, such as 0.25")
    command.add_argument("--source-mpp", type=float, default=None, help="um per pixel of inputs that do not say it, or are wrong")
    command.add_argument("--model", type=str, default=None, help="folder or hub repository owner/name; default: the embedded iste-tiny")
    command.add_argument("--revision", type=str, default=None, help="commit hash or tag of a hub repository")
    command.add_argument("--tile", type=int, default=64, help="side of the tiles in px of the input; textures are looked for within one")
    command.add_argument("--overlap", type=int, default=8, help="what tiles see of their neighbours, in px of the input")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute; auto takes CUDA if present")
    command.add_argument("--shard", type=str, default="", metavar="I/N", help="do only part I (from 0) of N, for arrays of jobs")
    fill_slides(command, verb="enlarge")


@dataclass(frozen=True)
class UpscaleElsewhere:
    """What a worker on Ray makes its work from; it travels there."""

    arguments: "Namespace"
    clock: Callable[[], str]

    def __call__(self, device: str) -> RestoreAny:
        """The work on a device."""
        return _work(self.arguments, replace(upscale_options(self.arguments), device=device), self.clock, lambda _: no_bar, unheard())


def files_to_upscale(
    arguments: "Namespace", clock: Callable[[], str], bar: Callable[[str], Bar], stop: StopSignal
) -> "tuple[list[Job], RestoreAny]":
    """The files that the arguments name, and what is done to each. bar: makes a progress bar for a unit."""
    from pathorestore.pipelines.batch import plan_outputs
    from pathorestore.slide.journal import sweep
    from pathorestore.slide.room import journal_path

    options = upscale_options(arguments)
    if arguments.engine == "ray":  # the driver only plans
        options = replace(options, device="cpu")
    jobs = in_shard(plan_outputs(arguments.inputs, arguments.output), arguments.shard, arguments.output)
    for job in jobs:
        sweep(journal_path(job.output, Path(arguments.work_dir) if arguments.work_dir else None), job.output)
    return jobs, _work(arguments, options, clock, bar, stop)


def upscale_options(arguments: "Namespace") -> "UpscaleOptions":
    """The arguments that say how to enlarge."""
    from pathorestore.pipelines.enlarge import Enlargement
    from pathorestore.pipelines.upscale_file import UpscaleOptions

    return UpscaleOptions(
        target=Enlargement(scale=arguments.scale, mpp=arguments.mpp, source_mpp=arguments.source_mpp),
        model=arguments.model,
        revision=arguments.revision,
        tile_px=arguments.tile,
        overlap_px=arguments.overlap,
        device=arguments.device,
    )


def _work(
    arguments: "Namespace", options: "UpscaleOptions", clock: Callable[[], str], bar: Callable[[str], Bar], stop: StopSignal
) -> RestoreAny:
    from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS
    from pathorestore.pipelines.upscale_file import UpscaleFile, ready_upscaler
    from pathorestore.slide.enlarging import Enlarging
    from pathorestore.slide.restore import RestoreSlide

    wishes = slide_options(arguments)
    ready = ready_upscaler(options)
    shared: dict[str, Any] = {
        "model_id": ready.system.model_id,
        "weights_sha256": ready.system.weights_sha256,
        "parameters": ready.parameters,
        "clock": clock,
        "overwrite": arguments.overwrite,
    }
    image = UpscaleFile(
        enlarger=ready.system,
        target=options.target,
        tile_px=options.tile_px,
        overlap_px=options.overlap_px,
        device=ready.device,
        max_pixels=arguments.max_pixels or DEFAULT_MAX_PIXELS,
        progress=bar("tile"),
        **shared,
    )
    slide = RestoreSlide(
        work=Enlarging(enlarger=ready.system, target=options.target, device=ready.device),
        options=wishes,
        on_status=json_lines if arguments.json_progress else bars_of(bar),
        stop=lambda: stop.asked,
        **shared,
    )
    return RestoreAny(image=image, slide=slide, pyramid=arguments.pyramid, stop=stop, for_slides=for_slides(wishes))
