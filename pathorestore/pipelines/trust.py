"""Where a restored image can be trusted: what speaks against each pixel, and the error that follows from it."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.degradations.slab import relative_transfer
from pathorestore.functional.noise import NoiseField
from pathorestore.functional.trust import Signals, amplitude, blur_residual, hidden_energy, sample_variance, structure_energy
from pathorestore.image import check_image, pad_to, round_up
from pathorestore.pipelines.restorer import Progress, StagedRestorer, silent
from pathorestore.pipelines.risk_model import RiskModel, RiskModels, SignalSettings
from pathorestore.tiling import Accumulator, TilePlan

if TYPE_CHECKING:
    from pathorestore.pipelines.assemble import ReadyRestorer, RestoreOptions

DEFAULT_SEEDS = 3
RISK_NOTICE = "expected error of an AI-restored image in grey levels of 255, calibrated on simulated defocus; not for diagnosis"
_LEVELS = 255.0
_OVERLAP_SHARE, _HALO_SHARE = 4, 16  # of a tile: 64 and 16 px of 256
_RIM_PX = 32  # with 256 px a length that Fourier transforms like; at 3.2 um and NA 0.75 a blur disc has a radius of 15 px
_GRID_PX = 8
_FARTHEST_UM = 12.0  # no estimator here was taught more, and the transfer function ends
Order = Callable[[int], Sequence[int]]


class TrustMaps(NamedTuple):
    """What is known of each pixel of a restored image, all b 1 h w.

    risk: expected absolute error in grey levels of 255. spread, residual, beyond_cutoff, change, structure, defocus_um: the signals that it
    was made of, see `Signals`.
    """

    risk: Tensor
    spread: Tensor
    residual: Tensor
    beyond_cutoff: Tensor
    change: Tensor
    structure: Tensor
    defocus_um: Tensor


def local_error(restored: Tensor, clean: Tensor, *, window_px: float) -> Tensor:
    """The true error b 1 h w that a risk map is to predict: absolute difference in grey levels, mean over the colours and the window."""
    difference = (restored - clean).abs().mean(1, keepdim=True) * _LEVELS
    return gaussian_blur(difference, sigma_px=window_px)


class TrustSignals:
    """Measures `Signals` of restored images of any size, tile by tile; the same for any order of the tiles, and for equal seeds.

    system: gives each tile a context with `defocus_um`, and stages, of which the last is the one that draws. seeds: how often it is run for
    the spread, each time from another seed; below 2 it is not run, and the spread is zero. device: where the system is. order: in which
    `count` tiles are visited.
    """

    def __init__(
        self,
        system: StagedRestorer,
        settings: SignalSettings,
        *,
        seeds: int = 0,
        tile_px: int | None = None,
        device: str = "cpu",
        progress: Progress = silent,
        order: Order = range,
    ):
        self.system, self.settings, self.seeds = system, settings, seeds
        self.tile_px = tile_px or system.tile_px
        self.device, self.progress, self.order = device, progress, order

    @torch.no_grad()
    def of(self, degraded: Tensor, restored: Tensor, *, seed: int = 0) -> Signals:
        """Signals of restored images b 3 h w made from degraded ones, both in [0, 1].

        Raises ValueError if they are no images of one shape, or the system does not tell how far out of focus a tile is.
        """
        check_image(degraded, name="degraded")
        check_image(restored, name="restored")
        if degraded.shape != restored.shape:
            raise ValueError(f"degraded {tuple(degraded.shape)} and restored {tuple(restored.shape)} must be of one shape")
        each = [
            self._of_one(one[None].float().cpu(), other[None].float().cpu(), seed) for one, other in zip(degraded, restored, strict=True)
        ]
        return Signals(*(torch.cat(maps) for maps in zip(*each, strict=True)))

    def _of_one(self, degraded: Tensor, restored: Tensor, seed: int) -> Signals:
        height, width = degraded.shape[-2:]
        sides = tuple(round_up(max(side, self.tile_px), math.gcd(self.tile_px, _GRID_PX)) for side in (height, width))
        plan = TilePlan(sides[0], sides[1], self.tile_px, self.tile_px // _OVERLAP_SHARE, self.tile_px // _HALO_SHARE)
        before, after = (pad_to(image.clamp(0, 1), sides[0], sides[1]) for image in (degraded, restored))
        blend = Accumulator(plan, batch=1, channels=4)
        for done, index in enumerate(self.order(len(plan)), start=1):
            blend.add(index, self._tile(plan.cut(before, index), plan.cut(after, index), NoiseField(seed, (plan.origins_px[index],))))
            self.progress(done, len(plan))
        blended = blend.image()[..., :height, :width]
        change = (restored - degraded).square().mean(1, keepdim=True)
        energies = (blended[:, 0:1], blended[:, 1:2], blended[:, 2:3], change, structure_energy(restored))
        spread, residual, hidden, went, slope = (
            amplitude(gaussian_blur(one, sigma_px=self.settings.window_px)) * _LEVELS for one in energies
        )
        return Signals(spread, residual, hidden, went, slope, defocus_um=blended[:, 3:].clone())

    def _tile(self, degraded: Tensor, restored: Tensor, noise: NoiseField) -> Tensor:
        """Energies of one tile, 1 4 h w: variance, residual, hidden; and the distance from focus."""
        degraded, restored = degraded.to(self.device), restored.to(self.device)
        context = self.system.prepare(degraded)
        if not hasattr(context, "defocus_um"):
            raise ValueError(f"{type(self.system).__name__} does not estimate the defocus, without which no blur can be compared")
        distance = context.defocus_um.float().abs().clamp(max=_FARTHEST_UM)
        side = self.tile_px + 2 * _RIM_PX
        response = relative_transfer(distance, self.settings.optics, (side, side))
        maps = [
            self._variance(degraded, context, noise),
            blur_residual(restored, degraded, response, rim_px=_RIM_PX),
            hidden_energy(restored, response, rim_px=_RIM_PX, contrast=self.settings.contrast),
            distance.view(-1, 1, 1, 1).expand(-1, 1, self.tile_px, self.tile_px),
        ]
        return torch.cat(maps, 1).cpu()

    def _variance(self, degraded: Tensor, context: Any, noise: NoiseField) -> Tensor:
        """How much the last stage varies from seed to seed, 1 1 h w."""
        if self.seeds < 2:
            return degraded.new_zeros(1, 1, *degraded.shape[-2:])
        *before, last = self.system.stages
        current = degraded
        for stage in before:  # once: only the last stage draws
            current = stage(current, degraded, context, noise)
        fields = [NoiseField(noise.seed + further, noise.origins_px) for further in range(self.seeds)]
        return sample_variance(torch.cat([last(current, degraded, context, field).float().clamp(0, 1) for field in fields]))


class RiskMap:
    """The risk map of a restorer: signals, and a calibrated model that turns them into an expected error.

    system, seeds and further arguments: see `TrustSignals`; a model that does not use the spread never runs the system again.
    Raises ValueError where the model needs a spread and seeds is below 2.
    """

    notice = RISK_NOTICE

    def __init__(self, system: StagedRestorer, model: RiskModel, *, seeds: int = DEFAULT_SEEDS, **signals: Any):
        if model.needs_spread and seeds < 2:
            raise ValueError(f"seeds={seeds} gives no spread, which this model of risk was calibrated with; take at least 2")
        self.model, self.seeds = model, seeds if model.needs_spread else 0
        self.system = system
        self.signals = TrustSignals(system, model.settings, seeds=self.seeds, **signals)

    def of(self, degraded: Tensor, restored: Tensor | None = None, *, seed: int = 0) -> TrustMaps:
        """Maps of images b 3 h w of any size. restored: what the system made of them with `seed`; None restores them here.

        Raises ValueError as `TrustSignals.of`.
        """
        if restored is None:
            from pathorestore.pipelines.tiled import TiledRestorer

            restored = TiledRestorer(self.system, tile_px=self.signals.tile_px, device=self.signals.device).restore(degraded, seed=seed)
        signals = self.signals.of(degraded, restored, seed=seed)
        return TrustMaps(self.model.expected_error(signals), *signals)

    def expected_error(self, before: Tensor, after: Tensor, *, seed: int = 0) -> Tensor:
        """The risk alone of images that the system made `after` of."""
        return self.of(before, after, seed=seed).risk


def ready_risk_map(
    ready: "ReadyRestorer", options: "RestoreOptions", *, seeds: int = DEFAULT_SEEDS, progress: Progress = silent
) -> RiskMap:
    """The risk map of a restorer that is ready, from the risk.json beside its weights. seeds: of no account for a model without a spread.

    Raises ValueError, saying what to do, where it has none, one of other weights, or one for another number of steps; and for too
    few seeds.
    """
    from pathorestore.hub import locate
    from pathorestore.pipelines.mop import default_folder

    folder = default_folder() if options.model is None else locate(options.model, revision=options.revision)
    models = RiskModels.load(folder, weights_sha256=ready.weights_sha256)
    model = models.for_steps(int(ready.parameters["steps"] or 0))
    if model.needs_spread and seeds < 2:
        raise ValueError(f"--risk-seeds {seeds} gives no spread; take at least 2, {DEFAULT_SEEDS} is the default")
    return RiskMap(ready.system, model, seeds=seeds, tile_px=options.tile_px, device=ready.device, progress=progress)
