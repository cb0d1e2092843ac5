"""The two restoration stages: P-former (or a Restormer) and P-diffusion."""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pathorestore.diffusion.resshift import ResShift
from pathorestore.functional.noise import NoiseField
from pathorestore.losses import fft_magnitude_l1
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.latent import WorkingSpace
from pathorestore.models.pdiffusion import PDiffusion
from pathorestore.models.pformer import PFormer, Restormer
from pathorestore.models.prompts import Prompter
from pathorestore.pipelines.refine import DiffusionRefiner, FineSettings
from pathorestore.training.prompt_stages import VALIDATION_Z_UM
from pathorestore.training.stage import Stage, StageConfig, frozen, validation_pairs


class PFormerStage(Stage):
    """The coarse stage by L1 (plus `fft_weight` times the L1 of Fourier magnitudes), prompts frozen. The paper states no loss."""

    def __init__(self, coarse: PFormer, prompter: Prompter, config: StageConfig, *, fft_weight: float = 0.0):
        super().__init__(config)
        self.coarse, self.fft_weight = coarse, fft_weight
        self.prompter = cast(Prompter, frozen(prompter))

    def on_train_epoch_start(self) -> None:
        """Frozen parts stay in evaluation mode."""
        self.prompter.eval()

    def restore(self, degraded: Tensor) -> Tensor:
        """The coarse image of a degraded batch."""
        with torch.no_grad():
            prompt = self.prompter(degraded).pathology
        return self.coarse(degraded, prompt)

    def training_step(self, sharp: Tensor, batch_idx: int) -> Tensor:
        """L1 against the clean image."""
        pairs = self.simulate(sharp, self.step_generator())
        restored = self.restore(pairs.degraded).float()
        loss = F.l1_loss(restored, pairs.clean)
        self.log("train_l1", loss, prog_bar=True)
        return loss + self.fft_weight * fft_magnitude_l1(restored, pairs.clean) if self.fft_weight else loss

    def validation_step(self, sharp: Tensor, batch_idx: int) -> None:
        """Mean gain in dB over the degraded input at each distance."""
        for z_um in VALIDATION_Z_UM:
            pairs = validation_pairs(sharp, z_um=z_um, margin_px=self.config.margin_px)
            gain = psnr(self.restore(pairs.degraded), pairs.clean) - psnr(pairs.degraded, pairs.clean)
            self.log(f"val_gain_{z_um}um", gain.mean())
            self.log("val_gain", gain.mean(), prog_bar=True)


class RestormerStage(PFormerStage):
    """The same stage without prompts, for comparison on equal terms."""

    def __init__(self, coarse: Restormer, prompter: Prompter, config: StageConfig, *, fft_weight: float = 0.0):
        super().__init__(cast(PFormer, coarse), prompter, config, fft_weight=fft_weight)

    def restore(self, degraded: Tensor) -> Tensor:
        """The coarse image of a degraded batch."""
        return self.coarse(degraded)


@dataclass(frozen=True, kw_only=True)
class PDiffusionStageConfig(StageConfig):
    """degraded_share: fraction of batches that see the degraded image in place of the coarse one, so that the stage also works alone.

    prompt_dropout: fraction of images whose pathology prompt is zeroed. reuse: how many steps a simulated batch and its coarse images serve
    on average, turned and flipped anew each time: the frozen coarse stage costs more than a training step. memory: batches kept for that.
    """

    degraded_share: float = 0.1
    prompt_dropout: float = 0.1
    reuse: int = 1
    memory: int = 32

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        if self.reuse < 1 or self.memory < 1:
            raise ValueError(f"reuse and memory must be at least 1; got {self.reuse} and {self.memory}")


class _Triple(NamedTuple):
    """A simulated batch with its coarse images, each b 3 h w."""

    degraded: Tensor
    coarse: Tensor
    clean: Tensor

    def turned(self, which: int) -> "_Triple":
        """One of the eight flips and quarter turns, the same for all three."""
        turned = (torch.rot90(image, which % 4, dims=(2, 3)) for image in self)
        return _Triple(*(image.flip(3) if which >= 4 else image for image in turned))


