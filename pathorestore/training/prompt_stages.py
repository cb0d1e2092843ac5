"""The three stages that come first: pathology encoder, defocus estimator, pathology prompt."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.degradations.stain import RandStainNA
from pathorestore.functional.noise import stream
from pathorestore.losses import prompt_l1, vicreg
from pathorestore.models.defocus import DefocusEstimator
from pathorestore.models.encoders import TinyEncoder
from pathorestore.models.prompts import PathologyPrompt
from pathorestore.training.stage import Stage, StageConfig, frozen, validation_pairs

VALIDATION_Z_UM = (0.8, 1.6, 2.4, 3.2)


class EncoderStage(Stage):
    """Self-supervision of the tiny encoder by VICReg: two overlapping windows of a crop, differently stained and turned, must embed alike.

    Half of the batches are defocused, both views alike, so that focus stays part of what the embedding tells.
    """

    def __init__(self, encoder: TinyEncoder, config: StageConfig, *, view_px: int = 96):
        super().__init__(config)
        self.encoder, self.view_px = encoder, view_px
        self.expander = nn.Sequential(nn.Linear(encoder.dim, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512))
        self.stain = RandStainNA.mop()

    def training_step(self, sharp: Tensor, batch_idx: int) -> Tensor:
        """VICReg of two views."""
        generator = self.step_generator()
        blurred = float(torch.rand(1, generator=generator)) < 0.5
        margin = self.config.margin_px
        image = self.simulate(sharp, generator).degraded if blurred else sharp[..., margin:-margin, margin:-margin]
        first, second = (self.expander(self.encoder(self._view(image, generator)).cls) for _ in range(2))
        loss = vicreg(first, second)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, sharp: Tensor, batch_idx: int) -> None:
        """Rank-one retrieval: is the other stain of a crop its nearest neighbour among all crops?"""
        generator = stream(0)
        first, second = (F.normalize(self.encoder(self.stain(sharp, generator=generator)).cls, dim=1) for _ in range(2))
        hits = (first @ second.T).argmax(dim=1) == torch.arange(len(sharp), device=sharp.device)
        self.log("val_retrieval", hits.float().mean(), prog_bar=True)

    def _view(self, image: Tensor, generator: torch.Generator) -> Tensor:
        slack = image.shape[-1] - self.view_px
        top, left = (int(torch.randint(slack + 1, (1,), generator=generator)) for _ in range(2))
        view = image[..., top : top + self.view_px, left : left + self.view_px]
        turned = torch.rot90(view, int(torch.randint(4, (1,), generator=generator)), dims=(2, 3))
        return self.stain(turned, generator=generator)


class DefocusStage(Stage):
    """The estimator on simulated defocus: L1 of distance in um and of contrast transfer (paper, sec. 3.2), stains varied."""

    def __init__(self, defocus: DefocusEstimator, config: StageConfig):
        super().__init__(config)
        self.defocus = defocus
        self.stain = RandStainNA.mop()

    def training_step(self, sharp: Tensor, batch_idx: int) -> Tensor:
        """Regress both labels of a degraded batch."""
        generator = self.step_generator()
        pairs = self.simulate(sharp, generator)
        estimate = self.defocus(self.stain(pairs.degraded, generator=generator))
        distance = F.l1_loss(estimate.defocus_um, self._target(pairs.defocus_um))
        ctf = F.l1_loss(estimate.ctf, pairs.ctf)
        self.log_dict({"mae_um": distance, "mae_ctf": ctf}, prog_bar=True)
        return distance + ctf

    def validation_step(self, sharp: Tensor, batch_idx: int) -> None:
        """Errors at fixed distances on both sides of focus, unsigned distance apart."""
        for z_um in VALIDATION_Z_UM:
            for sign in (-1, 1):
                pairs = validation_pairs(sharp, z_um=sign * z_um, margin_px=self.config.margin_px)
                estimate = self.defocus(pairs.degraded)
                self.log("val_mae_um", F.l1_loss(estimate.defocus_um, self._target(pairs.defocus_um)), prog_bar=True)
                self.log("val_mae_abs_um", F.l1_loss(estimate.defocus_um.abs(), pairs.defocus_um.abs()))
                self.log("val_mae_ctf", F.l1_loss(estimate.ctf, pairs.ctf))

    def _target(self, defocus_um: Tensor) -> Tensor:
        return defocus_um if self.defocus.config.signed else defocus_um.abs()


class PathologyPromptStage(Stage):
    """The prompt restorer: the degraded image's embedding is drawn to the sharp one's, encoder and estimator frozen."""

    def __init__(self, pathology: PathologyPrompt, encoder: nn.Module, defocus: DefocusEstimator, config: StageConfig):
        super().__init__(config)
        self.pathology = pathology
        self.encoder, self.defocus = frozen(encoder), frozen(defocus)

    def on_train_epoch_start(self) -> None:
        """Frozen parts stay in evaluation mode: batch statistics must not drift."""
        self.encoder.eval()
        self.defocus.eval()

    def training_step(self, sharp: Tensor, batch_idx: int) -> Tensor:
        """L1 between restored and sharp embeddings, class vector and patch tokens."""
        pairs = self.simulate(sharp, self.step_generator())
        with torch.no_grad():
            target, degraded = self.encoder(pairs.clean), self.encoder(pairs.degraded)
            features = self.defocus.features(pairs.degraded)  # type: ignore[operator]
        restored = self.pathology(degraded, features)
        loss = prompt_l1(restored.cls, restored.tokens, target.cls, target.tokens)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, sharp: Tensor, batch_idx: int) -> None:
        """The ratio of squared errors after and before restoration; below one means that the prompt came closer."""
        after = before = torch.zeros(())
        for z_um in VALIDATION_Z_UM:
            pairs = validation_pairs(sharp, z_um=z_um, margin_px=self.config.margin_px)
            target, degraded = self.encoder(pairs.clean), self.encoder(pairs.degraded)
            restored = self.pathology(degraded, self.defocus.features(pairs.degraded))  # type: ignore[operator]
            after, before = after + F.mse_loss(restored.cls, target.cls), before + F.mse_loss(degraded.cls, target.cls)
        self.log("val_mse_ratio", after / before, prog_bar=True)
