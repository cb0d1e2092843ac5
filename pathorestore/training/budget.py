"""How long a run lasts, and how far through it is."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn


class Stopwatch:
    """Wall-clock seconds that go on counting where an earlier run of the same training stopped."""

    def __init__(self) -> None:
        self._before_s = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Counted so far, over all runs."""
        return self._before_s + (time.monotonic() - self._since if self._since is not None else 0.0)

    def resume_from(self, seconds: float) -> None:
        """Start from what earlier runs counted."""
        self._before_s, self._since = seconds, None

    def start(self) -> None:
        """Count from now on."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Count no further."""
        self._before_s, self._since = self.seconds, None


class WallClockBudget(pl.Callback):
    """Stops after `minutes` of training, validations and earlier runs of the same training included, and sets `stage.progress`.

    minutes: None sets no budget. share_every: under several processes, batches between two looks at the first process's clock.
    `progress` in [0, 1] is the largest of the shares spent of the minutes, of `max_steps` and of `max_epochs`, so that a schedule that
    follows it ends with the run, whatever ends the run. Without a budget it depends on the step alone: a run that was killed and resumed
    equals one that was not. With a budget it depends on how fast the machine is, and no two runs are alike. The clock is the first
    process's: all others hear of it at the same step, so that they share one learning rate and stop together.
    """

    def __init__(self, minutes: float | None = None, share_every: int = 10):
        super().__init__()
        if minutes is not None and minutes <= 0:
            raise ValueError(f"minutes must be positive, or null for no budget; got {minutes}")
        if share_every < 1:
            raise ValueError(f"share_every must be at least 1, got {share_every}")
        self.minutes, self.share_every = minutes, share_every
        self._watch = Stopwatch()
        self._shared_s = 0.0
        self._looks = 0

    @property
    def spent_s(self) -> float:
        """Seconds of training so far."""
        return self._watch.seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a run whose budget was spent before stops here."""
        self._watch.start()
        self._looks = 0
        if self.minutes is None and trainer.max_steps <= 0 and (trainer.max_epochs or -1) <= 0:
            rank_zero_warn(
                "nothing says when this run ends, so a schedule stays where it starts; give WallClockBudget minutes, or the trainer "
                "max_steps or max_epochs"
            )
        self._look(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the clock."""
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._watch.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the clock."""
        self._watch.stop()

    def state_dict(self) -> dict[str, Any]:
        """The time spent, so that a resumed run gets what is left."""
        return {"spent_s": self.spent_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the count."""
        self._watch.resume_from(float(state_dict["spent_s"]))

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        spent = max(self._share_of_minutes(trainer), _share_of_steps(trainer))
        pl_module.progress = min(spent, 1.0)  # type: ignore[assignment]
        if spent >= 1:
            trainer.should_stop = True

    def _share_of_minutes(self, trainer: pl.Trainer) -> float:
        if self.minutes is None:
            return 0.0
        # every process counts its looks, so that all of them broadcast at the same ones
        if trainer.world_size == 1:
            self._shared_s = self.spent_s
        elif self._looks % self.share_every == 0:
            self._shared_s = trainer.strategy.broadcast(self.spent_s, src=0)
        self._looks += 1
        return self._shared_s / (60 * self.minutes)


def _share_of_steps(trainer: pl.Trainer) -> float:
    """The share of the run's optimiser steps that is done; 0 for a run that no number of steps or epochs ends."""
    total = trainer.estimated_stepping_batches
    if 0 < total < float("inf"):
        return trainer.global_step / total
    # nobody knows the length of an epoch
    epochs = trainer.max_epochs or -1
    return trainer.current_epoch / epochs if epochs > 0 else 0.0
