"""Gaussian diffusion: noise added by a fixed schedule, removed by a network that predicts it, in few of many steps.

Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020; the scaled linear schedule is that of latent diffusion (Rombach et al.,
CVPR 2022). Arithmetic and loop; the network and the noise are handed in. Steps t count from 0 to `steps` - 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from pathorestore._diffusers import load_diffusers
from pathorestore.diffusion.resshift import Gaussian
from pathorestore.diffusion.sampling import NoiseSource

SamplerName = Literal["ddpm", "ddim", "dpm++"]
Prediction = Literal["epsilon", "v_prediction"]


class NoisePredictor(Protocol):
    """Predicts the noise in a state x_t, b c h w, at a step t of the process."""

    def __call__(self, state: Tensor, t: int) -> Tensor:
        """The predicted noise, b c h w."""
        ...


@dataclass(frozen=True, kw_only=True)
class GaussianDiffusion:
    """The process x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, with a_t the product of 1 - beta up to t.

    steps: T. first_beta, last_beta: the variance that the first and the last step add; square roots rise evenly between them. prediction:
    what a network says of a state, the noise or the velocity sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans and Ho, ICLR 2022, appendix D);
    of the names in diffusers. Where hardly anything but noise is left, a small error in the noise is a large one in x_0; of the velocity
    it is not.
    """

    steps: int = 1000
    first_beta: float = 0.00085
    last_beta: float = 0.012
    prediction: Prediction = "epsilon"

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.first_beta <= self.last_beta < 1:
            raise ValueError(f"steps must be at least 2 and 0 < first_beta <= last_beta < 1; got {self}")
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}; got {self.prediction!r}")

    @cached_property
    def kept(self) -> Tensor:
        """a_t for t = 0..T-1, the share of the clean state's power that is left; float64."""
        # the device by name, here and below, so that a model built on the meta device has numbers
        betas = torch.linspace(self.first_beta**0.5, self.last_beta**0.5, self.steps, dtype=torch.float64, device="cpu") ** 2
        return (1 - betas).cumprod(0)

    def ladder(self, steps: int) -> tuple[int, ...]:
        """The steps that a sampler of so many visits, evenly spread and rounded, T - 1 first and 0 last.

        Raises ValueError beyond the process.
        """
        if not 1 <= steps <= self.steps:
            raise ValueError(f"steps must be between 1 and the {self.steps} that the model was trained with; got {steps}")
        places = torch.linspace(self.steps - 1, 0, steps, dtype=torch.float64, device="cpu")
        return tuple(int(place) for place in places.round())

    def noised(self, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of clean states b c h w at steps t, integers b."""
        signal, spread = self._shares(t, clean)
        return signal * clean + spread * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a network is to say of `noised(clean, t, noise)`."""
        if self.prediction == "epsilon":
            return noise
        signal, spread = self._shares(t, clean)
        return signal * noise - spread * clean

    def noise_in(self, state: Tensor, predicted: Tensor, t: int) -> Tensor:
        """The noise in x_t by what a network says of it."""
        if self.prediction == "epsilon":
            return predicted
        kept = self._at(t)
        return (1 - kept) ** 0.5 * state + kept**0.5 * predicted

    def clean(self, state: Tensor, noise: Tensor, t: int) -> Tensor:
        """x_0 by a predicted noise."""
        kept = self._at(t)
        return (state - (1 - kept) ** 0.5 * noise) / kept**0.5

    def posterior(self, state: Tensor, clean: Tensor, t: int, before: int) -> Gaussian:
        """q(x_before | x_t, x_0) for an earlier step, not only t - 1 (Ho et al., eq. 7, respaced); -1 is the clean state itself."""
        kept, kept_before = self._at(t), self._at(before)
        beta = 1 - kept / kept_before
        mean = (kept_before**0.5 * beta * clean + (1 - beta) ** 0.5 * (1 - kept_before) * state) / (1 - kept)
        return Gaussian(mean, state.new_full((len(state), *([1] * (state.ndim - 1))), (1 - kept_before) / (1 - kept) * beta))

    def deterministic_step(self, noise: Tensor, clean: Tensor, before: int) -> Tensor:
        """x_before with the same noise (Song et al., Denoising diffusion implicit models, ICLR 2021, eq. 12 with sigma = 0)."""
        kept = self._at(before)
        return kept**0.5 * clean + (1 - kept) ** 0.5 * noise

    def _shares(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Of the clean state and of the noise in x_t, shaped to multiply b c h w."""
        kept = self.kept[t.cpu()].view(-1, *([1] * (like.ndim - 1)))
        return kept.sqrt().to(like), (1 - kept).sqrt().to(like)

    def _at(self, t: int) -> float:
        return 1.0 if t < 0 else float(self.kept[t])


def sample(
    predict: NoisePredictor,
    process: GaussianDiffusion,
    start: Tensor,
    noise: NoiseSource,
    *,
    sampler: SamplerName = "ddpm",
    steps: int = 50,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The clean state b c h w that a start at the last step of the process leads to.

    noise: step -> standard normal b c h w; asked by "ddpm" alone, for every step that it goes to but the last. "ddim" keeps the start's
    noise; "dpm++" (DPM-Solver++ of second order, Lu et al. 2022, from diffusers) needs the fewest steps, even in the logarithm of the
    signal-to-noise ratio, as its paper has them: even steps in time end too early for fine texture. Raises ValueError for another
    sampler and for steps beyond the process.
    """
    check_sampler(sampler, process, steps)
    state = start
    for done, after in enumerate(_walk(predict, process, start, noise, sampler=sampler, steps=steps), start=1):
        state = after
        progress(done, steps)
    return state


def check_sampler(sampler: str, process: GaussianDiffusion, steps: int) -> None:
    """Raise ValueError for a name that is no `SamplerName`, and for steps that it cannot make in the process."""
    if sampler not in get_args(SamplerName):
        raise ValueError(f"sampler must be one of {', '.join(get_args(SamplerName))}; got {sampler!r}")
    process.ladder(steps)
    if sampler == "dpm++" and steps == process.steps:
        raise ValueError(f"dpm++ visits at most {process.steps - 1} steps of this process, and needs no more than 50; got {steps}")


def _walk(
    predict: NoisePredictor, process: GaussianDiffusion, state: Tensor, noise: NoiseSource, *, sampler: SamplerName, steps: int
) -> Iterator[Tensor]:
    """The states after each step."""
    if sampler == "dpm++":
        solver = _solver(process, steps)
        for t in solver.timesteps.tolist():
            state = solver.step(predict(state, t), t, state).prev_sample
            yield state
        return
    ladder = process.ladder(steps)
    for t, before in zip(ladder, (*ladder[1:], -1), strict=True):
        predicted = predict(state, t)
        clean = process.clean(state, predicted, t)
        if sampler == "ddim":
            state = process.deterministic_step(predicted, clean, before)
        else:
            posterior = process.posterior(state, clean, t, before)
            state = posterior.mean if before < 0 else posterior.mean + posterior.variance.sqrt() * noise(before)
        yield state


def _solver(process: GaussianDiffusion, steps: int) -> Any:
    solver = load_diffusers().DPMSolverMultistepScheduler(
        num_train_timesteps=process.steps,
        beta_start=process.first_beta,
        beta_end=process.last_beta,
        beta_schedule="scaled_linear",
        algorithm_type="dpmsolver++",
        use_lu_lambdas=True,
    )
    solver.set_timesteps(steps)
    return solver
