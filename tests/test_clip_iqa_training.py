"""Training CLIP-IQA: what is tuned moves and nothing else, a resumed run is the same run, and the export is the head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathorestore._torchvision import ensure_torchvision
from pathorestore.data.drawing import CropConfig
from pathorestore.data.iqa import IqaOptions, iqa_rows
from pathorestore.data.manifest import Row, write_manifest
from pathorestore.models.clip_iqa import SmallClip, SmallClipConfig, load_clip_iqa

ensure_torchvision()
pytest.importorskip("transformers", reason="the extra `clip`")
SMALL = SmallClipConfig(window_px=32, width=32, layers=2, text_width=16, dim=16)


def _seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


@pytest.fixture(scope="module")
def windows():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Blurred patches of six small images."""
    folder = tmp_path_factory.mktemp("iqa")
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    rows = iqa_rows([Row(path=f"{index}.png") for index in range(6)], IqaOptions(patch_px=64, per_image=1), folder=folder)
    write_manifest(folder / "iqa.csv", rows)
    return folder / "iqa.csv"


def _stage(clip, **options):
    from pathorestore.training.iqa_stage import ClipIqaStage

    return _seeded(lambda: ClipIqaStage(clip, context=4, **options))


def _fit(stage, table, folder, *, steps, ckpt_path=None, every=100):
    from pathorestore.training.iqa_stage import BlurredImages

    # isort: split
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    crops = CropConfig(crop_px=32)
    data = BlurredImages(table, crops=crops, kind="gauss", batch_size=8, epoch_size=8 * 20, val_crops=16)
    kept = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=every)
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    trainer = pl.Trainer(**options, **quiet, max_steps=steps, callbacks=[kept])
    trainer.fit(stage, data, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(("tune", "towers"), [("prompt", 0), ("all", 2)])
def test_only_what_is_tuned_has_gradients(windows, tune, towers):
    from pathorestore.data.iqa import IqaBatch

    stage = _stage(_seeded(lambda: SmallClip(SMALL)), tune=tune)
    stage.log = lambda *args, **options: None
    stage.training_step(IqaBatch(windows, torch.tensor([1.0, 0.5, 0.0]), torch.arange(3)), 0).backward()
    moved = {name for name, parameter in stage.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    assert "iqa.prompt.context" in moved
    assert sum(any(tower in name for name in moved) for tower in ("vision_model", "text_model")) == towers
    if tune == "prompt":
        assert moved == {"iqa.prompt.context"}
        assert stage.trained == ("prompt",)


@pytest.mark.filterwarnings("ignore:.*exists and is not empty.*", "ignore:.*suggested max number of worker.*")
def test_a_run_learns_reports_its_rank_correlation_and_is_exported_as_a_head(table, tmp_path, windows):
    from pathorestore.training.export import export

    stage = _stage(_seeded(lambda: SmallClip(SMALL)), tune="all")
    before = stage.iqa(windows).detach()
    trainer = _fit(stage, table, tmp_path, steps=20)
    assert set(trainer.callback_metrics) >= {"val_spearman", "val_mse", "train_mse"}
    assert -1 <= trainer.callback_metrics["val_spearman"] <= 1
    assert not torch.allclose(before, stage.iqa(windows).detach())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    exported = export(tmp_path / "last.ckpt", tmp_path / "head")
    assert exported.parts == ("clip", "prompt")
    loaded = load_clip_iqa("gauss", folder=tmp_path / "head")
    assert torch.equal(loaded(windows), stage.iqa.eval()(windows).detach())


@pytest.mark.filterwarnings("ignore:.*exists and is not empty.*", "ignore:.*suggested max number of worker.*")
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(table, tmp_path):
    whole = _stage(_seeded(lambda: SmallClip(SMALL)), tune="all")
    _fit(whole, table, tmp_path / "a", steps=6, every=3)
    resumed = _stage(_seeded(lambda: SmallClip(SMALL)), tune="all")
    _fit(resumed, table, tmp_path / "a", steps=6, every=3, ckpt_path=str(tmp_path / "a" / "step=3.ckpt"))
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_stain_varies_but_the_blur_stays(windows):
    stage = _stage(SmallClip(SMALL), tune="all", stain_jitter=0.2)
    pale = 0.7 + 0.3 * windows
    tinted = stage._tinted(pale, generator=torch.Generator().manual_seed(0))
    shares = (1 - tinted) / (1 - pale)
    assert shares.std(dim=(2, 3)).max() < 1e-4  # one factor a channel: linear, so that it changes places with any blur
    assert shares.min() >= 0.8**2
    assert shares.max() <= 1.2**2


@pytest.mark.parametrize(
    ("options", "reason"), [({"tune": "prompt", "stain_jitter": 1.0}, "stain_jitter"), ({"context": 0}, "nothing to train")]
)
def test_a_stage_that_cannot_train_is_refused(options, reason):
    from pathorestore.training.iqa_stage import ClipIqaStage

    with pytest.raises(ValueError, match=reason):
        ClipIqaStage(SmallClip(SMALL), **options)


@pytest.mark.parametrize("kind", ["box", "gauss"])
def test_the_configurations_build_the_tiny_head_for_their_kind(kind):
    import yaml

    from pathorestore.training.cli import config_path

    config = yaml.safe_load(Path(config_path(f"clip_iqa_{kind}_tiny")).read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert SmallClipConfig(**model["clip"]["init_args"]["config"]) == SmallClipConfig.tiny()
    assert data["kind"] == kind
    assert data["crops"]["crop_px"] == SmallClipConfig.tiny().window_px
    assert (model["context"], model["tune"]) == (16, "all")
