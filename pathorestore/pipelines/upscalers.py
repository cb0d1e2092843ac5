"""From the wishes of a user to an upscaler that is ready: which system, how it works, on which device, in which pieces."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pathorestore.data.tasks import stain_words
from pathorestore.image import round_up
from pathorestore.pipelines.compute import DEVICES, choose_device
from pathorestore.pipelines.enlarge import DrawnPieces, Enlargement, Pieces
from pathorestore.pipelines.provenance import ENLARGED_NOTICE, GENERATED_NOTICE, RESTORED_NOTICE, STAINED_NOTICE, Parameter

if TYPE_CHECKING:
    from pathorestore.diffusion.gaussian import SamplerName
    from pathorestore.pipelines.controlled import SamplingSettings
    from pathorestore.pipelines.histo_diffusion import HistoDiffusion

DEFAULT_UPSCALER = "iste-tiny"
LEAST_OVERLAP_PX = 4
DEFAULT_PROMPTED = "lpfm-tiny"
_ISTE, _HISTO_DIFFUSION, _LPFM = "ISTE", "HistoDiffusion", "LPFM"


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions:
    """Wishes for an enlargement; the names in messages are those of the command line.

    target: how large. model: embedded name, folder or hub repository, None for the default. revision: commit hash or tag of a repository.
    tile_px, overlap_px: of the tiles, in pixels of the input, of generative models of the output; None for what suits the model. device:
    "auto", "cpu" or "cuda". The others are for generative models. coarse_only: their first stage alone, which generates nothing. steps,
    sampler: of the second, None for what the weights were made for. seed: of its noise. prompt: what is asked of models that take one; or
    task: the name of one that a model knows, with source, the stain that is given. text: folder of the text tower of CLIP that it learned
    with, if it is none of the model's own.
    """

    target: Enlargement
    model: str | None = None
    revision: str | None = None
    tile_px: int | None = None
    overlap_px: int | None = None
    device: str = "auto"
    coarse_only: bool = False
    steps: int | None = None
    sampler: "SamplerName | None" = None
    seed: int = 0
    prompt: str | None = None
    task: str | None = None
    source: str = "he"
    text: str | None = None

    @property
    def prompted(self) -> bool:
        """Whether something is asked."""
        return self.prompt is not None or self.task is not None

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"--device {self.device}; expected one of {DEVICES}")
        if self.revision is not None and self.model is None:
            raise ValueError("--revision belongs to a hub repository; name it with --model owner/name")
        if self.coarse_only and (self.steps is not None or self.sampler is not None):
            raise ValueError("--steps and --sampler belong to the second stage, which --coarse-only leaves out; give one of them")
        if self.coarse_only and self.seed:
            raise ValueError(f"--seed {self.seed} belongs to the second stage, which --coarse-only leaves out; give one of them")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps {self.steps} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must not be negative")

    def for_generative(self) -> list[str]:
        """Those of the wishes that only a generative model can have, as on the command line."""
        wishes = {"--coarse-only": self.coarse_only, "--steps": self.steps, "--sampler": self.sampler, "--seed": self.seed}
        return [name for name, wish in wishes.items() if wish]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyUpscaler:
    """A way to make pieces on a device, with what a provenance record says about it.

    tile_px, overlap_px: as they were chosen. notice: what a viewer must know. generative: whether detail is drawn from noise.
    knows_compression: whether JPEG was in what it learned from. target_stain: that comes out, if it is another one.
    prompted: whether it does what a prompt says.
    """

    pieces: Pieces
    device: str
    model_id: str
    weights_sha256: str
    tile_px: int
    overlap_px: int
    parameters: dict[str, Parameter]
    generative: bool
    knows_compression: bool
    target_stain: str = ""
    prompted: bool = False

    @property
    def captions(self) -> tuple[str, ...]:
        """What a virtually stained image has in its corner, the longest first; else nothing."""
        words = stain_words(self.target_stain).encode("ascii", "replace").decode()
        return (f"virtual {words}, stained by AI", "virtual stain", "AI") if self.target_stain else ()

    @property
    def notice(self) -> str:
        """What a viewer of the output must know."""
        if self.target_stain:
            return STAINED_NOTICE
        if self.generative:
            return GENERATED_NOTICE
        return RESTORED_NOTICE if self.prompted else ENLARGED_NOTICE


def is_generative(options: UpscaleOptions) -> bool:
    """Whether outputs will hold generated detail, told before any weights are read. Raises ValueError or OSError as `ready_upscaler`."""
    return _system(options)[0] in (_HISTO_DIFFUSION, _LPFM) and not options.coarse_only


def ready_upscaler(options: UpscaleOptions) -> ReadyUpscaler:
    """Load and move to the device. Raises ValueError or OSError for weights or wishes that cannot be used, or a missing device."""
    device = choose_device(options.device)
    system, _ = _system(options)
    return _MAKERS[system](options, device)


def _system(options: UpscaleOptions) -> tuple[str, Path]:
    from pathorestore.hub import EMBEDDED_WEIGHTS, WeightsError, locate, stored_system

    # the default is the package's, whatever lies in the current folder
    default = DEFAULT_PROMPTED if options.prompted else DEFAULT_UPSCALER
    folder = EMBEDDED_WEIGHTS / default if options.model is None else locate(options.model, revision=options.revision)
    if options.model is None and not folder.exists():
        raise WeightsError(f"no {default} weights are embedded yet; train some (docs/enhance.md) and name their folder with --model")
    system = stored_system(folder)
    if options.prompted != (system == _LPFM) or system not in _MAKERS:
        wanted = [_LPFM] if options.prompted else [name for name in _MAKERS if name != _LPFM]
        does = "does not take prompts" if options.prompted else "does not enlarge without a prompt"
        raise WeightsError(f"{folder} holds a {system}, which {does}; expected one of {', '.join(wanted)}")
    return system, folder


def prompted_weights(model: str | None) -> Path:
    """The folder of a model that takes prompts; None is the default. Raises WeightsError for what is none."""
    return _system(UpscaleOptions(target=Enlargement(scale=1.0), model=model, prompt="restore"))[1]


def _iste(options: UpscaleOptions, device: str) -> ReadyUpscaler:
    from pathorestore.pipelines.iste import ISTE, load_default

    if refused := options.for_generative():
        raise ValueError(f"{', '.join(refused)}: only for generative models, such as --model histo-diffusion-tiny; this one draws nothing")
    tile, overlap = _chosen(options.tile_px, 64), _chosen(options.overlap_px, 8)
    if not 16 <= tile <= 512:
        raise ValueError(f"--tile {tile} must lie in 16..512 px of the input; it also bounds where textures are looked for")
    if not LEAST_OVERLAP_PX <= overlap < tile / 2:
        raise ValueError(
            f"--overlap {overlap} must lie in {LEAST_OVERLAP_PX}..{(tile - 1) // 2}, below half of --tile {tile}; with less, the borders "
            "of tiles show"
        )
    system = load_default() if options.model is None else ISTE.from_pretrained(options.model, revision=options.revision)
    system = system.to(device)
    return ReadyUpscaler(
        pieces=DrawnPieces(enlarger=system, tile_px=tile, overlap_px=overlap),
        device=device,
        model_id=system.model_id,
        weights_sha256=system.weights_sha256,
        tile_px=tile,
        overlap_px=overlap,
        parameters={"tile_px": tile, "overlap_px": overlap, "max_keys": system.search.max_keys, "device": device},
        generative=False,
        knows_compression=False,
    )


def _histo_diffusion(options: UpscaleOptions, device: str) -> ReadyUpscaler:
    from pathorestore.pipelines.histo_diffusion import HistoDiffusion

    assert options.model is not None
    system = HistoDiffusion.from_pretrained(options.model, revision=options.revision)
    return _generative(
        system.with_settings(wished_settings(system.settings, steps=options.steps, sampler=options.sampler)).to(device), options, device
    )


def _generative(system: "HistoDiffusion", options: UpscaleOptions, device: str) -> ReadyUpscaler:
    from pathorestore.pipelines.generate import GeneratedPieces

    settings, grid = system.settings, system.grid_px
    tile = _chosen(options.tile_px, round_up(max(1024, 2 * settings.tile_px), grid))
    overlap = _chosen(options.overlap_px, round_up(3 * settings.tile_px // 2, grid))  # beyond that regions agree
    pieces = GeneratedPieces(system=system, tile_px=tile, overlap_px=overlap, seed=options.seed, coarse_only=options.coarse_only)
    sampling: dict[str, Parameter] = {"steps": settings.steps, "sampler": settings.sampler}
    return ReadyUpscaler(
        pieces=pieces,
        device=device,
        model_id=system.model_id,
        weights_sha256=system.weights_sha256,
        tile_px=tile,
        overlap_px=overlap,
        parameters={
            "tile_px": tile,
            "overlap_px": overlap,
            "generative": not options.coarse_only,
            **({} if options.coarse_only else sampling),
            "settings": hashlib.sha256(repr(settings).encode()).hexdigest()[:16],  # of the rest of them
            "device": device,
        },
        generative=not options.coarse_only,
        knows_compression=True,
    )


def _lpfm(options: UpscaleOptions, device: str) -> ReadyUpscaler:
    from pathorestore.hub import EMBEDDED_WEIGHTS
    from pathorestore.models.text import ClipTextEncoder
    from pathorestore.pipelines.generate import PromptedPieces
    from pathorestore.pipelines.lpfm import LPFM

    folder = EMBEDDED_WEIGHTS / DEFAULT_PROMPTED if options.model is None else options.model
    text = None if options.text is None else ClipTextEncoder(options.text)
    lpfm = LPFM.from_pretrained(folder, revision=options.revision, text=text)
    lpfm = lpfm.with_settings(wished_settings(lpfm.settings, steps=options.steps, sampler=options.sampler)).to(device)
    scale = options.target.scale or 1.0
    spec = lpfm.asked(options.prompt, task=options.task, source=options.source, scale=options.target.scale)
    system = lpfm.working(spec)
    ready = _generative(system, options, device)
    said: dict[str, Parameter] = {"prompt": spec.text, "task": spec.task.name if spec.task else None}
    return replace(
        ready,
        pieces=PromptedPieces(
            system=system,
            tile_px=ready.tile_px,
            overlap_px=ready.overlap_px,
            seed=options.seed,
            coarse_only=options.coarse_only,
            lpfm=lpfm,
            spec=spec,
            scale=scale,
        ),
        parameters=ready.parameters | said | ({"virtual_stain": spec.target, "generative": True} if spec.target else {}),
        target_stain=spec.target,
        prompted=True,
    )


def _chosen(wish: int | None, default: int) -> int:
    return default if wish is None else wish


def wished_settings(settings: "SamplingSettings", *, steps: int | None, sampler: "SamplerName | None") -> "SamplingSettings":
    """The settings with wishes for steps and sampler, if there are any. Raises ValueError where these do not fit."""
    try:
        return replace(settings, steps=_chosen(steps, settings.steps), sampler=sampler or settings.sampler)
    except ValueError as error:
        raise ValueError(f"--steps or --sampler: {error}") from None


_MAKERS: dict[str, Callable[[UpscaleOptions, str], ReadyUpscaler]] = {_ISTE: _iste, _HISTO_DIFFUSION: _histo_diffusion, _LPFM: _lpfm}
