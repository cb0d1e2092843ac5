"""Data modules: from a manifest to batches, which an interrupted run takes up where it stopped."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

from pathorestore.data.batches import PairBatch, SharpBatch
from pathorestore.data.drawing import CropConfig
from pathorestore.data.image_cache import UnreadableImage
from pathorestore.training.datamodules import CropModule, PairedImages, SharpImages, SlidePatches

# isort: split
# after pathorestore.training, which makes torchvision importable where its operators are missing
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*", "ignore:.*exists and is not empty.*")
CROPS = CropConfig(crop_px=8, margin_px=4)


@pytest.fixture
def manifest(tmp_path):
    """Two sharp images to train on, one each to validate and test on, and a labelled pair in every split."""
    for index in range(6):
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    rows = ["path,target,z_um,split", "0.png,,,train", "1.png,,,train", "2.png,,,val", "3.png,,,test"]
    rows += [f"4.png,5.png,{z},{split}" for z, split in ((1, "train"), (2, "val"), (3, "test"))]
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "manifest.csv"


class Listening(pl.LightningModule):
    """Learns next to nothing, and notes the keys that it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.key.tolist())
        return (self.weight - batch[0].mean()) ** 2

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def predict_step(self, batch, batch_idx):
        return batch.key.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(manifest, *, resume=None, workers=0, checkpoints=None, module=SharpImages, epoch_size=20, **trainer):
    """Train on batches of four, five an epoch; a checkpoint after every step."""
    listening = Listening()
    data = module(
        manifest, crops=CROPS if module is SharpImages else CropConfig(crop_px=8), batch_size=4, epoch_size=epoch_size, val_crops=6,
        num_workers=workers, check=False,
    )  # fmt: skip
    folder = manifest.parent / "checkpoints"
    options = {"max_epochs": -1, "accelerator": "cpu", "devices": 1, "logger": False, "num_sanity_val_steps": 0} | trainer
    kept = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **(checkpoints or {"every_n_train_steps": 1}))
    lightning = pl.Trainer(**options, callbacks=[kept], enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder)
    lightning.fit(listening, data, ckpt_path=resume)
    return SimpleNamespace(seen=listening.seen, validated=listening.validated, folder=folder, trainer=lightning, data=data)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [{"max_steps": 13}, {"max_epochs": 3}])
@pytest.mark.parametrize("step", [3, 5, 7, 10])
def test_a_resumed_run_sees_what_the_uninterrupted_one_would_have_seen(manifest, limit, step, workers):
    whole = _fit(manifest, **limit)
    assert [key for keys in whole.seen for key in keys] == list(range(4 * len(whole.seen)))
    resumed = _fit(manifest, resume=str(whole.folder / f"step={step}.ckpt"), workers=workers, **limit)
    assert resumed.seen == whole.seen[step:]
    assert resumed.trainer.global_step == whole.trainer.global_step


# ways in which Lightning leaves a checkpoint: what is saved when, and what its own counters then say
@pytest.mark.parametrize(
    ("limit", "checkpoints", "step", "batches"),
    [
        ({"max_steps": 13}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}, 5, 13),
        ({"max_epochs": 3}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}, 10, 15),
        ({"max_steps": 13}, {"every_n_epochs": 1, "save_on_train_epoch_end": False}, 5, 13),
        ({"max_steps": 13, "val_check_interval": 3, "check_val_every_n_epoch": None}, {"save_on_train_epoch_end": False}, 6, 13),
        ({"max_steps": 13, "val_check_interval": 5, "check_val_every_n_epoch": None}, {"every_n_train_steps": 5}, 10, 13),
        ({"max_epochs": 3, "limit_train_batches": 3}, {"every_n_train_steps": 1}, 4, 9),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, {"every_n_train_steps": 1}, 3, 6),
    ],
)
def test_it_does_so_however_the_checkpoint_came_to_be(manifest, limit, checkpoints, step, batches):
    whole = _fit(manifest, checkpoints=checkpoints, **limit)
    resumed = _fit(manifest, resume=str(whole.folder / f"step={step}.ckpt"), checkpoints=checkpoints, **limit)
    assert resumed.seen == whole.seen[step:]
    assert whole.seen == [[4 * batch + item for item in range(4)] for batch in range(batches)]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6])
