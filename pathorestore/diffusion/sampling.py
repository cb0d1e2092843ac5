"""The sampling loops: any denoiser, any `ResShift` process, noise handed in."""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from pathorestore.diffusion.resshift import ResShift


class Denoiser(Protocol):
    """Predicts the clean state x_0 from the scaled state x_t, b c h w, and the training step t in 1..T, b."""

    def __call__(self, scaled_state: Tensor, t: Tensor) -> Tensor:
        """The predicted x_0, b c h w."""
        ...


NoiseSource = Callable[[int], Tensor]


def trajectory(denoise: Denoiser, process: ResShift, degraded: Tensor, noise: NoiseSource) -> Iterator[Tensor]:
    """Yield the predicted clean state of every step, T first; the last one is the sample.

    degraded: y in the working space, b c h w. noise: step -> standard normal b c h w; steps T..1 are asked once each, T for the start.
    """
    state = process.start(degraded, noise(process.steps))
    for step in range(process.steps, 0, -1):
        t = torch.full((len(degraded),), step, device=degraded.device)
        clean = denoise(process.scale_input(state, t), process.network_step(t))
        yield clean
        if step > 1:
            posterior = process.posterior(state, clean, t)
            state = posterior.mean + posterior.variance.sqrt() * noise(step - 1)


def sample(denoise: Denoiser, process: ResShift, degraded: Tensor, noise: NoiseSource) -> Tensor:
    """The restored state b c h w by ancestral sampling (ResShift, algorithm 2)."""
    *_, clean = trajectory(denoise, process, degraded, noise)
    return clean


def sample_deterministic(denoise: Denoiser, process: ResShift, degraded: Tensor, noise: NoiseSource) -> Tensor:
    """The restored state by the noise-free sampler (SinSR): the starting noise alone decides the result."""
    state = process.start(degraded, noise(process.steps))
    for step in range(process.steps, 0, -1):
        t = torch.full((len(degraded),), step, device=degraded.device)
        clean = denoise(process.scale_input(state, t), process.network_step(t))
        state = process.deterministic_step(state, clean, degraded, t)
    return state
