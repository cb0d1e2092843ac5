"""Learning-rate schedules, chosen by configuration. The curves are torch's; what is ours is that a cosine can end with the clock."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, StepLR


class Schedule(ABC):
    """How the learning rate develops from the optimiser's own."""

    @abstractmethod
    def attach(self, optimizer: Optimizer, progress: Callable[[], float]) -> dict[str, Any]:
        """A scheduler as Lightning takes it. progress: tells how much of the run is over, in [0, 1]."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The optimiser's own learning rate throughout."""

    def attach(self, optimizer: Optimizer, progress: Callable[[], float]) -> dict[str, Any]:
        """A factor of one."""
        del progress
        return {"scheduler": LambdaLR(optimizer, lambda _: 1.0), "interval": "epoch"}


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Times `gamma` after every epoch or step (torch's StepLR with step_size 1): MoP's estimator 0.95, prompt and P-former 0.98."""

    gamma: float = 0.98
    every: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")

    def attach(self, optimizer: Optimizer, progress: Callable[[], float]) -> dict[str, Any]:
        """StepLR."""
        del progress
        return {"scheduler": StepLR(optimizer, step_size=1, gamma=self.gamma), "interval": self.every}


@dataclass(frozen=True)
class MilestoneDecay(Schedule):
    """Times `gamma` after each of some epochs (torch's MultiStepLR): ISTE halves after 500, 800, 900 and 950 of 1,000."""

    milestones: tuple[int, ...] = (500, 800, 900, 950)
    gamma: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1 or list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise ValueError(f"milestones must be rising epochs from 1 and gamma lie in (0, 1]; got {self}")

    def attach(self, optimizer: Optimizer, progress: Callable[[], float]) -> dict[str, Any]:
        """MultiStepLR."""
        del progress
        return {"scheduler": MultiStepLR(optimizer, list(self.milestones), gamma=self.gamma), "interval": "epoch"}


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear from (almost) zero over the first `warmup` of the run, then a half cosine down to `final` times the peak.

    Both are fractions of the run, which ends with its steps, its epochs or its minutes, whichever comes first.
    """

    warmup: float = 0.03
    final: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1 or not 0 <= self.final <= 1:
            raise ValueError(f"warmup must lie in [0, 1) and final in [0, 1]; got {self.warmup} and {self.final}")

    def factor(self, progress: float) -> float:
        """The learning rate relative to its peak at `progress` in [0, 1]."""
        if progress < self.warmup:
            return max(progress, 1e-3) / self.warmup
        fraction = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fraction))

    def attach(self, optimizer: Optimizer, progress: Callable[[], float]) -> dict[str, Any]:
        """A factor that follows the run's progress, step by step."""
        return {"scheduler": LambdaLR(optimizer, lambda _: self.factor(progress())), "interval": "step"}
