"""The training stages on tiny data: they learn, they resume, they leave frozen parts alone."""

import copy
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from pathorestore.diffusion.resshift import ResShift
from pathorestore.losses import fft_magnitude_l1, prompt_l1, vicreg
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import TinyEncoder, TinyEncoderConfig
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.pformer import PFormer, PFormerConfig, Restormer, RestormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter
from pathorestore.training.callbacks import ExponentialAverage, StopOnNonFinite, WallClockBudget
from pathorestore.training.prompt_stages import DefocusStage, EncoderStage, PathologyPromptStage
from pathorestore.training.restoration_stages import PDiffusionStage, PDiffusionStageConfig, PFormerStage, RestormerStage
from pathorestore.training.stage import StageConfig, frozen, validation_pairs

CONFIG = StageConfig(margin_px=16, learning_rate=1e-3, warmup=0.0)


@pytest.fixture
def crops(nuclei_image):
    """Sixteen 64 px crops of a nuclei image."""
    return [nuclei_image[0, :, y : y + 64, x : x + 64] for y in range(0, 64, 16) for x in range(0, 64, 16)]


def _prompter():
    torch.manual_seed(0)
    encoder, defocus = TinyEncoder(TinyEncoderConfig.tiny()), DefocusEstimator(DefocusEstimatorConfig.tiny())
    return Prompter(encoder, defocus, PathologyPrompt(PathologyPromptConfig.tiny()), EdgePrompt(EdgePromptConfig.tiny()))


def _stage(name):
    prompter = _prompter()
    if name == "encoder":
        return EncoderStage(prompter.encoder, CONFIG, view_px=24)
    if name == "defocus":
        return DefocusStage(prompter.defocus, CONFIG)
    if name == "pathology":
        return PathologyPromptStage(prompter.pathology, prompter.encoder, prompter.defocus, CONFIG)
    if name == "coarse":
        return PFormerStage(PFormer(PFormerConfig.tiny()), prompter, CONFIG, fft_weight=0.1)
    if name == "restormer":
        return RestormerStage(Restormer(RestormerConfig.tiny()), prompter, CONFIG)
    config = PDiffusionStageConfig(margin_px=16)
    small = replace(PDiffusionConfig.tiny(), unet=replace(PDiffusionConfig.tiny().unet, mult=(1,)))
    return PDiffusionStage(PDiffusion(small), ResShift(kappa=1.0, min_noise=0.1), prompter, PFormer(PFormerConfig.tiny()), config)


def _fit(stage, crops, *, steps, callbacks=(), ckpt=None, folder=None):
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        limit_val_batches=1,
        val_check_interval=1,
        num_sanity_val_steps=0,
    )
    trainer.fit(stage, DataLoader(crops, batch_size=4), DataLoader(crops[:2], batch_size=2), ckpt_path=ckpt)
    return trainer


@pytest.mark.parametrize("name", ["encoder", "defocus", "pathology", "coarse", "restormer", "fine"])
def test_every_stage_trains_and_validates_and_moves_only_what_it_should(name, crops, tmp_path):
    stage = _stage(name)
    before = {key: value.clone() for key, value in stage.state_dict().items()}
    trainer = _fit(stage, crops, steps=2, folder=tmp_path)
    moved = {key for key, value in stage.state_dict().items() if not torch.equal(value, before[key])}
    trainable = {key for key, parameter in stage.named_parameters() if parameter.requires_grad}
    buffers = {key for key, _ in stage.named_buffers()}
    assert moved & trainable
    assert moved <= trainable | {key for key in buffers if not key.startswith("prompter.")}
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
    assert any(key.startswith("val_") for key in trainer.callback_metrics)


def test_a_kept_batch_is_turned_as_one_and_serves_several_steps(crops):
    stage = _stage("fine")
    stage.dropout = replace(stage.dropout, reuse=3)
    sharp, generator = torch.stack(crops[:2]), torch.Generator().manual_seed(0)
    batch = stage._batch(sharp, generator)
    kept = stage._kept[0]
    turns = [kept.turned(which) for which in range(8)]
    assert any(all(torch.equal(a, b) for a, b in zip(batch, turn, strict=True)) for turn in turns)
    assert len({tuple(turn.clean.flatten().tolist()) for turn in turns}) == 8


def test_frozen_batch_statistics_do_not_drift(crops, tmp_path):
    stage = _stage("pathology")
    mean = stage.defocus.bn1.running_mean.clone()
    _fit(stage, crops, steps=2, folder=tmp_path)
    assert torch.equal(stage.defocus.bn1.running_mean, mean)


