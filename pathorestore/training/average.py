"""The exponential moving average of the weights, which is what is validated, tested, used for prediction and exported."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialAverage(pl.Callback):
    """Averages all trained parameters after every optimiser step, in float32 at least; validation, test and prediction see the average.

    decay: per optimiser step, .999 in MoP and ResShift; warmed up as min(decay, (1 + n) / (10 + n)) over the steps n.
    Buffers, batch statistics among them, are not averaged: the average is used with the live ones, which are averages themselves
    (ResShift copies them too). Nothing is exchanged between processes: they take the same steps, so their averages are equal.
    A checkpoint holds the live weights as its state_dict, whenever it is written, and the average as this callback's state.
    """

    def __init__(self, decay: float = 0.999):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._updates = 0
        self._step = 0
        self._live: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the weights as they are, or go on with the average of the checkpoint, read on the CPU."""
        trained = {name: parameter.detach() for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
        self.average = {name: self.average.get(name, live).to(live.device, _wide(live), copy=True) for name, live in trained.items()}
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Fold the new weights in, where this batch brought new ones: not while gradients accumulate."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        parameters = dict(pl_module.named_parameters())
        live = [parameters[name].detach().to(kept.dtype) for name, kept in self.average.items()]
        if live:
            get_ema_multi_avg_fn(decay)(list(self.average.values()), live, self._updates)  # type: ignore[no-untyped-call]

    def swap(self, pl_module: pl.LightningModule) -> None:
        """Put the average in place of the live weights; called again, put the live weights back."""
        if self._live is None:
            self._show(pl_module)
        else:
            self._hide(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        self._show(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the live weights. Checkpoint callbacks, which Lightning calls last, write after this."""
        self._hide(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test the average."""
        self._show(pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the live weights back."""
        self._hide(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Predict with the average."""
        self._show(pl_module)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the live weights back."""
        self._hide(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put the live weights back, wherever the run was interrupted."""
        self._hide(pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint written in the middle of a validation gets the live weights all the same."""
        checkpoint["state_dict"].update(self._live or {})

    def state_dict(self) -> dict[str, Any]:
        """The average and its age."""
        return {"average": self.average, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the average."""
        self.average, self._updates = dict(state_dict["average"]), int(state_dict["updates"])

    @torch.no_grad()
    def _show(self, pl_module: pl.LightningModule) -> None:
        if self._live is not None or not self.average:
            return
        parameters = dict(pl_module.named_parameters())
        # kept before anything changes: whatever interrupts the copying below, `_hide` undoes it
        self._live = {name: parameters[name].detach().clone() for name in self.average}
        for name, average in self.average.items():
            parameters[name].copy_(average)

    @torch.no_grad()
    def _hide(self, pl_module: pl.LightningModule) -> None:
        parameters = dict(pl_module.named_parameters())
        for name, live in (self._live or {}).items():
            parameters[name].copy_(live)
        self._live = None


def _wide(tensor: Tensor) -> torch.dtype:
    """In bfloat16 a step of one thousandth would be rounded away."""
    return torch.promote_types(tensor.dtype, torch.float32)
