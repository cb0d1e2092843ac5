"""A stage that trains in milliseconds and keeps the contract that the callbacks count on."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from pathorestore.data.batches import SharpBatch


class SmallStage(pl.LightningModule):
    """Learns to invert colours. `break_at`: the step whose loss becomes `broken(loss)`."""

    trained = ("coarse",)

    def __init__(self, *, break_at=-1, broken=lambda loss: loss * float("nan")):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.coarse = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
            self.fixed = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.progress = 0.0
        self.break_at, self.broken = break_at, broken
        self.seen, self.lives = [], []

    def restore(self, image):
        return self.coarse(self.fixed(image))

    def training_step(self, batch, batch_idx):
        self.seen.append((self.global_step, self.progress, batch.key.tolist()))
        self.lives.append(weights(self))
        loss = nn.functional.mse_loss(self.restore(batch.sharp), 1 - batch.sharp)
        return self.broken(loss) if self.global_step == self.break_at else loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", nn.functional.mse_loss(self.restore(batch.sharp), 1 - batch.sharp), batch_size=len(batch.sharp))

    def test_step(self, batch, batch_idx):
        self.log("test_mse", nn.functional.mse_loss(self.restore(batch.sharp), 1 - batch.sharp), batch_size=len(batch.sharp))

    def predict_step(self, batch, batch_idx):
        return self.restore(batch.sharp)

    def pictures(self, batch):
        return {"sharp": batch.sharp, "coarse": self.restore(batch.sharp).clamp(0, 1)}

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.coarse.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1 - 0.9 * self.progress)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def weights(stage):
    """Copies of the trained parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in stage.named_parameters() if parameter.requires_grad}


def same(first, second):
    """Whether two sets of named tensors are bit-equal."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def crops(count=8):
    """Sharp 8 px crops with their keys."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 8, 8, generator=generator)
    return [SharpBatch(image, torch.tensor(key), torch.tensor(0)) for key, image in enumerate(images)]


def loader(*, batch=2, count=8):
    """The crops in order; four batches an epoch unless told otherwise."""
    return DataLoader(crops(count), batch_size=batch)


def trainer(folder, *, callbacks=(), **options):
    """A silent trainer on the CPU; four steps, a validation after each epoch."""
    defaults = {
        "max_steps": 4,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return pl.Trainer(callbacks=list(callbacks), **(defaults | options))


def fit(stage, folder, *, callbacks=(), ckpt_path=None, batch=2, **options):
    """Train a stage and return its trainer."""
    running = trainer(folder, callbacks=callbacks, **options)
    running.fit(stage, loader(batch=batch), loader(), ckpt_path=ckpt_path)
    return running
