"""Data modules for the command line: a manifest in, batches out, each the same however many processes and workers share the run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from pathorestore.data.drawing import CropConfig
from pathorestore.data.manifest import Manifest, Row, read_manifest
from pathorestore.data.paired import PairedCrops, WholePairs
from pathorestore.data.sampling import KeySampler, ShareSampler
from pathorestore.data.sharp_crops import SharpCrops, WholeSharp
from pathorestore.data.slide_crops import SlideCrops
from pathorestore.image import round_up

_SHORTEST_EPOCH = 100
_VALIDATION_SEED = 1


class CropModule(pl.LightningDataModule):
    """Training crops by their number, validation crops that never change, whole images for prediction; rows are told apart by `split`.

    manifest: CSV or Parquet. crops: how they are cut. batch_size: of one process. epoch_size: crops of an epoch over all processes, rounded
    up to whole batches; by default one for each training row, and at least 100 batches. val_crops: crops that validation and test look at;
    0 turns validation off. num_workers: loading processes for each training process. check: examine the manifest and its files before the
    run, as `pathorestore data check` does, and refuse one with defects; False trains in spite of them, and `on_unreadable` tells what
    becomes of damaged files.

    A resumed run goes on with the crop after the last one that an optimiser step has used.
    """

    wanted = ""

    def __init__(
        self,
        manifest: Path,
        *,
        crops: CropConfig,
        batch_size: int = 8,
        epoch_size: int | None = None,
        val_crops: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        check: bool = True,
    ):
        super().__init__()
        if batch_size < 1 or num_workers < 0 or val_crops < 0 or (epoch_size is not None and epoch_size < 1):
            raise ValueError(
                f"batch_size={batch_size} and epoch_size={epoch_size} must be at least 1, val_crops={val_crops} and "
                f"num_workers={num_workers} at least 0"
            )
        self.manifest, self.crops, self.check = Path(manifest), crops, check
        self.batch_size, self.epoch_size, self.val_crops = batch_size, epoch_size, val_crops
        self.num_workers, self.seed = num_workers, seed
        self._read: Manifest | None = None
        self._resumed: dict[str, int] = {}

    def takes(self, row: Row) -> bool:
        """Whether a row is of the kind that this module reads."""
        raise NotImplementedError

    def crop_set(self, rows: Sequence[Row], config: CropConfig, *, folder: Path, seed: int) -> Dataset[Any]:
        """The crops of some rows."""
        raise NotImplementedError

    def whole_set(self, rows: Sequence[Row], *, folder: Path) -> Dataset[Any]:
        """The images of some rows as they are."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Examine the files, in one process; Lightning lets the others wait."""
        if not self.check:
            return
        from tqdm import tqdm

        from pathorestore.data.check import require_checked
        from pathorestore.data.defects import CheckOptions

        # images too small for a crop are no defects here: the crops leave them out and say so
        with tqdm(desc=f"checking {self.manifest.name}", unit="row", leave=False, disable=None) as bar:
            require_checked(self.manifest, CheckOptions(), progress=lambda done, total: _show(bar, done, total))

    def setup(self, stage: str) -> None:
        """Read the manifest, and tell the trainer if nothing is to be validated on."""
        del stage
        self._read = read_manifest(self.manifest)
        if self.trainer is not None and not self.val_crops:
            self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> DataLoader[Any]:
        """Crops from the first one that no optimiser step has used."""
        rows = self.rows("train")
        data = self.crop_set(rows, self.crops, folder=self.manifest.parent, seed=self.seed)
        whole_epoch = self._whole_epoch(len(rows))
        self._check_resumed(epoch_size := self._limited(whole_epoch))
        rank, world = self._place()
        sampler = StepKeys(self._used, whole_epoch, epoch_size=epoch_size, batch_size=self.batch_size, rank=rank, world=world)
        return self._loader(data, sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The same unturned crops every time, `val_crops` of them over all processes."""
        return self._same_crops("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """As for validation, of the test rows."""
        return self._same_crops("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test rows' images whole, one a batch; the key is the row's number among the rows of its split that this module takes."""
        return self._loader(self.whole_set(self.rows("test"), folder=self.manifest.parent), None, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must share, so that its steps mean the same crops."""
        return {} if self._read is None else self._pace(self._limited(self._whole_epoch(len(self.rows("train")))))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember it until training goes on."""
        self._resumed = dict(state_dict)

    def rows(self, split: str) -> tuple[Row, ...]:
        """The rows of a split that this module takes. Raises ValueError if there are none."""
        if self._read is None:
            raise RuntimeError("call setup first, which reads the manifest; Lightning's Trainer does so by itself")
        rows = tuple(row for row in self._read.of(split) if self.takes(row))
        if not rows:
            ways = {"val": ", or turn validation off with val_crops: 0"}.get(split, "")
            raise ValueError(f"{self.manifest} has no row with split {split} {self.wanted}; add some{ways}")
        return rows

    def _same_crops(self, split: str) -> DataLoader[Any]:
        if not self.val_crops:
            raise ValueError("val_crops=0 leaves nothing to look at; set it to a number of crops, e.g. 32")
        rank, world = self._place()
        if split == "val" and self.val_crops % world:
            raise ValueError(
                f"val_crops={self.val_crops} cannot be shared evenly among {world} processes, which would wait for each other; "
                f"try {round_up(self.val_crops, world)}"
            )
        config = replace(self.crops, augment=False, zoom=(1.0,), crops_per_image=1)
        data = self.crop_set(self.rows(split), config, folder=self.manifest.parent, seed=_VALIDATION_SEED)
        return self._loader(data, ShareSampler(self.val_crops, rank=rank, world=world))

    def _loader(self, data: Dataset[Any], sampler: Any, *, batch_size: int | None = None, drop_last: bool = False) -> DataLoader[Any]:
        return ResumedLoader(
            data,
            batch_size=batch_size or self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            worker_init_fn=one_thread,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _place(self) -> tuple[int, int]:
        """Number of this process, and of how many; alone without a trainer."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _whole_epoch(self, rows: int) -> int:
        """Crops of an epoch over all processes."""
        whole = self.batch_size * self._place()[1]
        return round_up(self.epoch_size or max(rows, _SHORTEST_EPOCH * whole), whole)

    def _limited(self, whole_epoch: int) -> int:
        """What the trainer's `limit_train_batches` lets through of them."""
        whole = self.batch_size * self._place()[1]
        batches, limit = whole_epoch // whole, 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return whole * max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))

    def _pace(self, epoch_size: int) -> dict[str, int]:
        """How fast crops are used up: those of an epoch, of a batch over all processes, and batches of an optimiser step."""
        accumulated = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return {"epoch_size": epoch_size, "global_batch": self.batch_size * self._place()[1], "accumulate_grad_batches": accumulated}

    def _used(self, epoch_size: int) -> int:
        """Crops that the optimiser steps of this run have used; the last step of an epoch takes what is left of it."""
        pace = self._pace(epoch_size)
        step_size = pace["global_batch"] * pace["accumulate_grad_batches"]
        epochs, steps = divmod(0 if self.trainer is None else self.trainer.global_step, math.ceil(epoch_size / step_size))
        return epochs * epoch_size + steps * step_size

    def _check_resumed(self, epoch_size: int) -> None:
        before, now = self._resumed, self._pace(epoch_size)
        self._resumed = {}
        if before and before != now:
            raise ValueError(
                f"the checkpoint was trained with {before}, this run has {now}, and its steps would not go on with the next crops; "
                "set epoch_size, batch_size (times processes: global_batch) and accumulate_grad_batches to what they were, "
                "or begin a new run from the exported weights"
            )


class SharpImages(CropModule):
    """Sharp images to be degraded by simulation: the rows without a target."""

    wanted = "and without a target"

    def takes(self, row: Row) -> bool:
        """Rows without a target."""
        return not row.target

    def crop_set(self, rows: Sequence[Row], config: CropConfig, *, folder: Path, seed: int) -> Dataset[Any]:
        """Sharp crops."""
        return SharpCrops(rows, config, folder=folder, seed=seed)

    def whole_set(self, rows: Sequence[Row], *, folder: Path) -> Dataset[Any]:
        """Sharp images."""
        return WholeSharp(rows, folder=folder)


class PairedImages(CropModule):
    """Degraded images with their clean partners, planes of focal stacks among them: the rows with a target."""

    wanted = "and with a target"

    def takes(self, row: Row) -> bool:
        """Rows with a target."""
        return bool(row.target)

    def crop_set(self, rows: Sequence[Row], config: CropConfig, *, folder: Path, seed: int) -> Dataset[Any]:
        """The same crops of both partners."""
        return PairedCrops(rows, config, folder=folder, seed=seed)

    def whole_set(self, rows: Sequence[Row], *, folder: Path) -> Dataset[Any]:
        """Both partners."""
        return WholePairs(rows, folder=folder)


class SlidePatches(CropModule):
    """Tissue patches straight from whole slides: the rows without a target. There are no whole images for prediction."""

    wanted = "and without a target"

    def takes(self, row: Row) -> bool:
        """Rows without a target."""
        return not row.target

    def crop_set(self, rows: Sequence[Row], config: CropConfig, *, folder: Path, seed: int) -> Dataset[Any]:
        """Patches on tissue."""
        return SlideCrops(rows, config, folder=folder, seed=seed)

    def whole_set(self, rows: Sequence[Row], *, folder: Path) -> Dataset[Any]:
        """Refused: a slide does not fit into memory."""
        raise ValueError(
            "predict takes whole images, and slides do not fit into memory; export regions as images, list them in a manifest "
            "and predict with SharpImages"
        )


class StepKeys(KeySampler):
    """Keys that follow the optimiser: Lightning's own count of epochs runs ahead after some restarts.

    used: the number of crops that optimiser steps have used, for an epoch size. whole_epoch: what Lightning takes its limit of.
    """

    def __init__(self, used: Callable[[int], int], whole_epoch: int, *, epoch_size: int, batch_size: int, rank: int, world: int):
        super().__init__(epoch_size=epoch_size, batch_size=batch_size, rank=rank, world=world)
        self._used, self._whole_epoch = used, whole_epoch

    def start(self) -> int:
        """The crop after the last one used."""
        return self._used(self.epoch_size)

    def __len__(self) -> int:
        """Keys of a whole epoch for this process, before Lightning limits them."""
        return self._whole_epoch // self.num_replicas


class ResumedLoader(DataLoader[Any]):
    """A DataLoader of which Lightning knows that it goes on where a run was interrupted; the position is its sampler's."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the position."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do."""


def _show(bar: Any, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def one_thread(worker: int) -> None:
    """Keep a loading process to one thread, so that workers do not take the cores that training needs."""
    del worker
    torch.set_num_threads(1)
