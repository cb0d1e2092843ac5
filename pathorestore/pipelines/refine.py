"""Fine stages: what turns a coarse image into the restored one."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.diffusion.resshift import ResShift
from pathorestore.diffusion.sampling import sample
from pathorestore.functional.noise import NoiseField
from pathorestore.models.latent import WorkingSpace
from pathorestore.models.pdiffusion import Conditions, PDiffusion
from pathorestore.models.prompts import Prompts


class Refiner(Protocol):
    """Any callable from a coarse image and what is known of the degraded one to the restored image."""

    @property
    def multiple_px(self) -> int:
        """Sides of the images it takes must be multiples of this."""
        ...

    def __call__(self, coarse: Tensor, degraded: Tensor, prompts: Prompts, *, noise: NoiseField) -> Tensor:
        """The restored image b 3 h w, unclamped."""
        ...


class KeepCoarse(nn.Module):
    """The fine stage that changes nothing."""

    multiple_px = 1

    def forward(self, coarse: Tensor, degraded: Tensor, prompts: Prompts, *, noise: NoiseField) -> Tensor:
        """Return the coarse image."""
        del degraded, prompts, noise
        return coarse


@dataclass(frozen=True, kw_only=True)
class FineSettings:
    """What a fine stage is beside its network.

    process: the chain. guard_px: width (standard deviation) of the Gaussian low-pass that is taken from the coarse image, so that the fine
    stage adds texture and moves neither colours nor shapes; 0 lets it change everything. Small networks need it: what they fail to denoise
    is coarse-grained noise. strength: how much of the fine stage's change is taken, in [0, 1]; a sample of what could be there costs more
    squared error than a part of it, and gives more texture. full_at_um: the estimated distance from focus from which on all of `strength`
    is taken, nearer proportionally less, so that an image in focus is left alone; 0 takes it everywhere.
    """

    process: ResShift
    guard_px: float = 0.0
    strength: float = 1.0
    full_at_um: float = 0.0

    def __post_init__(self) -> None:
        if min(self.guard_px, self.full_at_um) < 0 or not 0 <= self.strength <= 1:
            told = f"{self.guard_px}, {self.full_at_um} and {self.strength}"
            raise ValueError(f"guard_px and full_at_um must be at least 0 and strength in [0, 1]; got {told}")

    def share(self, defocus_um: Tensor) -> Tensor:
        """How much of the change is taken at estimated distances b: b 1 1 1."""
        nearness = (defocus_um.abs() / self.full_at_um).clamp(max=1) if self.full_at_um else torch.ones_like(defocus_um)
        return (self.strength * nearness).view(-1, 1, 1, 1)


class DiffusionRefiner(nn.Module):
    """P-diffusion run through a `ResShift` chain from the coarse image."""

    def __init__(self, denoiser: PDiffusion, settings: FineSettings, space: WorkingSpace | None = None):
        super().__init__()
        self.denoiser, self.settings = denoiser, settings
        self.space = space or denoiser.own_space()

    @property
    def multiple_px(self) -> int:
        """Sides of the images it takes must be multiples of this."""
        return self.denoiser.multiple_px

    def forward(self, coarse: Tensor, degraded: Tensor, prompts: Prompts, *, noise: NoiseField) -> Tensor:
        """Restore b 3 h w images; the result is unclamped."""
        start = self.space.encode(coarse)
        conditions = self.denoiser.condition(start, self.space.encode(degraded), prompts)
        denoise = _Conditioned(self.denoiser, conditions, bounded=self.space.bounded)
        restored = self.space.decode(sample(denoise, self.settings.process, start, lambda step: self.space.noise(noise, step, start)))
        change = restored - coarse
        if self.settings.guard_px > 0:
            change = change - gaussian_blur(change, sigma_px=self.settings.guard_px)
        return coarse + self.settings.share(prompts.defocus_um) * change


class _Conditioned:
    """The denoiser with the conditions of one batch, clipping predictions where the space is bounded."""

    def __init__(self, denoiser: PDiffusion, conditions: Conditions, *, bounded: bool):
        self.denoiser, self.conditions, self.bounded = denoiser, conditions, bounded

    def __call__(self, scaled_state: Tensor, t: Tensor) -> Tensor:
        clean: Tensor = self.denoiser(scaled_state, t, self.conditions)
        return clean.clamp(-1, 1) if self.bounded else clean
