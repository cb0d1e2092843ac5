"""The three stages that come first: pathology encoder, defocus estimator, pathology prompt."""

from typing import cast

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from pathorestore.data.batches import PairBatch, SharpBatch
from pathorestore.data.synthetic import Simulation, sharp_middle
from pathorestore.degradations.stain import RandStainNA
from pathorestore.hub import Pretrained
from pathorestore.losses import prompt_l1, vicreg
from pathorestore.models.defocus import DefocusEstimator
from pathorestore.models.encoders import TinyEncoder
from pathorestore.models.prompts import PathologyPrompt
from pathorestore.training.pictures import heat_colours
from pathorestore.training.schedules import Schedule
from pathorestore.training.stage import VALIDATION_Z_UM, Batch, Stage, each, frozen

_VIEWS, _STAIN, _BLUR = 1, 2, 3  # salts of the random streams


class EncoderStage(Stage):
    """Self-supervision of the tiny encoder by VICReg: two overlapping windows of a crop, differently stained and turned, must embed alike.

    blurred_share: fraction of the images that are defocused, both views alike, so that focus stays part of what the embedding tells.
    The loss compares the images of a batch with each other: under several processes each compares its own.
    """

    trained = ("encoder",)
    figures = ("retrieval",)

    def __init__(
        self,
        encoder: TinyEncoder,
        *,
        view_px: int = 96,
        blurred_share: float = 0.5,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        simulation: Simulation | None = None,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule, simulation=simulation)
        self.encoder, self.view_px, self.blurred_share = encoder, view_px, blurred_share
        self.expander = nn.Sequential(nn.Linear(encoder.dim, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512))
        self.stain = RandStainNA.mop()

    def parts(self) -> dict[str, Pretrained]:
        """The encoder."""
        return {"encoder": self.encoder}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """VICReg of two views."""
        image = self._images(batch)
        generators = self.streams(batch.key, salt=_VIEWS)
        first, second = (self.expander(self.encoder(each(image, generators, self._view)).cls) for _ in range(2))
        loss = vicreg(first, second)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def evaluate(self, batch: Batch) -> None:
        """Rank-one retrieval: is the other stain of a crop its nearest neighbour among all crops of the batch?"""
        image = batch.clean if isinstance(batch, PairBatch) else sharp_middle(batch)
        generators = self.streams(batch.key, salt=_STAIN)
        first, second = (F.normalize(self.encoder(each(image, generators, self.stain)).cls, dim=1) for _ in range(2))
        hits = (first @ second.T).argmax(dim=1) == torch.arange(len(image), device=image.device)
        self.score("retrieval", hits, progress_bar=True)

    def _images(self, batch: Batch) -> Tensor:
        if isinstance(batch, PairBatch):
            degraded, clean = batch.degraded, batch.clean
            blurred = torch.tensor([self._blurred(generator) for generator in self.streams(batch.key, salt=_BLUR)])
            return torch.where(blurred.to(clean.device)[:, None, None, None], degraded, clean)
        image = sharp_middle(batch).clone()
        blurred = torch.tensor([self._blurred(generator) for generator in self.streams(batch.key, salt=_BLUR)])
        if blurred.any():
            image[blurred] = self.pairs(SharpBatch(*(field[blurred.to(field.device)] for field in batch))).degraded
        return image

    def _blurred(self, generator: torch.Generator) -> bool:
        return torch.rand((), generator=generator).item() < self.blurred_share

    def _view(self, image: Tensor, *, generator: torch.Generator) -> Tensor:
        slack = image.shape[-1] - self.view_px
        if slack < 0:
            raise ValueError(f"crops of {image.shape[-1]} px are smaller than view_px={self.view_px}; enlarge the crops or lower view_px")
        top, left = (int(torch.randint(slack + 1, (1,), generator=generator)) for _ in range(2))
        view = image[..., top : top + self.view_px, left : left + self.view_px]
        turned = torch.rot90(view, int(torch.randint(4, (1,), generator=generator)), dims=(2, 3))
        return self.stain(turned, generator=generator)


