"""What the stages share: optimiser and schedule, pairs to learn from, figures that add up over processes, and what a checkpoint says."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from pathorestore.data.batches import PairBatch, SharpBatch
from pathorestore.data.synthetic import Simulation, simulated_at
from pathorestore.degradations.recipes import Setting
from pathorestore.functional.noise import stream
from pathorestore.hub import Pretrained
from pathorestore.models.iste import Search
from pathorestore.pipelines.controlled import SamplingSettings
from pathorestore.pipelines.refine import FineSettings
from pathorestore.training.export import describe
from pathorestore.training.schedules import Schedule, WarmupCosine

VALIDATION_Z_UM = (0.8, 1.6, 2.4, 3.2)
Batch = SharpBatch | PairBatch


class Stage(pl.LightningModule):
    """A training stage: wraps the modules that inference uses. Batches are sharp crops, which are degraded here, or pairs as photographed.

    optimizer: called with the trained parameters. schedule: of the learning rate. simulation: what sharp crops go through.
    All randomness of an image follows from the simulation's seed and the image's key, so that results depend on neither the number of
    processes nor on where a run was interrupted. `progress` in [0, 1] is set by `WallClockBudget`.
    """

    trained: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()

    def __init__(
        self, *, optimizer: OptimizerCallable = torch.optim.AdamW, schedule: Schedule | None = None, simulation: Simulation | None = None
    ):
        super().__init__()
        self.optimizer = optimizer
        self.schedule: Schedule = schedule or WarmupCosine()
        self.simulation = simulation or Simulation()
        self.progress = 0.0
        self._scores = nn.ModuleDict({name: MeanMetric() for name in self.figures})

    def parts(self) -> dict[str, Pretrained]:
        """The parts of the restorer that this stage holds, trained and frozen, by the names they are saved under."""
        raise NotImplementedError

    def settings(self) -> FineSettings | Search | SamplingSettings | None:
        """What the system is beside its networks, if anything."""
        return None

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Named images b 3 h w in [0, 1] to look at, one column a name; none by default."""
        del batch
        return {}

    def pairs(self, batch: Batch) -> PairBatch:
        """Degraded and clean images of a training batch."""
        return self.simulation(batch)

    def streams(self, key: Tensor, *, salt: int) -> list[torch.Generator]:
        """One generator per image, by its key; salt keeps the uses apart."""
        return [stream(self.simulation.seed, salt, number) for number in key.tolist()]

    def validation_pairs(self, batch: Batch, z_um: Iterable[float] = VALIDATION_Z_UM) -> dict[str, PairBatch]:
        """What validation looks at, by the name its figure gets: simulated distances and settings, or the pairs as they are."""
        if isinstance(batch, PairBatch):
            return {"pairs": batch}
        made = {f"{round(1000 * z)}nm": simulated_at(batch, z, setting=Setting.ideal()) for z in z_um}
        return made | {"scanner": Simulation(ideal_share=0.0, seed=self.simulation.seed + 1)(batch)}

    def score(self, name: str, values: Tensor, *, weights: Tensor | float = 1.0, progress_bar: bool = False) -> None:
        """Add one value an image to a validation figure, a weighted mean; processes and batches of any size add up exactly."""
        metric = cast(MeanMetric, self._scores[name])
        metric.update(values.detach().float(), weights)
        prefix = "test" if self.trainer.testing else "val"
        self.log(f"{prefix}_{name}", metric, on_step=False, on_epoch=True, prog_bar=progress_bar, metric_attribute=f"_scores.{name}")

    def evaluate(self, batch: Batch) -> None:
        """Score a validation batch."""
        raise NotImplementedError

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch)

    def on_train_epoch_start(self) -> None:
        """Frozen parts stay in evaluation mode: batch statistics must not drift."""
        for module in self.children():
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the checkpoint holds, for `export`."""
        checkpoint["pathorestore"] = describe(self)

    def configure_optimizers(self) -> Any:
        """The optimiser over what is trained, under the schedule."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = self.optimizer(parameters)
        return {"optimizer": optimizer, "lr_scheduler": self.schedule.attach(optimizer, lambda: self.progress)}


def frozen(module: nn.Module) -> nn.Module:
    """The module in evaluation mode without gradients."""
    return module.eval().requires_grad_(False)


def each(images: Tensor, generators: Sequence[torch.Generator], change: Callable[..., Tensor]) -> Tensor:
    """Apply a random change to every image b 3 h w with a generator of its own."""
    return torch.cat([change(images[i : i + 1], generator=generator) for i, generator in enumerate(generators)])
