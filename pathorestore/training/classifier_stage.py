"""A classifier of labelled sharp images, any network of timm's, for `pathorestore classify`: data module and stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import CatMetric

from pathorestore.data.drawing import CropConfig
from pathorestore.data.labels import read_labels
from pathorestore.data.manifest import Manifest, Row
from pathorestore.data.sampling import ShareSampler
from pathorestore.data.table_rules import listed
from pathorestore.functional.noise import stream
from pathorestore.hub import Pretrained
from pathorestore.metrics.classification import classification_scores
from pathorestore.models.classifier import Classifier, ClassifierConfig, to_side
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.training.datamodules import CropModule
from pathorestore.training.schedules import Schedule
from pathorestore.training.stage import Stage

_ORDER, _TURN = 1, 2  # salts of the random streams


class LabelledBatch(NamedTuple):
    """image: b 3 s s in [0, 1]. target: number of the class, b. key: what the random numbers of an image follow from, b."""

    image: Tensor
    target: Tensor
    key: Tensor


class LabelledSet(Dataset[LabelledBatch]):
    """Item `key` depends on (seed, key) alone. Every image comes once in each round, in an order of the round's own.

    balance: every class comes equally often, one after the other. augment: random flips and quarter turns.
    """

    def __init__(self, files: Sequence[Path], targets: Sequence[int], side_px: int, *, augment: bool, balance: bool = False, seed: int = 0):
        self.files, self.targets, self.side_px, self.augment, self.seed = tuple(files), tuple(targets), side_px, augment, seed
        pools = [[place for place, target in enumerate(targets) if target == one] for one in sorted(set(targets))]
        self._pools = pools if balance else [list(range(len(files)))]

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, key: int) -> LabelledBatch:
        turn, which = divmod(key, len(self._pools))
        pool = self._pools[which]
        place = pool[turn] if not self.augment else self._shuffled(pool, which, turn)
        image = to_side(read_image_file(self.files[place]).image, self.side_px)[0]
        if self.augment:
            quarters, flip = torch.randint(4, (2,), generator=stream(self.seed, _TURN, key)).tolist()
            image = torch.rot90(image if flip % 2 else image.flip(2), quarters, dims=(1, 2))
        return LabelledBatch(image.contiguous(), torch.tensor(self.targets[place]), torch.tensor(key))

    def _shuffled(self, pool: Sequence[int], which: int, turn: int) -> int:
        rounds, place = divmod(turn, len(pool))
        order = torch.randperm(len(pool), generator=stream(self.seed, _ORDER, which, rounds))
        return pool[int(order[place])]


class LabelledImages(CropModule):
    """Whole labelled images; a table says which, what they show and in which split they are. A resumed run goes on with the next image.

    labels: CSV as `read_labels` takes it, with a split for every row. images: their folder; by default that of the table. balance: show
    every class equally often in training. Validation and test look at all rows of their split, in every process.
    """

    def __init__(
        self,
        labels: Path,
        *,
        images: Path | None = None,
        batch_size: int = 16,
        epoch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        balance: bool = False,
    ):
        super().__init__(labels, crops=CropConfig(), batch_size=batch_size, epoch_size=epoch_size, num_workers=num_workers, seed=seed)
        self.images = Path(images) if images else Path(labels).parent
        self.balance = balance

    def takes(self, row: Row) -> bool:
        """Every row."""
        return bool(row.path)

    def prepare_data(self) -> None:
        """Refuse a table with rows to mend, with rows of no split and with files that are missing."""
        rows = read_labels(self.manifest, self._config().classes)
        faults = [f"row {row.number} ({row.file}): no split" for row in rows if not row.split]
        faults += [f"row {row.number}: {self.images / row.file} is missing" for row in rows if not (self.images / row.file).is_file()]
        if faults:
            raise ValueError(listed(self.manifest, "every row needs its file and a split (train, val or test)", faults))

    def setup(self, stage: str) -> None:
        """Read the table, and tell the trainer if nothing is to be validated on."""
        labels = read_labels(self.manifest, self._config().classes)
        rows = (Row(path=row.file, patient=row.patient, slide=row.slide, split=row.split, extra=(("label", row.label),)) for row in labels)
        self._read = Manifest(self.manifest, tuple(rows))
        if self.trainer is not None and not self._read.of("val"):
            self.trainer.limit_val_batches = 0

    def crop_set(self, rows: Sequence[Row], config: CropConfig, *, folder: Path, seed: int) -> Dataset[Any]:
        """Images of some rows, turned at random unless told otherwise."""
        known = self._config()
        targets = [known.classes.index(dict(row.extra)["label"]) for row in rows]
        files = [self.images / row.path for row in rows]
        return LabelledSet(files, targets, known.side_px, augment=config.augment, balance=self.balance and config.augment, seed=seed)

    def whole_set(self, rows: Sequence[Row], *, folder: Path) -> Dataset[Any]:
        """Refused: images are not what a classifier makes."""
        raise ValueError("predict writes images, which a classifier does not make; export it and run pathorestore classify")

    def _same_crops(self, split: str) -> DataLoader[Any]:
        rows = self.rows(split)
        data = self.crop_set(rows, CropConfig(augment=False), folder=self.images, seed=self.seed)
        return self._loader(data, ShareSampler(len(rows), rank=0, world=1))

    def _config(self) -> ClassifierConfig:
        stage = self.trainer and self.trainer.lightning_module
        if not isinstance(stage, ClassifierStage):
            raise ValueError(f"LabelledImages feeds a ClassifierStage, which knows the classes; got {type(stage).__name__}")
        return stage.classifier.config


class ClassifierStage(Stage):
    """Cross entropy on labelled images as they are. classes: labels in the order of the outputs; of two, the second is the positive one.

    name, side_px, pretrained, checkpoint: of `Classifier.create`. Validation tells loss, accuracy and AUC.
    """

    trained = ("classifier",)
    figures = ("loss", "accuracy")

    def __init__(
        self,
        classes: tuple[str, ...] = ("negative", "positive"),
        *,
        name: str = "resnet18",
        side_px: int = 256,
        pretrained: bool = False,
        checkpoint: Path | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.classifier = Classifier.create(name, classes, side_px=side_px, pretrained=pretrained, checkpoint=checkpoint)
        self._seen = nn.ModuleDict({"probabilities": CatMetric(), "target": CatMetric()})

    def parts(self) -> dict[str, Pretrained]:
        """The classifier."""
        return {"classifier": self.classifier}

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Cross entropy of a batch."""
        loss = F.cross_entropy(self.classifier(batch.image), batch.target)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def evaluate(self, batch: LabelledBatch) -> None:  # type: ignore[override]
        """Loss and accuracy of a batch; probabilities are kept for the AUC, which is none of a batch."""
        logits = self.classifier(batch.image)
        self.score("loss", F.cross_entropy(logits, batch.target, reduction="none"))
        self.score("accuracy", logits.argmax(dim=1) == batch.target, progress_bar=True)
        self._seen["probabilities"].update(logits.float().softmax(dim=1))  # type: ignore[operator]
        self._seen["target"].update(batch.target)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """AUC of all images; NaN where a class has none."""
        name = "test_auc" if self.trainer.testing else "val_auc"
        probabilities, target = (self._seen[kind].compute().cpu() for kind in ("probabilities", "target"))  # type: ignore[operator]
        self.log(name, classification_scores(probabilities.clamp(0, 1), target.long())["auc"], prog_bar=True)
        for metric in self._seen.values():
            metric.reset()  # type: ignore[operator]

    on_test_epoch_end = on_validation_epoch_end
