"""The callbacks under two real processes: they agree, and when one fails both stop."""

import json

import pytest
import pytorch_lightning as pl
import torch
from small_stage import SmallStage, fit

from pathorestore.training.average import ExponentialAverage
from pathorestore.training.budget import WallClockBudget
from pathorestore.training.guard import StopOnNonFinite, load_saved_batch
from pathorestore.training.pictures import PictureGrid
from pathorestore.training.record import TrainingRecord

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # gloo and torch.distributed warn of many things


class _Leave(pl.Callback):
    """Every process leaves what it ended with."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        average = next(callback for callback in trainer.callbacks if isinstance(callback, ExponentialAverage)).average
        torch.save({"average": average, "seen": pl_module.seen}, self.folder / f"rank{trainer.global_rank}.pt")


class _OneFails(SmallStage):
    """The loss of the second process alone becomes NaN, at step 2; infinite by a constant, its gradients stay finite."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + float("inf") if self.global_step == 2 and self.global_rank == 1 else loss


def _fit(stage, folder, **options):
    callbacks = [WallClockBudget(minutes=options.pop("minutes", None), share_every=2), ExponentialAverage(0.5), StopOnNonFinite()]
    callbacks += [PictureGrid(), TrainingRecord(), _Leave(folder)]
    fit(stage, folder, callbacks=callbacks, devices=2, strategy="ddp_fork", batch=1, **options)


def test_two_processes_end_with_the_same_average_and_count_all_images(tmp_path):
    _fit(SmallStage(), tmp_path, max_steps=6)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["average"].keys() == second["average"].keys()
    assert all(torch.equal(first["average"][name], second["average"][name]) for name in first["average"])
    assert [seen[:2] for seen in first["seen"]] == [seen[:2] for seen in second["seen"]]
    assert [seen[2] for seen in first["seen"]] != [seen[2] for seen in second["seen"]]  # they had different images
    record = json.loads((tmp_path / "training_record.json").read_text())
    assert (record["steps"], record["images_seen"], record["batch"], record["processes"]) == (6, 12, 1, 2)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["step_000004.png"]


def test_two_processes_stop_at_the_same_step_when_the_time_is_up(tmp_path):
    _fit(SmallStage(), tmp_path, minutes=0.02, max_steps=100_000)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)["seen"] for rank in range(2))
    assert [seen[:2] for seen in first] == [seen[:2] for seen in second]
    assert first[-1][1] == 1.0


def test_when_one_process_fails_both_stop_and_it_alone_writes(tmp_path):
    with pytest.raises(Exception, match=r"became (NaN or infinite|inf)"):
        _fit(_OneFails(), tmp_path, max_steps=6)
    assert {path.stem for path in (tmp_path / "nonfinite").iterdir()} == {"step_000002_rank1"}
    assert load_saved_batch(tmp_path / "nonfinite" / "step_000002_rank1.json").facts["loss"] == "inf"
