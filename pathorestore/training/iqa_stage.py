"""The stage that teaches CLIP-IQA what blur looks like, and its data module."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import SpearmanCorrCoef

from pathorestore.data.drawing import CropConfig
from pathorestore.data.iqa import BlurredCrops, BlurredPatches, IqaBatch, Kind
from pathorestore.data.manifest import Row
from pathorestore.hub import Pretrained
from pathorestore.models.clip_iqa import ClipIqa, FolderClip, SmallClip
from pathorestore.training.datamodules import CropModule
from pathorestore.training.schedules import Schedule
from pathorestore.training.stage import Stage, each, frozen

_TINT = 4  # salt of a random stream


class ClipIqaStage(Stage):
    """Fits the score of CLIP-IQA to score / 10 of blurred crops by mean squared error (CLIP-IQA+; Wang, Chan and Loy, AAAI 2023).

    clip: a `SmallClip`, or a user's own out of a folder. context: learned vectors of the prompt. tune: "prompt" leaves CLIP as it is,
    "all" trains it too, which only a `SmallClip` allows: a user's weights are not copied into what is exported.
    stain_jitter: by how much the strength of the stain varies, as a share, in all and again in each channel; it is linear, so that the
    blur stays what it was.
    The figures are the rank correlation of score and sharpness over all validation crops, 1 at best, and the squared error.
    """

    figures = ("mse",)

    def __init__(
        self,
        clip: nn.Module,
        *,
        context: int = 16,
        tune: Literal["prompt", "all"] = "prompt",
        stain_jitter: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule)
        if not 0 <= stain_jitter < 1:
            raise ValueError(f"stain_jitter must lie in [0, 1), got {stain_jitter}")
        if tune == "all" and not isinstance(clip, SmallClip):
            raise ValueError("tune='all' trains a SmallClip; the CLIP of a folder stays as it is, so take tune='prompt'")
        if tune == "prompt" and context < 1:
            raise ValueError(f"tune='prompt' with context={context} leaves nothing to train; 16 vectors are usual")
        self.iqa = ClipIqa.create(cast(SmallClip | FolderClip, clip), context=context)
        if tune == "prompt":
            frozen(self.iqa.clip)
        self.trained = ("clip", "prompt") if tune == "all" else ("prompt",)
        self.stain_jitter = stain_jitter
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it keeps one number an image, of which there are hundreds
            self._scores["spearman"] = SpearmanCorrCoef()

    def parts(self) -> dict[str, Pretrained]:
        """The prompt, and the CLIP unless it is a user's own."""
        parts: dict[str, Pretrained] = {"prompt": self.iqa.prompt}
        return parts | ({"clip": self.iqa.clip} if isinstance(self.iqa.clip, SmallClip) else {})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Squared error of a batch."""
        blurred: IqaBatch = batch
        loss = F.mse_loss(self.iqa(each(blurred.image, self.streams(blurred.key, salt=_TINT), self._tinted)), blurred.score)
        self.log("train_mse", loss, prog_bar=True)
        return loss

    def evaluate(self, batch: Any) -> None:
        """Add a batch to both figures."""
        blurred: IqaBatch = batch
        scores = self.iqa(blurred.image)
        self.score("mse", (scores - blurred.score) ** 2)
        metric = cast(SpearmanCorrCoef, self._scores["spearman"])
        metric.update(scores.detach().float(), blurred.score)
        prefix = "test" if self.trainer.testing else "val"
        self.log(f"{prefix}_spearman", metric, on_step=False, on_epoch=True, prog_bar=True, metric_attribute="_scores.spearman")

    def _tinted(self, image: Tensor, *, generator: torch.Generator) -> Tensor:
        draws = 1 + self.stain_jitter * (2 * torch.rand(4, generator=generator) - 1)
        strength = (draws[0] * draws[1:]).to(image.device)[:, None, None]
        return (1 - strength * (1 - image)).clamp(0, 1)


class BlurredImages(CropModule):
    """Crops of blurred patches: the rows of one kind of blur in the table that `pathorestore iqa-build` writes.

    manifest, crops, batch_size, epoch_size, val_crops, num_workers, seed: as for every data module. kind: "box" or "gauss".
    """

    wanted = "of this kind of blur"

    def __init__(
        self,
        manifest: Path,
        *,
        crops: CropConfig,
        kind: Kind,
        batch_size: int = 64,
        epoch_size: int | None = None,
        val_crops: int = 512,
        num_workers: int = 0,
        seed: int = 0,
    ):
        # a file has hundreds of rows here, and the builder has read every one
        options: dict[str, Any] = {"epoch_size": epoch_size, "num_workers": num_workers, "seed": seed, "check": False}
        super().__init__(manifest, crops=crops, batch_size=batch_size, val_crops=val_crops, **options)
        self.kind = kind

    def takes(self, row: Row) -> bool:
        """Rows of the kind."""
        return dict(row.extra).get("blur") == self.kind

    def crop_set(self, rows: Sequence[Row], config: CropConfig, *, folder: Path, seed: int) -> Dataset[Any]:
        """Crops of blurred patches."""
        return BlurredCrops(rows, config, folder=folder, seed=seed)

    def whole_set(self, rows: Sequence[Row], *, folder: Path) -> Dataset[Any]:
        """Whole blurred patches."""
        return BlurredPatches(rows, folder=folder)
