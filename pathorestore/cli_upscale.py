"""`pathorestore upscale`: what it takes, and the work that makes of it, for images and for slides."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
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

    from pathorestore.data.task_prompts import TaskSpec
    from pathorestore.pipelines.batch import Job
    from pathorestore.pipelines.enlarge import Enlargement
    from pathorestore.pipelines.enlargement_risk import EnlargementRisk
    from pathorestore.pipelines.upscalers import ReadyUpscaler, UpscaleOptions


def fill_upscale(command: "ArgumentParser") -> None:
    """Declare the options of `upscale`."""
    _fill_files(command)
    command.add_argument("--scale", type=float, default=None, help="how many times as large, 1 to 16, whole or not, such as 2.7")
    command.add_argument("--mpp", type=float, default=None, help="in place of --scale: the wanted um per pixel, such as 0.25")
    command.add_argument("--source-mpp", type=float, default=None, help="um per pixel of inputs that do not say it, or are wrong")
    models = (
        "iste-tiny (default), histo-diffusion-tiny (draws detail that is plausible, not measured), folder, or hub repository owner/name"
    )
    command.add_argument("--model", type=str, default=None, help=models)
    _fill_work(command, verb="enlarge")
    risk = command.add_argument_group("risk maps, of generative models")
    risk.add_argument("--risk-map", action="store_true", help="beside each image, where it may be wrong: NAME.risk.tiff, NAME.risk.png")
    risk.add_argument("--risk-seeds", type=int, default=None, help="runs of the second stage for its risk map; default: 3")


def fill_enhance(command: "ArgumentParser") -> None:
    """Declare the options of `enhance`."""
    _fill_files(command)
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", type=str, default=None, help='what to do, such as "denoise the H&E image"; known words are in the docs')
    what.add_argument("--task", type=str, default=None, help="or the name of a task, such as restore, sr, deblur, denoise, restore_jpeg")
    command.add_argument("--scale", type=float, default=None, help="how many times as large, 1 to 16; default: as the prompt says, or 1")
    _fill_prompted(command, verb="enhance")


def fill_stain(command: "ArgumentParser") -> None:
    """Declare the options of `stain`."""
    _fill_files(command)
    command.add_argument(
        "--to", required=True, type=str, help="stain that comes out: pas, ihc or masson; af and he with weights of your own"
    )
    command.add_argument("--restore", action="store_true", help="the inputs are degraded: restore them too")
    _fill_prompted(command, verb="stain")


def _fill_files(command: "ArgumentParser") -> None:
    command.add_argument(
        "inputs",
        nargs="+",
        type=str,
        metavar="INPUT",
        help="images (PNG, JPEG, TIFF, BMP), slides (SVS, NDPI, TIFF, ...) or folders of them",
    )
    command.add_argument("-o", "--output", required=True, type=str, help="file for one input; folder, trees mirrored in it, for more")


def _fill_prompted(command: "ArgumentParser", *, verb: str) -> None:
    command.add_argument(
        "--from", dest="source", type=str, default=None, help="stain of the inputs: he (default), pas, ihc, masson, af, ..."
    )
    command.add_argument("--model", type=str, default=None, help="lpfm-tiny (default), folder, or hub repository owner/name")
    tower = "folder of CLIP or Stable Diffusion, of models that learned with its text tower"
    command.add_argument("--text", type=str, default=None, metavar="FOLDER", help=tower)
    caption = "leave the caption out of the corner of virtually stained images; their record says what they are all the same"
    command.add_argument("--unmarked", action="store_true", help=caption)
    _fill_work(command, verb=verb)


def _fill_work(command: "ArgumentParser", *, verb: str) -> None:
    command.add_argument("--revision", type=str, default=None, help="commit hash or tag of a hub repository")
    tile = "side of the tiles: 16-512 px of the input, default 64; of generative models in px of the output, default 1024 or more"
    command.add_argument("--tile", type=int, default=None, help=tile)
    overlap = "what tiles see of their neighbours, in the same px; default 8, of generative models 1.5 tiles of the diffusion"
    command.add_argument("--overlap", type=int, default=None, help=overlap)
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute; auto takes CUDA if present")
    generative = command.add_argument_group("generative models")
    generative.add_argument("--coarse-only", action="store_true", help="first stage only: much faster, and nothing is generated")
    generative.add_argument("--steps", type=int, default=None, help="of the second stage; default: those of the model")
    generative.add_argument("--sampler", choices=("ddpm", "ddim", "dpm++"), default=None, help="of the second stage; default: the model's")
    generative.add_argument("--seed", type=int, default=0, help="of the second stage; same seed, same result")
    command.add_argument("--shard", type=str, default="", metavar="I/N", help="do only part I (from 0) of N, for arrays of jobs")
    fill_slides(command, verb=verb)


def upscale_elsewhere(arguments: "Namespace", clock: Callable[[], str]) -> Elsewhere:
    """What a worker on Ray makes its work from."""
    return Elsewhere(partial(_work, tells=False), upscale_options(arguments), arguments, clock)  # the driver has told


def files_to_upscale(
    arguments: "Namespace", clock: Callable[[], str], bar: Callable[[str], Bar], stop: StopSignal
) -> "tuple[list[Job], RestoreAny]":
    """The files that the arguments name, and what is done to each. bar: makes a progress bar for a unit."""
    from pathorestore.pipelines.batch import marked
    from pathorestore.pipelines.provenance import GENERATED_MARK
    from pathorestore.pipelines.upscalers import is_generative

    options = upscale_options(arguments)
    if arguments.engine == "ray":  # the driver only plans
        options = replace(options, device="cpu")
    spec = _asked(arguments)
    mark = f".virtual-{spec.target}" if spec and spec.target else GENERATED_MARK if is_generative(options) else ""
    jobs = planned(arguments, mark=mark, check=lambda every: check_maps(arguments, every))
    for name in (job.output.name for job in jobs):
        if mark and marked(name, mark) != name and not arguments.quiet:
            sys.stderr.write(f"pathorestore: {name} will hold what was generated; a name such as {marked(name, mark)} tells everyone\n")
    return jobs, _work(arguments, options, clock, bar, stop)


def upscale_options(arguments: "Namespace") -> "UpscaleOptions":
    """The arguments that say how to enlarge, or what to do under a prompt."""
    from pathorestore.pipelines.upscalers import UpscaleOptions

    target, words = _target(arguments)
    return UpscaleOptions(
        target=target,
        **words,
        model=arguments.model,
        revision=arguments.revision,
        tile_px=arguments.tile,
        overlap_px=arguments.overlap,
        device=arguments.device,
        coarse_only=arguments.coarse_only,
        steps=arguments.steps,
        sampler=arguments.sampler,
        seed=arguments.seed,
        text=arguments.get("text"),
    )


def _target(arguments: "Namespace") -> "tuple[Enlargement, dict[str, Any]]":
    """How large, and what is asked, by the options of the verb. Raises ValueError for wishes that contradict each other."""
    from pathorestore.pipelines.enlarge import Enlargement

    spec = _asked(arguments)
    if spec is None:
        return Enlargement(scale=arguments.scale, mpp=arguments.mpp, source_mpp=arguments.source_mpp), {}
    if "to" in arguments:
        return Enlargement(scale=1.0), {"task": spec.task.name if spec.task else None, "source": spec.source}
    if arguments.prompt is None:
        return Enlargement(scale=spec.scale if arguments.scale is None else arguments.scale), {
            "task": arguments.task,
            "source": spec.source,
        }
    if arguments.source is not None:
        raise ValueError(f"--from {arguments.source} belongs to --task; a prompt names its stain itself")
    if arguments.scale not in (None, spec.scale) and spec.scale != 1:
        raise ValueError(f"the prompt says {spec.scale:g} times, and --scale {arguments.scale:g}; leave one out")
    return Enlargement(scale=spec.scale if arguments.scale is None else arguments.scale), {"prompt": arguments.prompt}


def _asked(arguments: "Namespace") -> "TaskSpec | None":
    """What is asked, in the words of the tasks that are built in; None for a verb without prompts."""
    from pathorestore.data.task_prompts import parse, spec_of
    from pathorestore.data.tasks import builtin_tasks

    if "to" in arguments:
        task = f"{'restore_' if arguments.restore else ''}stain_{arguments.to.lower()}"
        return spec_of(builtin_tasks(), task=task, source=arguments.source or "he")
    if "prompt" not in arguments:
        return None
    if arguments.prompt is not None:
        return parse(arguments.prompt, builtin_tasks())
    return spec_of(builtin_tasks(), task=arguments.task, source=arguments.source or "he", scale=arguments.scale or 2.0)


def _work(
    arguments: "Namespace",
    options: "UpscaleOptions",
    clock: Callable[[], str],
    bar: Callable[[str], Bar],
    stop: StopSignal,
    *,
    tells: bool = True,
) -> RestoreAny:
    from pathorestore.data.task_prompts import UnknownPrompt
    from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS
    from pathorestore.pipelines.upscale_file import UpscaleFile
    from pathorestore.pipelines.upscalers import ready_upscaler
    from pathorestore.slide.enlarging import Enlarging
    from pathorestore.slide.restore import RestoreSlide

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UnknownPrompt)
        ready = ready_upscaler(options)
    for one in told if tells and not arguments.quiet else ():
        sys.stderr.write(f"pathorestore: {one.message}\n")
    risk = _risk_map(arguments, options, ready, bar) if arguments.get("risk_map") or arguments.get("risk_seeds") is not None else None
    wishes = slide_options(arguments, tile_px=ready.tile_px, overlap_px=ready.overlap_px)
    shared: dict[str, Any] = {
        "model_id": ready.model_id,
        "weights_sha256": ready.weights_sha256,
        "parameters": ready.parameters,
        "clock": clock,
        "seed": options.seed,
        "overwrite": arguments.overwrite,
    }
    image = UpscaleFile(
        pieces=ready.pieces,
        target=options.target,
        device=ready.device,
        max_pixels=arguments.max_pixels or DEFAULT_MAX_PIXELS,
        progress=bar("tile"),
        notice=ready.notice,
        knows_compression=ready.knows_compression,
        captions=() if arguments.get("unmarked", True) else ready.captions,
        risk=risk,
        replace_maps=arguments.skip_existing,
        **shared,
    )
    slide = RestoreSlide(
        work=Enlarging(pieces=ready.pieces, target=options.target, device=ready.device, notice=ready.notice),
        options=wishes,
        on_status=json_lines if arguments.json_progress else bars_of(bar),
        stop=lambda: stop.asked,
        **shared,
    )
    return RestoreAny(
        image=image, slide=slide, pyramid=arguments.pyramid, stop=stop, for_slides=for_slides(wishes), for_images=risk is not None
    )


def _risk_map(arguments: "Namespace", options: "UpscaleOptions", ready: "ReadyUpscaler", bar: Callable[[str], Bar]) -> "EnlargementRisk":
    from pathorestore.pipelines.enlargement_risk import DEFAULT_SEEDS, ready_enlargement_risk

    return risk_of_seeds(arguments, DEFAULT_SEEDS, lambda seeds: ready_enlargement_risk(ready, options, seeds=seeds, progress=bar("step")))
