"""`pathorestore restore`: what it takes, and the work that makes of it, for images and for slides."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pathorestore.cli_slides import (
    Bar,
    Elsewhere,
    bars_of,
    check_maps,
    fill_slides,
    for_slides,
    json_lines,
    planned,
    risk_of_seeds,
    slide_options,
)
from pathorestore.slide.restore_any import RestoreAny, StopSignal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.pipelines.assemble import ReadyRestorer, RestoreOptions
    from pathorestore.pipelines.batch import Job
    from pathorestore.pipelines.trust import RiskMap


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
    command.add_argument("--batch", type=int, default=8, help="tiles of slides per pass on a GPU, halved where its memory is short")
    command.add_argument("--mpp", type=float, default=None, help="um per pixel of slides that do not say it, or are wrong")
    fill_slides(command, verb="restore")


def restore_elsewhere(arguments: "Namespace", clock: Callable[[], str]) -> Elsewhere:
    """What a worker on Ray makes its work from."""
    return Elsewhere(_work, restore_options(arguments), arguments, clock)


def files_to_restore(
    arguments: "Namespace", clock: Callable[[], str], bar: Callable[[str], Bar], stop: StopSignal
) -> "tuple[list[Job], RestoreAny]":
    """The files that the arguments name, and what is done to each. bar: makes a progress bar for a unit."""
    options = restore_options(arguments)
    if arguments.engine == "ray":  # the driver only plans
        options = replace(options, device="cpu", precision="fp32")
    jobs = planned(arguments, check=lambda every: check_maps(arguments, every))
    return jobs, _work(arguments, options, clock, bar, stop)


def _work(
    arguments: "Namespace", options: "RestoreOptions", clock: Callable[[], str], bar: Callable[[str], Bar], stop: StopSignal
) -> RestoreAny:
    from pathorestore.pipelines.assemble import ready_restorer
    from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS
    from pathorestore.pipelines.restore_file import RestoreFile
    from pathorestore.slide.restore import RestoreSlide
    from pathorestore.slide.restoring import Restoring

    wishes = slide_options(arguments, tile_px=options.tile_px, overlap_px=options.overlap_px, mpp=arguments.mpp, batch=arguments.batch)
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
    slide = RestoreSlide(
        work=Restoring(system=ready.system, device=ready.device, precision=ready.precision, seed=options.seed),
        options=wishes,
        on_status=json_lines if arguments.json_progress else bars_of(bar),
        stop=lambda: stop.asked,
        **shared,
    )
    only = (*(("--mpp",) if arguments.mpp else ()), *for_slides(wishes))
    return RestoreAny(image=image, slide=slide, pyramid=arguments.pyramid, stop=stop, for_slides=only, for_images=risk is not None)


def _risk_map(arguments: "Namespace", options: "RestoreOptions", ready: "ReadyRestorer", bar: Callable[[str], Bar]) -> "RiskMap":
    from pathorestore.pipelines.trust import DEFAULT_SEEDS, ready_risk_map

    return risk_of_seeds(arguments, DEFAULT_SEEDS, lambda seeds: ready_risk_map(ready, options, seeds=seeds, progress=bar("tile")))


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
