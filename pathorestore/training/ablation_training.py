"""How the rows of an ablation are trained: alike, for a number of steps, and so that what was interrupted goes on."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger

from pathorestore.training.ablation_rows import Phase
from pathorestore.training.average import ExponentialAverage
from pathorestore.training.budget import WallClockBudget
from pathorestore.training.datamodules import SharpImages
from pathorestore.training.guard import StopOnNonFinite
from pathorestore.training.stage import Stage

_WARM_UP, _TIMED = 2, 6  # steps
_CHECKPOINT_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Trains phases of rows on the sharp images of a manifest. seed: of the crops. progress: whether a bar is shown."""

    manifest: Path
    seed: int
    progress: bool = False

    def seconds_per_step(self, phase: Phase, clock: Callable[[], float]) -> float:
        """Time a few steps of a phase after a few more to warm up; what they learn is thrown away with the stage."""
        timer = StepTimer(clock, warm_up=_WARM_UP)
        trainer = self._trainer(phase, _WARM_UP + _TIMED, [timer], logger=False, enable_progress_bar=False, enable_checkpointing=False)
        with _interruptible():
            trainer.fit(phase.stage, datamodule=self._data(phase))
        return timer.seconds

    def train(self, phase: Phase, *, steps: int, folder: Path) -> float:
        """Train a phase to its end, from its last checkpoint if there is one; returns the seconds that took, earlier runs included.

        Its average is put in place of the weights, and its trained parts are saved below `folder`, each under its name.
        """
        checkpoints = checkpoints_of(phase, folder)
        average, budget = ExponentialAverage(phase.recipe.average_decay), WallClockBudget()
        saving = ModelCheckpoint(checkpoints, every_n_train_steps=_CHECKPOINT_EVERY, save_last=True, save_top_k=0, filename="{step}")
        bar = [TQDMProgressBar(refresh_rate=10)] if self.progress else []
        trainer = self._trainer(
            phase,
            steps,
            [budget, average, StopOnNonFinite(), saving, *bar],
            logger=CSVLogger(folder, name="logs", version=phase.name),
            enable_progress_bar=self.progress,
            default_root_dir=folder,
        )
        last = checkpoints / "last.ckpt"
        with _interruptible():
            trainer.fit(phase.stage, datamodule=self._data(phase), ckpt_path=str(last) if last.exists() else None)
        average.swap(phase.stage)
        parts = phase.stage.parts()
        for name in phase.stage.trained:
            parts[name].save_pretrained(folder / name)
        return budget.spent_s

    def _data(self, phase: Phase) -> SharpImages:
        recipe = phase.recipe
        return SharpImages(
            self.manifest,
            crops=recipe.crops,
            batch_size=recipe.batch_size,
            val_crops=0,
            num_workers=recipe.workers,
            seed=self.seed,
            check=False,
        )

    def _trainer(self, phase: Phase, steps: int, callbacks: Sequence[pl.Callback], **options: Any) -> pl.Trainer:
        return pl.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cuda" if torch.cuda.is_available() else "cpu",
            devices=1,
            precision=cast(Any, phase.recipe.precision),
            gradient_clip_val=phase.recipe.clip,
            callbacks=list(callbacks),
            limit_val_batches=0,
            num_sanity_val_steps=0,
            log_every_n_steps=25,
            enable_model_summary=False,
            **options,
        )


def checkpoints_of(phase: Phase, folder: Path) -> Path:
    """Where a phase of the row in `folder` keeps its checkpoint while it trains."""
    return folder / "checkpoints" / phase.name


class StepTimer(pl.Callback):
    """Seconds of a training step, data included: the mean over all steps after the first `warm_up`."""

    def __init__(self, clock: Callable[[], float], *, warm_up: int):
        super().__init__()
        self.clock, self.warm_up = clock, warm_up
        self._ends: list[float] = []

    @property
    def seconds(self) -> float:
        """Per step."""
        return (self._ends[-1] - self._ends[self.warm_up - 1]) / (len(self._ends) - self.warm_up)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note when a step ends, on a GPU once it has."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._ends.append(self.clock())


def steps_for(minutes: float, seconds_per_step: float) -> int:
    """Whole steps that fit into the minutes, at least one."""
    return max(1, int(60 * minutes / seconds_per_step))


def phase_steps(phase: Phase, steps: int) -> int:
    """A phase's share of a row's steps, at least one."""
    return max(1, round(phase.share * steps))


def load_trained(stage: Stage, folder: Path) -> None:
    """Fill the trained parts of a stage with those that `Workshop.train` saved."""
    parts = stage.parts()
    for name in stage.trained:
        part = cast(Any, parts[name])
        part.load_state_dict(type(part).from_pretrained(folder / name).state_dict())


def trained_parameters(stage: Stage) -> int:
    """How many numbers a stage learns."""
    parts = stage.parts()
    return sum(parameter.numel() for name in stage.trained for parameter in cast(torch.nn.Module, parts[name]).parameters())


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning answers Ctrl-C by leaving the program and ignoring any further one; let it be a KeyboardInterrupt again."""
    at_home = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if at_home:
            signal.signal(signal.SIGINT, before)