class DefocusStage(Stage):
    """The estimator: L1 of distance in um and of contrast transfer (paper, sec. 3.2), stains varied.

    distance_weight, ctf_weight: of the two terms; the paper's ablation sets one to zero. Images without a label leave that term.
    """

    trained = ("defocus",)
    figures = ("mae_um", "mae_abs_um", "mae_ctf", "within_half_um", "mae_um_scanner", "mae_ctf_scanner")

    def __init__(
        self,
        defocus: DefocusEstimator,
        *,
        distance_weight: float = 1.0,
        ctf_weight: float = 1.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        simulation: Simulation | None = None,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule, simulation=simulation)
        if min(distance_weight, ctf_weight) < 0 or distance_weight + ctf_weight == 0:
            raise ValueError(f"distance_weight and ctf_weight must be at least 0 and not both 0; got {distance_weight} and {ctf_weight}")
        self.defocus = defocus
        self.distance_weight, self.ctf_weight = distance_weight, ctf_weight
        self.stain = RandStainNA.mop()

    def parts(self) -> dict[str, Pretrained]:
        """The estimator."""
        return {"defocus": self.defocus}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Regress both labels of a degraded batch."""
        pairs = self.pairs(batch)
        estimate = self.defocus(each(pairs.degraded, self.streams(pairs.key, salt=_STAIN), self.stain))
        distance = _known_l1(estimate.defocus_um, self._target(pairs.defocus_um))
        ctf = _known_l1(estimate.ctf, pairs.ctf)
        self.log_dict({"train_mae_um": distance, "train_mae_ctf": ctf}, prog_bar=True)
        return self.distance_weight * distance + self.ctf_weight * ctf

    def evaluate(self, batch: Batch) -> None:
        """Errors at fixed distances on both sides of focus, unsigned distance apart; of photographed pairs, those with labels."""
        for name, pairs in self.validation_pairs(batch, [side * z for z in VALIDATION_Z_UM for side in (-1, 1)]).items():
            estimate = self.defocus(pairs.degraded)
            distance = (estimate.defocus_um - self._target(pairs.defocus_um)).abs()
            ctf = (estimate.ctf - pairs.ctf).abs()
            if name == "scanner":
                self.score("mae_um_scanner", _known(distance))
                self.score("mae_ctf_scanner", _known(ctf))
                continue
            self.score("mae_um", _known(distance), progress_bar=True)
            self.score("mae_abs_um", _known((estimate.defocus_um.abs() - pairs.defocus_um.abs()).abs()))
            self.score("within_half_um", _known(torch.where(distance.isnan(), distance, (distance < 0.5).float())))
            self.score("mae_ctf", _known(ctf), progress_bar=True)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Degraded images and the estimated distance, blue in focus to yellow at 4 um."""
        pairs = next(reversed(self.validation_pairs(batch, [0.8, 2.4]).values()))
        return {
            "degraded": pairs.degraded,
            "estimated |z|, 0-4 um": heat_colours(self.defocus.heat_map(pairs.degraded), top_um=4.0),
            "clean": pairs.clean,
        }

    def _target(self, defocus_um: Tensor) -> Tensor:
        return defocus_um if self.defocus.config.signed else defocus_um.abs()


class PathologyPromptStage(Stage):
    """The prompt restorer: the degraded image's embedding is drawn to the sharp one's, encoder and estimator frozen.

    encoder: any `PathologyEncoder`; a class and not the protocol in its signature, so that configurations may name functions that load one.
    """

    trained = ("pathology",)
    figures = ("mse_degraded", "mse_restored", "mse_ratio")

    def __init__(
        self,
        pathology: PathologyPrompt,
        encoder: nn.Module,
        defocus: DefocusEstimator,
        *,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        simulation: Simulation | None = None,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule, simulation=simulation)
        self.pathology = pathology
        self.encoder = frozen(encoder)
        self.defocus = cast(DefocusEstimator, frozen(defocus))

    def parts(self) -> dict[str, Pretrained]:
        """The prompt, and the frozen parts that it was trained with."""
        parts: dict[str, Pretrained] = {"defocus": self.defocus, "pathology": self.pathology}
        return parts | ({"encoder": self.encoder} if isinstance(self.encoder, TinyEncoder) else {})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L1 between restored and sharp embeddings, class vector and patch tokens."""
        pairs = self.pairs(batch)
        with torch.no_grad():
            target, degraded = self.encoder(pairs.clean), self.encoder(pairs.degraded)
            features = self.defocus.features(pairs.degraded)
        restored = self.pathology(degraded, features)
        loss = prompt_l1(restored.cls, restored.tokens, target.cls, target.tokens)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def evaluate(self, batch: Batch) -> None:
        """Squared errors of the class vector before and after restoration, and the ratio of their sums; below one is an improvement."""
        for name, pairs in self.validation_pairs(batch).items():
            if name == "scanner":
                continue
            target, degraded = self.encoder(pairs.clean).cls, self.encoder(pairs.degraded)
            restored = self.pathology(degraded, self.defocus.features(pairs.degraded)).cls
            before, after = (degraded.cls - target).square().mean(dim=1), (restored - target).square().mean(dim=1)
            self.score("mse_degraded", before)
            self.score("mse_restored", after)
            self.score("mse_ratio", after / before.clamp_min(1e-12), weights=before, progress_bar=True)


def _known(values: Tensor) -> Tensor:
    """Without the NaNs that stand for unknown labels."""
    return values[~values.isnan()]


def _known_l1(estimate: Tensor, label: Tensor) -> Tensor:
    """Mean absolute error over the images whose label is known; zero, with a gradient of zero, where none is."""
    known = ~label.isnan()
    return F.l1_loss(estimate[known], label[known]) if bool(known.any()) else 0 * estimate.sum()