def test_the_same_seed_gives_the_same_weights(crops, tmp_path):
    weights = []
    for _ in range(2):
        stage = _stage("coarse")
        _fit(stage, crops, steps=2, folder=tmp_path)
        weights.append(stage.coarse.output.weight.detach().clone())
    assert torch.equal(*weights)


def test_the_p_former_learns_to_restore_one_crop(crops, tmp_path):
    stage = _stage("coarse")
    pairs = validation_pairs(crops[0][None], z_um=1.6, margin_px=16)
    optimizer = torch.optim.Adam(stage.coarse.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = nn.functional.l1_loss(stage.restore(pairs.degraded), pairs.clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_the_learning_rate_warms_up_and_follows_a_cosine_of_the_progress():
    stage = _stage("defocus")
    stage.config = StageConfig(warmup=0.1, final=0.01)
    rates = []
    for progress in (0.05, 0.1, 0.55, 1.0):
        stage.progress = progress
        rates.append(stage.rate())
    assert rates == pytest.approx([0.5, 1.0, 0.505, 0.01], abs=1e-6)


def test_the_budget_stops_the_run_and_survives_a_checkpoint(crops, tmp_path):
    budget = WallClockBudget(minutes=1e-6)
    trainer = _fit(_stage("defocus"), crops, steps=50, callbacks=[budget], folder=tmp_path)
    assert trainer.global_step < 4
    again = WallClockBudget(minutes=5)
    again.load_state_dict(budget.state_dict())
    assert again.spent_s == budget.spent_s > 0
    with pytest.raises(ValueError, match="positive"):
        WallClockBudget(0)


def test_the_average_follows_the_weights_and_swapping_twice_changes_nothing(crops, tmp_path):
    stage, average = _stage("defocus"), ExponentialAverage(0.5)
    start = stage.defocus.fc.weight.detach().clone()
    _fit(stage, crops, steps=3, callbacks=[average], folder=tmp_path)
    live = stage.defocus.fc.weight.detach().clone()
    average.swap(stage)
    averaged = stage.defocus.fc.weight.detach().clone()
    assert not torch.equal(averaged, live)
    assert (averaged - start).norm() < (live - start).norm()
    average.swap(stage)
    assert torch.equal(stage.defocus.fc.weight, live)
    other = ExponentialAverage(0.5)
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    other.swap(stage)
    assert torch.equal(stage.defocus.fc.weight, averaged)


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(crops, tmp_path):
    stage = _stage("defocus")
    with torch.no_grad():
        stage.defocus.fc.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 0"):
        _fit(stage, crops, steps=2, callbacks=[StopOnNonFinite()], folder=tmp_path)


def test_step_randomness_depends_on_seed_and_step_alone():
    first, second = _stage("defocus"), _stage("defocus")
    assert torch.equal(torch.rand(3, generator=first.step_generator()), torch.rand(3, generator=second.step_generator()))
    second.config = replace(CONFIG, seed=1)
    assert not torch.equal(torch.rand(3, generator=first.step_generator()), torch.rand(3, generator=second.step_generator()))


def test_frozen_parts_have_no_gradients_and_do_not_train():
    module = frozen(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("change", [{"learning_rate": 0.0}, {"warmup": 1.0}, {"ideal_share": 2.0}, {"margin_px": -1}])
def test_impossible_stages_are_refused(change):
    with pytest.raises(ValueError, match="got"):
        StageConfig(**change)


def test_losses_are_zero_for_perfect_results_and_positive_otherwise():
    image, tokens = torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4)
    assert float(fft_magnitude_l1(image, image)) == 0 < float(fft_magnitude_l1(image, image.flip(0)))
    assert float(prompt_l1(tokens[:, 0], tokens, tokens[:, 0], tokens)) == 0
    assert float(prompt_l1(tokens[:, 0], tokens[:, :0], tokens[:, 1], tokens[:, :0])) > 0


def test_vicreg_prefers_agreeing_spread_decorrelated_embeddings():
    generator = torch.Generator().manual_seed(0)
    spread, other = torch.randn(2, 256, 4, generator=generator) * 1.5
    collapsed = torch.zeros(256, 4)
    correlated = spread[:, :1].expand(-1, 4)
    assert float(vicreg(spread, spread)) < min(
        float(vicreg(spread, other)), float(vicreg(collapsed, collapsed)), float(vicreg(correlated, correlated))
    )