def test_it_does_so_with_accumulated_gradients_whether_or_not_they_fill_an_epoch(manifest, step):
    whole = _fit(manifest, max_epochs=3, accumulate_grad_batches=2)  # steps of 2, 2 and 1 batches
    resumed = _fit(manifest, resume=str(whole.folder / f"step={step}.ckpt"), max_epochs=3, accumulate_grad_batches=2)
    assert resumed.seen == whole.seen[[0, 2, 4, 5, 7, 9, 10][step] :]


@pytest.mark.parametrize("change", [{"epoch_size": 24}, {"accumulate_grad_batches": 2}])
def test_a_resumed_run_of_another_pace_is_refused(manifest, change):
    whole = _fit(manifest, max_steps=3)
    with pytest.raises(ValueError, match=r"trained with \{'epoch_size': 20, 'global_batch': 4.*set epoch_size"):
        _fit(manifest, resume=str(whole.folder / "step=3.ckpt"), max_steps=5, **change)


def test_validation_is_the_same_unturned_crops_each_time_and_off_without_any(manifest):
    run = _fit(manifest, max_epochs=2)
    first, second = run.validated[:2], run.validated[2:]
    assert [batch.key.tolist() for batch in first] == [[0, 1, 2, 3], [4, 5]]
    assert all(torch.equal(a.sharp, b.sharp) for a, b in zip(first, second, strict=True))
    turning = SharpImages(manifest, crops=CropConfig(crop_px=8, margin_px=4, zoom=(2.0,)), batch_size=4, val_crops=6, seed=9, check=False)
    turning.setup("validate")
    assert torch.equal(next(iter(turning.val_dataloader())).sharp, first[0].sharp)
    image = torch.from_numpy(np.array(Image.open(manifest.parent / "2.png"))).permute(2, 0, 1) / 255
    windows = image.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 16, 16)
    assert (windows == first[0].sharp[0]).flatten(1).all(dim=1).any()
    silent, none = Listening(), SharpImages(manifest, crops=CROPS, val_crops=0, check=False)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(max_steps=1, max_epochs=-1, accelerator="cpu", default_root_dir=manifest.parent, **options).fit(silent, none)
    assert silent.validated == []
    with pytest.raises(ValueError, match="val_crops=0"):
        none.test_dataloader()


def test_each_module_takes_its_own_kind_of_rows_and_tells_the_splits_apart(manifest):
    for module, kind, names in ((SharpImages, SharpBatch, ["3.png"]), (PairedImages, PairBatch, ["4.png"])):
        data = module(manifest, crops=CropConfig(crop_px=8), val_crops=6, batch_size=3, check=False)
        data.setup("fit")
        assert [row.path for row in data.rows("test")] == names
        (whole,) = data.predict_dataloader()
        assert isinstance(whole, kind)
        assert whole[0].shape == (1, 3, 40, 48)
        assert whole.key.tolist() == [0]
        assert [batch.key.tolist() for batch in data.test_dataloader()] == [[0, 1, 2], [3, 4, 5]]
    assert whole.defocus_um.tolist() == [3]
    assert next(iter(data.train_dataloader())).defocus_um.tolist() == [1, 1, 1]
    assert next(iter(data.val_dataloader())).defocus_um.tolist() == [2, 2, 2]


def test_prediction_gets_every_test_image_once(manifest):
    manifest.write_text("path,split\n" + "".join(f"{index}.png,test\n" for index in range(6)))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=manifest.parent, **options)
    assert trainer.predict(Listening(), SharpImages(manifest, crops=CROPS, check=False)) == [[index] for index in range(6)]


def test_an_empty_split_is_an_error_that_says_what_to_do(manifest):
    manifest.write_text("path,split\n0.png,train\n")
    data = SharpImages(manifest, crops=CROPS, check=False)
    with pytest.raises(RuntimeError, match="setup"):
        data.train_dataloader()
    data.setup("fit")
    with pytest.raises(ValueError, match=r"no row with split val and without a target.*val_crops: 0"):
        data.val_dataloader()
    with pytest.raises(ValueError, match="no row with split test"):
        data.predict_dataloader()
    pairs = PairedImages(manifest, crops=CROPS, check=False)
    pairs.setup("fit")
    with pytest.raises(ValueError, match="split train and with a target"):
        pairs.train_dataloader()
    with pytest.raises(ValueError, match="batch_size=0"):
        SharpImages(manifest, crops=CROPS, batch_size=0)