class PDiffusionStage(Stage):
    """The fine stage: predict the clean state from a noisy one (paper, eq. 5 with w_t = 1); of the rest only the edge prompt learns."""

    def __init__(self, fine: PDiffusion, process: ResShift, prompter: Prompter, coarse: PFormer, config: PDiffusionStageConfig):
        super().__init__(config)
        self.fine, self.process, self.dropout = fine, process, config
        self.prompter = cast(Prompter, frozen(prompter))
        self.prompter.edge.requires_grad_(True)
        self.coarse = cast(PFormer, frozen(coarse))
        self.space: WorkingSpace = fine.own_space()
        self._kept: deque[_Triple] = deque(maxlen=config.memory)

    def on_train_epoch_start(self) -> None:
        """Frozen parts stay in evaluation mode."""
        self.prompter.eval()
        self.coarse.eval()

    def training_step(self, sharp: Tensor, batch_idx: int) -> Tensor:
        """Mean squared error of the predicted clean state at a random step of the chain."""
        generator = self.step_generator()
        batch = self._batch(sharp, generator)
        prompts = self.prompter(batch.degraded)
        keep = (torch.rand(len(sharp), 1, generator=generator) >= self.dropout.prompt_dropout).to(sharp.device, prompts.pathology.dtype)
        prompts = prompts._replace(pathology=prompts.pathology * keep)
        alone = float(torch.rand(1, generator=generator)) < self.dropout.degraded_share
        clean, degraded, coarse = (self.space.encode(image) for image in (batch.clean, batch.degraded, batch.coarse))
        guess = degraded if alone else coarse
        t = torch.randint(1, self.process.steps + 1, (len(sharp),), generator=generator).to(sharp.device)
        field = NoiseField(self.config.seed + self.global_step, tuple((0, i << 16) for i in range(len(sharp))))
        marginal = self.process.marginal(clean, guess, t)
        state = marginal.mean + marginal.variance.sqrt() * self.space.noise(field, 0, clean)
        predicted = self.fine(self.process.scale_input(state, t), t, self.fine.condition(guess, degraded, prompts))
        loss = F.mse_loss(predicted.float(), clean)
        self.log("train_mse", loss, prog_bar=True)
        return loss

    def _batch(self, sharp: Tensor, generator: torch.Generator) -> _Triple:
        """A fresh batch every `reuse` steps, one of those kept in between."""
        if self.global_step % self.dropout.reuse == 0 or not self._kept:
            pairs = self.simulate(sharp, generator)
            with torch.no_grad():
                prompt = self.prompter(pairs.degraded).pathology
                coarse = self.coarse(pairs.degraded, prompt).float()
            self._kept.append(_Triple(pairs.degraded, coarse, pairs.clean))
        which = int(torch.randint(len(self._kept), (1,), generator=generator))
        batch = self._kept[which] if self.dropout.reuse > 1 else self._kept[-1]
        return batch.turned(int(torch.randint(8, (1,), generator=generator)))

    def validation_step(self, sharp: Tensor, batch_idx: int) -> None:
        """PSNR of the whole chain against the coarse stage's, and the power of the finest detail relative to the clean image's."""
        refiner = DiffusionRefiner(self.fine, FineSettings(process=self.process), self.space)
        for z_um in VALIDATION_Z_UM:
            pairs = validation_pairs(sharp, z_um=z_um, margin_px=self.config.margin_px)
            prompts = self.prompter(pairs.degraded)
            coarse = self.coarse(pairs.degraded, prompts.pathology)
            fine = refiner(coarse, pairs.degraded, prompts, noise=NoiseField.whole(0, len(sharp)))
            self.log("val_cost_db", (psnr(coarse, pairs.clean) - psnr(fine, pairs.clean)).mean(), prog_bar=True)
            for name, image in (("coarse", coarse), ("fine", fine)):
                self.log(f"val_detail_{name}", _detail(image) / _detail(pairs.clean), prog_bar=True)


def _detail(image: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels: the contrast of the co-occurrence texture, for a whole image."""
    return image.clamp(0, 1).diff(dim=-1).square().mean() + image.clamp(0, 1).diff(dim=-2).square().mean()
