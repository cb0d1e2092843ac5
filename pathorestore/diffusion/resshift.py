"""ResShift: a Markov chain that shifts the residual between the degraded and the clean image (Yue et al., NeurIPS 2023).

Arithmetic only; the network and the loop live elsewhere. Steps t count from 1 to `steps`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """mean: like the state; variance: one number per batch item, b 1 1 1."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, kw_only=True)
class ResShift:
    """The process. steps: T. kappa: noise strength. min_noise: standard deviation kappa sqrt(eta_1) of the first step is at most this.

    power: shape p of the schedule. last_sqrt_eta: sqrt(eta_T). input_scale: how a state is scaled before the network: "pixel" divides by
    3 kappa sqrt(eta) + 1 (states bounded by the data range), "latent" by sqrt(kappa^2 eta + 1) (unit-variance data). kept: training steps
    that a shortened chain visits, ascending and ending in T, see `shortened`; empty for all.
    """

    steps: int = 4
    kappa: float = 2.0
    min_noise: float = 0.2
    power: float = 0.3
    last_sqrt_eta: float = 0.99
    input_scale: Literal["pixel", "latent"] = "pixel"
    kept: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if min(self.kappa, self.min_noise, self.power) <= 0 or not 0 < self.last_sqrt_eta <= 1:
            raise ValueError(f"kappa, min_noise and power must be positive and last_sqrt_eta in (0, 1]; got {self}")
        if self.kept and (len(self.kept) != self.steps or list(self.kept) != sorted(set(self.kept)) or self.kept[0] < 1):
            raise ValueError(f"kept must name {self.steps} ascending training steps from 1; got {self.kept}")

    def shortened(self, steps: int) -> "ResShift":
        """The same chain visiting only `steps` of its steps, evenly spread and always the last; for a network trained on all of them.

        Any subset of the etas is again a chain of this kind, so marginals agree at the steps that are kept. Raises ValueError beyond the
        chain.
        """
        if not 1 <= steps <= self.steps:
            raise ValueError(f"steps must be between 1 and the {self.steps} that the model was trained with; got {steps}")
        ladder = self.kept or tuple(range(1, self.steps + 1))
        chosen = sorted({round(self.steps * (index + 1) / steps) for index in range(steps)})
        return replace(self, steps=steps, kept=tuple(ladder[index - 1] for index in chosen))

    def network_step(self, t: Tensor) -> Tensor:
        """The training step, b, that a step t of this chain stands for."""
        return torch.tensor([0, *self.kept], device=t.device)[t] if self.kept else t

    @cached_property
    def sqrt_eta(self) -> Tensor:
        """sqrt(eta_t) for t = 0..T in float64, sqrt(eta_0) = 0: a geometric path from s_1 to s_T in ((t-1)/(T-1))^p (ResShift, eq. 10)."""
        first = min(self.min_noise / self.kappa, self.min_noise)
        total = self.kept[-1] if self.kept else self.steps
        fraction = torch.arange(total, dtype=torch.float64) / max(total - 1, 1)
        path = first * (self.last_sqrt_eta / first) ** fraction**self.power if total > 1 else fraction + self.last_sqrt_eta
        path = torch.cat([torch.zeros(1, dtype=torch.float64), path])
        return path[[0, *self.kept]] if self.kept else path

    @cached_property
    def eta(self) -> Tensor:
        """eta_t for t = 0..T, float64."""
        return self.sqrt_eta**2

    @cached_property
    def alpha(self) -> Tensor:
        """alpha_t = eta_t - eta_{t-1} for t = 1..T at index t (index 0 is 0), float64."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.eta.diff()])

    def marginal(self, clean: Tensor, degraded: Tensor, t: Tensor) -> Gaussian:
        """q(x_t | x_0, y): mean x_0 + eta_t (y - x_0), variance kappa^2 eta_t. t: integers b."""
        eta = _at(self.eta, t, clean)
        return Gaussian(clean + eta * (degraded - clean), self.kappa**2 * eta)

    def transition(self, previous: Tensor, clean: Tensor, degraded: Tensor, t: Tensor) -> Gaussian:
        """q(x_t | x_{t-1}, y): mean x_{t-1} + alpha_t (y - x_0), variance kappa^2 alpha_t."""
        alpha = _at(self.alpha, t, clean)
        return Gaussian(previous + alpha * (degraded - clean), self.kappa**2 * alpha)

    def posterior(self, state: Tensor, clean: Tensor, t: Tensor) -> Gaussian:
        """q(x_{t-1} | x_t, x_0): mean (eta_{t-1}/eta_t) x_t + (alpha_t/eta_t) x_0; at t = 1 it is x_0 itself with zero variance."""
        keep = _at(self._previous_eta / self._safe_eta, t, state)
        pull = _at(self.alpha / self._safe_eta, t, state)
        return Gaussian(keep * state + pull * clean, self.kappa**2 * keep * _at(self.alpha, t, state))

    def deterministic_step(self, state: Tensor, clean: Tensor, degraded: Tensor, t: Tensor) -> Tensor:
        """The noise-free map from the marginal at t to the marginal at t-1 with the same noise: k x_0 + m x_t + j y (SinSR, 2024)."""
        eta, previous = self.eta, self._previous_eta
        m = (previous / self._safe_eta).sqrt()
        j = previous - (previous * eta).sqrt()
        k = 1 - previous + (previous * eta).sqrt() - m
        return _at(k, t, state) * clean + _at(m, t, state) * state + _at(j, t, state) * degraded

    def start(self, degraded: Tensor, noise: Tensor) -> Tensor:
        """x_T = y + kappa sqrt(eta_T) noise; drops (1 - eta_T)(x_0 - y), which is unknown and small."""
        return degraded + self.kappa * float(self.sqrt_eta[-1]) * noise

    def scale_input(self, state: Tensor, t: Tensor) -> Tensor:
        """The state at unit range or variance, as the network receives it."""
        sqrt_eta = _at(self.sqrt_eta, t, state)
        return state / ((3 * self.kappa * sqrt_eta + 1) if self.input_scale == "pixel" else (self.kappa**2 * sqrt_eta**2 + 1).sqrt())

    def kl_weight(self, t: Tensor) -> Tensor:
        """alpha_t / (2 kappa^2 eta_t eta_{t-1}), the weight of the variational bound, b.

        At t = 1 the variance of t = 2 stands in for zero.
        """
        variance = self.kappa**2 * self._previous_eta / self._safe_eta * self.alpha
        variance[1] = variance[min(2, self.steps)]
        pull = self.alpha / self._safe_eta
        return (pull**2 / (2 * variance.clamp_min(1e-20)))[t.cpu()].float().to(t.device)

    @property
    def _previous_eta(self) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.eta[:-1]])

    @property
    def _safe_eta(self) -> Tensor:
        return self.eta.clamp_min(1e-30)


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Look up a float64 table by step and shape it b 1 1 1 in the state's dtype."""
    return table[t.cpu()].to(like.device, like.dtype).view(-1, *([1] * (like.ndim - 1)))
