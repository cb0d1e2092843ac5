"""What the five stages share: the optimiser with its schedule, simulated pairs, and frozen parts."""

from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from pathorestore.degradations.optical import Degraded, degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.functional.noise import stream


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Optimisation and simulation of a stage.

    learning_rate: peak, reached after `warmup` (fraction of the run), then cosine to `final` times it. weight_decay: of AdamW.
    ideal_share: fraction of batches simulated with `Setting.ideal()` up to `ideal_max_um`, the rest with `Setting.scanner()`.
    margin_px: rim of every crop that is cut off after blurring.
    """

    learning_rate: float = 1e-3
    warmup: float = 0.03
    final: float = 0.01
    weight_decay: float = 1e-4
    ideal_share: float = 0.8
    ideal_max_um: float = 4.0
    margin_px: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or not 0 <= self.warmup < 1 or not 0 <= self.final <= 1:
            raise ValueError(f"learning_rate must be positive, warmup in [0, 1) and final in [0, 1]; got {self}")
        if not 0 <= self.ideal_share <= 1 or self.margin_px < 0:
            raise ValueError(f"ideal_share must be in [0, 1] and margin_px at least 0; got {self}")


class Stage(pl.LightningModule):
    """A training stage: wraps the module that inference uses. Batches are sharp crops b 3 s s, margins included.

    `progress` in [0, 1] drives the learning rate; a budget callback sets it.
    """

    def __init__(self, config: StageConfig):
        super().__init__()
        self.config = config
        self.progress = 0.0

    def step_generator(self) -> torch.Generator:
        """Randomness of the current step: depends on the seed and the step alone, whenever it is reached."""
        return stream(self.config.seed, self.global_step)

    def simulate(self, sharp: Tensor, generator: torch.Generator) -> Degraded:
        """Degrade a batch by one of the training settings; margins are cut from all outputs."""
        ideal = float(torch.rand(1, generator=generator)) < self.config.ideal_share
        setting = replace(Setting.ideal(), max_defocus_um=self.config.ideal_max_um) if ideal else Setting.scanner()
        # optics in bfloat16 would be other optics
        with torch.autocast(sharp.device.type, enabled=False):
            return degrade(sharp, None, setting=setting, generator=generator, margin_px=self.config.margin_px)

    def configure_optimizers(self) -> Any:
        """AdamW under a warm-up and a cosine of `progress`."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.config.learning_rate, weight_decay=self.config.weight_decay, betas=(0.9, 0.999))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: self.rate())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def rate(self) -> float:
        """The learning rate's current factor in [0, 1]."""
        warmup, final = self.config.warmup, self.config.final
        if self.progress < warmup:
            return max(self.progress, 1e-3) / warmup
        cosine = torch.cos(torch.tensor(torch.pi * (self.progress - warmup) / (1 - warmup))).item()
        return final + (1 - final) * 0.5 * (1 + cosine)


def frozen(module: nn.Module) -> nn.Module:
    """The module in evaluation mode without gradients."""
    return module.eval().requires_grad_(False)


def validation_pairs(sharp: Tensor, *, z_um: float, margin_px: int) -> Degraded:
    """The validation setting: ideal optics at one distance, the same noise every time."""
    z, generator = torch.full((len(sharp),), z_um), stream(round(1000 * z_um))
    with torch.autocast(sharp.device.type, enabled=False):
        return degrade(sharp, z, setting=Setting.ideal(), generator=generator, margin_px=margin_px)
