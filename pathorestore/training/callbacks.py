"""Callbacks: a wall-clock budget, weight averaging, and a guard against non-finite losses."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class WallClockBudget(pl.Callback):
    """Stops training after `minutes` of training time, resumed time included, and tells the stage how far through the run it is.

    The stage's learning rate follows `stage.progress` in [0, 1], so that the schedule ends when the time does, however fast the machine is.
    """

    def __init__(self, minutes: float):
        if minutes <= 0:
            raise ValueError(f"minutes must be positive, got {minutes}")
        self.minutes = minutes
        self.spent_s = 0.0
        self._last: float | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch."""
        now = time.monotonic()
        self.spent_s += now - self._last if self._last is not None else 0.0
        self._last = now
        fraction = self.spent_s / (60 * self.minutes)
        if trainer.max_steps > 0:
            fraction = max(fraction, trainer.global_step / trainer.max_steps)
        pl_module.progress = min(fraction, 1.0)  # type: ignore[assignment]
        if fraction >= 1:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The time spent, so that a resumed run gets what is left."""
        return {"spent_s": self.spent_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the count."""
        self.spent_s = float(state_dict["spent_s"])


class ExponentialAverage(pl.Callback):
    """Keeps an exponential moving average of the trained floating-point parameters; `swap` puts it into the model.

    Validation and export see the average. decay: per optimiser step, warmed up as min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._updates = 0

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Fold the new weights in."""
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                # a resumed average comes from a checkpoint that was read on the CPU
                kept = self.average.get(name, parameter.detach().clone()).to(parameter.device)
                self.average[name] = kept
                kept.lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self, pl_module: pl.LightningModule) -> None:
        """Exchange the live weights and the average; calling it twice restores the live weights."""
        for name, parameter in pl_module.named_parameters():
            if name in self.average:
                live = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name] = live

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        self.swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the live weights."""
        self.swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The average and its age."""
        return {"average": self.average, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the average."""
        self.average, self._updates = state_dict["average"], int(state_dict["updates"])


class StopOnNonFinite(pl.Callback):
    """Raises as soon as a loss is NaN or infinite, before the optimiser can spread it; names the step."""

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        if not torch.isfinite(loss.detach()).all():
            step, value = trainer.global_step, float(loss.detach())
            raise FloatingPointError(f"the loss became {value} at step {step}; lower the learning rate, clip harder or train in fp32")