def test_an_epoch_is_one_crop_a_row_in_whole_batches_but_never_short(manifest):
    def length(rows, **options):
        manifest.write_text("path\n" + "0.png\n" * rows)
        data = SharpImages(manifest, crops=CROPS, check=False, **options)
        data.setup("fit")
        return len(data.train_dataloader())

    assert length(2, batch_size=8) == 100
    assert length(1003, batch_size=10) == 101
    assert length(2, batch_size=8, epoch_size=20) == 3


def test_the_processes_of_a_run_share_batches_and_validation_crops(manifest):
    def keys(rank, world, loader):
        data = SharpImages(manifest, crops=CROPS, batch_size=12 // world, epoch_size=24, val_crops=12, check=False)
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=world, global_step=3, accumulate_grad_batches=1, limit_train_batches=1.0, limit_val_batches=1.0
        )
        data.setup("fit")
        return [batch.key.tolist() for batch in getattr(data, loader)()]

    alone = keys(0, 1, "train_dataloader")
    assert alone == [list(range(36, 48))]
    assert keys(0, 3, "train_dataloader") + keys(1, 3, "train_dataloader") + keys(2, 3, "train_dataloader") == [
        alone[0][:4], alone[0][4:8], alone[0][8:]
    ]  # fmt: skip
    shares = [keys(rank, 3, "val_dataloader") for rank in range(3)]
    assert sorted(key for share in shares for batch in share for key in batch) == list(range(12))
    with pytest.raises(ValueError, match="try 15"):
        keys(0, 5, "val_dataloader")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_stops_a_run_by_name(manifest, workers):
    for name in ("0.png", "1.png"):
        path = manifest.parent / name
        path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UnreadableImage, match=r"^\S*[01]\.png: cannot be read for training.*truncated"):
        _fit(manifest, workers=workers, max_steps=5)


def test_a_manifest_with_defects_is_refused_before_training_unless_that_is_turned_off(manifest):
    manifest.write_text("path,split\n0.png,train\n2.png,val\n")
    SharpImages(manifest, crops=CROPS).prepare_data()
    (manifest.parent / "0.png").write_bytes((manifest.parent / "0.png").read_bytes()[:3000])
    SharpImages(manifest, crops=CROPS, check=False).prepare_data()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=1, max_epochs=-1, accelerator="cpu", default_root_dir=manifest.parent, **options)
    with pytest.raises(ValueError, match=r"row 2 \(0\.png\): unreadable"):
        trainer.fit(Listening(), SharpImages(manifest, crops=CROPS))


def test_slides_are_not_predicted_whole(manifest):
    data = SlidePatches(manifest, crops=CROPS, check=False)
    data.setup("predict")
    with pytest.raises(ValueError, match="SharpImages"):
        data.predict_dataloader()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the names of jsonargparse's methods
def test_a_configuration_file_names_everything(manifest):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(CropModule, "data")
    text = yaml.safe_dump({
        "data": {
            "class_path": "pathorestore.training.datamodules.SharpImages",
            "init_args": {
                "manifest": str(manifest), "batch_size": 16, "num_workers": 2, "check": False,
                "crops": {"crop_px": 96, "margin_px": 32, "zoom": [1, 1, 1.5], "target_mpp": 0.5, "on_unreadable": "skip"},
            },
        }
    })  # fmt: skip
    (manifest.parent / "c.yaml").write_text(text)
    parser.add_argument("--config", action="config")
    config = parser.parse_args(["--config", str(manifest.parent / "c.yaml"), "--data.crops.crop_px=64"])
    data = parser.instantiate_classes(config).data
    assert data.crops == CropConfig(crop_px=64, margin_px=32, zoom=(1.0, 1.0, 1.5), target_mpp=0.5, on_unreadable="skip")
    assert (data.batch_size, data.num_workers, data.val_crops, data.check) == (16, 2, 32, False)
