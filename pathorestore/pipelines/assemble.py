"""From the wishes of a user to a restorer that is ready: weights, stages, device, precision, tiles."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathorestore.image import round_up
from pathorestore.pipelines.compute import DEVICES, PRECISIONS, ComputedOn, choose_device, choose_precision
from pathorestore.pipelines.provenance import Parameter
from pathorestore.pipelines.restorer import Progress, Restorer, StagedRestorer, silent

if TYPE_CHECKING:
    from pathorestore.pipelines.mop import MoPRestorer

TILE_MULTIPLE_PX = 64
_CUDA_BATCH = 8  # tiles in one pass; on a CPU tiles go one by one whatever it says


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """Wishes for a restoration; the names in messages are those of the command line.

    model: folder or hub repository, None for the embedded weights. revision: commit hash or tag of a repository. coarse_only: leave the
    generative second stage out. steps: of the second stage, None for what the weights were made for. tile_px, overlap_px: side of the tiles
    and how far neighbours overlap. device: "auto", "cpu" or "cuda". precision: "auto", "fp32" or "bf16". seed: of the second stage's noise.
    """

    model: str | None = None
    revision: str | None = None
    coarse_only: bool = False
    steps: int | None = None
    tile_px: int = 256
    overlap_px: int = 32
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tile_px < TILE_MULTIPLE_PX or self.tile_px % TILE_MULTIPLE_PX:
            nearest = max(TILE_MULTIPLE_PX, round(self.tile_px / TILE_MULTIPLE_PX) * TILE_MULTIPLE_PX)
            raise ValueError(f"--tile {self.tile_px} must be a positive multiple of {TILE_MULTIPLE_PX} px; try --tile {nearest}")
        if not 0 <= self.overlap_px < self.tile_px / 2:
            raise ValueError(f"--overlap {self.overlap_px} must lie in 0..{(self.tile_px - 1) // 2}, below half of --tile {self.tile_px}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps {self.steps} must be at least 1; the embedded model knows 1 to 4")
        if self.steps is not None and self.coarse_only:
            raise ValueError("--steps belongs to the second stage, which --coarse-only leaves out; give one of them")
        if self.device not in DEVICES or self.precision not in PRECISIONS:
            raise ValueError(f"--device {self.device} --precision {self.precision}; expected one of {DEVICES} and one of {PRECISIONS}")
        if self.revision is not None and self.model is None:
            raise ValueError("--revision belongs to a hub repository; name it with --model owner/name")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must not be negative")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyRestorer:
    """A restorer that is ready to run, with what a provenance record says about it.

    restorer: takes whole images. system: the same taken apart, on `device`, for who cuts images himself. precision: "fp32" or "bf16".
    """

    restorer: Restorer
    system: StagedRestorer
    device: str
    precision: str
    model_id: str
    weights_sha256: str | None
    parameters: dict[str, Parameter]


def ready_restorer(options: RestoreOptions, *, progress: Progress = silent) -> ReadyRestorer:
    """Load, choose the stages, move to the device and wrap in tiles; `progress` hears (done, total) tiles.

    Raises ValueError or OSError for weights that cannot be used, steps that the weights do not know, or a missing device.
    """
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    system = load_system(options)
    tiled = in_tiles(system.to(device), options, device=device, progress=progress)
    parameters: dict[str, Parameter] = {
        "tile_px": options.tile_px,
        "overlap_px": options.overlap_px,
        "steps": _steps(system),
        "coarse_only": options.coarse_only,
        "device": device,
        "precision": precision,
    }
    return ReadyRestorer(
        restorer=ComputedOn(tiled, device=device, precision=precision),
        system=system,
        device=device,
        precision=precision,
        model_id=system.model_id,
        weights_sha256=system.weights_sha256,
        parameters=parameters,
    )


def load_system(options: RestoreOptions) -> "MoPRestorer":
    """The restorer of a folder, a hub repository or the package itself, with the stages that were asked for."""
    from pathorestore.pipelines.mop import MoPRestorer, load_default

    system = load_default() if options.model is None else MoPRestorer.from_pretrained(options.model, revision=options.revision)
    if options.coarse_only:
        return system.coarse_only()
    return system if options.steps is None else system.with_steps(options.steps)


def in_tiles(system: StagedRestorer, options: RestoreOptions, *, device: str = "cpu", progress: Progress = silent) -> Restorer:
    """The restorer working tile by tile. Raises ValueError for tiles that it cannot take."""
    from pathorestore.pipelines.tiled import TiledRestorer

    if options.tile_px % system.multiple_px:
        near = round_up(options.tile_px, system.multiple_px)
        raise ValueError(f"--tile {options.tile_px} must be a multiple of {system.multiple_px} for this model; try --tile {near}")
    return TiledRestorer(
        system, tile_px=options.tile_px, overlap_px=options.overlap_px, device=device, batch_size=_CUDA_BATCH, progress=progress
    )


def _steps(system: "MoPRestorer") -> int:
    """Steps of the second stage; 0 where there is none."""
    from pathorestore.pipelines.refine import DiffusionRefiner

    return system.fine.settings.process.steps if isinstance(system.fine, DiffusionRefiner) else 0
