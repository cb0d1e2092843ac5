"""Where an enlarged image can be trusted: what speaks against each pixel that was drawn, and the error that follows from it."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.degradations.resize import resized
from pathorestore.functional.trust import Signals, amplitude, structure_energy
from pathorestore.image import check_image
from pathorestore.pipelines.enlarge import enlarged
from pathorestore.pipelines.generate import GeneratedPieces
from pathorestore.pipelines.restorer import Progress, silent
from pathorestore.pipelines.risk_model import RiskModel, RiskModels

if TYPE_CHECKING:
    from pathorestore.pipelines.upscalers import ReadyUpscaler, UpscaleOptions

DEFAULT_SEEDS = 3
ENLARGEMENT_RISK_NOTICE = "expected error of AI-generated detail in grey levels of 255, calibrated on reduced images; not for diagnosis"
_LEVELS = 255.0
_REMEDY = "calibrate this model with benchmarks/calibrate_enlargement_risk.py (docs/generate.md), or leave the risk map out"


class Samples:
    """Images of one size that come one after the other, of which only sums are kept. Source: Welford, Technometrics 4 (1962) 419-420."""

    def __init__(self) -> None:
        self.count, self._mean, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, image: Tensor) -> None:
        """One more, 1 3 H W."""
        self.count += 1
        before = image - self._mean
        self._mean = self._mean + before / self.count
        self._squares = self._squares + before * (image - self._mean)

    def variance(self) -> Tensor:
        """Unbiased, mean over the colours, 1 1 H W. Raises ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"{self.count} samples have no spread; expected at least 2")
        return (self._squares / (self.count - 1)).mean(1, keepdim=True)


def enlargement_signals(small: Tensor, large: Tensor, variance: Tensor | None, *, window_px: float) -> Signals:
    """`Signals` of a large image 1 3 H W drawn from a small one 1 3 h w, both in [0, 1], in grey levels of 255.

    variance: 1 1 H W, over images of other seeds, see `Samples`; None leaves the spread zero. residual: what the large image, made small
    again, leaves unexplained; beyond_cutoff: what of it does not survive being made small; change: how far it is from interpolation; the
    others as there, with no defocus. window_px: of the smoothing. Raises ValueError for what are no such images.
    """
    check_image(small, name="small")
    check_image(large, name="large")
    size = (large.shape[-2], large.shape[-1])
    again, before = resized(resized(large, (small.shape[-2], small.shape[-1])), size), resized(small, size)
    energies = (
        large.new_zeros(1, 1, *size) if variance is None else variance,
        (again - before).square().mean(1, keepdim=True),
        (large - again).square().mean(1, keepdim=True),
        (large - before).square().mean(1, keepdim=True),
        structure_energy(large),
    )
    spread, residual, beyond, change, structure = (amplitude(gaussian_blur(one, sigma_px=window_px)) * _LEVELS for one in energies)
    return Signals(spread, residual, beyond, change, structure, defocus_um=torch.zeros_like(change))


class EnlargementRisk:
    """The risk map of a generative enlargement: signals, and a calibrated model that turns them into an expected error.

    pieces: as the image was made. seeds: how often it is made anew for the spread; a model that does not use it never does. device: where
    the pieces are made. Raises ValueError where the model needs a spread and seeds is below 2.
    """

    notice = ENLARGEMENT_RISK_NOTICE

    def __init__(
        self, pieces: GeneratedPieces, model: RiskModel, *, seeds: int = DEFAULT_SEEDS, device: str = "cpu", progress: Progress = silent
    ):
        if model.needs_spread and seeds < 2:
            raise ValueError(f"seeds={seeds} gives no spread, which this model of risk was calibrated with; take at least 2")
        self.pieces, self.model, self.seeds = pieces, model, seeds if model.needs_spread else 0
        self.device, self.progress = device, progress

    def signals(self, small: Tensor, large: Tensor) -> Signals:
        """Signals of images b 3 H W that were made of b 3 h w."""
        each = [self._of_one(one[None], other[None]) for one, other in zip(small, large, strict=True)]
        return Signals(*(torch.cat(maps) for maps in zip(*each, strict=True)))

    def expected_error(self, before: Tensor, after: Tensor, *, seed: int = 0) -> Tensor:
        """Map b 1 H W of images b 3 H W that were made of b 3 h w, in grey levels."""
        del seed  # the pieces know theirs
        return self.model.expected_error(self.signals(before, after))

    def _of_one(self, small: Tensor, large: Tensor) -> Signals:
        samples = Samples()
        for further in range(1, self.seeds + 1):
            pieces = replace(self.pieces, seed=self.pieces.seed + further)
            samples.add(enlarged(pieces, small, (large.shape[-2], large.shape[-1]), device=self.device, progress=self.progress))
        variance = samples.variance() if self.seeds else None
        return enlargement_signals(small, large, variance, window_px=self.model.settings.window_px)


def ready_enlargement_risk(
    ready: "ReadyUpscaler", options: "UpscaleOptions", *, seeds: int = DEFAULT_SEEDS, progress: Progress = silent
) -> EnlargementRisk:
    """The risk map of an upscaler that is ready, from the risk.json beside its weights.

    Raises ValueError, saying what to do, for models that generate nothing, where there is none, one of other weights, or one for another
    number of steps; and for too few seeds.
    """
    from pathorestore.hub import load_settings, locate
    from pathorestore.pipelines.controlled import SamplingSettings

    if not (ready.generative and isinstance(ready.pieces, GeneratedPieces)):
        raise ValueError("--risk-map tells where generated detail may be wrong, and nothing is generated here; leave it out")
    folder = locate(options.model or "", revision=options.revision)
    models = RiskModels.load(folder, weights_sha256=ready.weights_sha256, remedy=_REMEDY)
    stored, used = load_settings(folder, SamplingSettings, system="HistoDiffusion"), ready.pieces.system.settings
    known = [model.steps for model in models.models]
    if used.steps not in known or used.sampler != stored.sampler:
        ways = ", ".join(f"{stored.sampler} with {steps} steps" for steps in known)
        raise ValueError(f"the risk of {used.sampler} with {used.steps} steps was never calibrated, only of {ways}; leave --risk-map out")
    model = models.for_steps(used.steps)
    if model.needs_spread and seeds < 2:
        raise ValueError(f"--risk-seeds {seeds} gives no spread; take at least 2, {DEFAULT_SEEDS} is the default")
    return EnlargementRisk(ready.pieces, model, seeds=seeds, device=ready.device, progress=progress)
