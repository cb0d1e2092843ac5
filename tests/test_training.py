"""The training stages on tiny data: they learn, they leave frozen parts alone, and their randomness belongs to the images."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from pathorestore.data.batches import PairBatch, SharpBatch
from pathorestore.data.synthetic import Simulation, sharp_middle, simulated_at
from pathorestore.degradations.recipes import Setting
from pathorestore.diffusion.resshift import ResShift
from pathorestore.losses import fft_magnitude_l1, local_contrast_l1, prompt_l1, vicreg
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import TinyEncoder, TinyEncoderConfig
from pathorestore.models.optics_prompt import NoOptics, OpticsPrompt, OpticsPromptConfig
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.pformer import PFormer, PFormerConfig, Restormer, RestormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter
from pathorestore.pipelines.refine import FineSettings
from pathorestore.training.prompt_stages import DefocusStage, EncoderStage, PathologyPromptStage
from pathorestore.training.restoration_stages import ChainTraining, PDiffusionStage, PFormerStage, RestormerStage
from pathorestore.training.schedules import Constant, MilestoneDecay, StepDecay, WarmupCosine
from pathorestore.training.stage import frozen

NAMES = ["encoder", "defocus", "pathology", "coarse", "restormer", "fine"]
SIMULATION = Simulation(ideal_share=0.5, seed=3)


def _prompter(optics=None):
    torch.manual_seed(0)
    encoder, defocus = TinyEncoder(TinyEncoderConfig.tiny()), DefocusEstimator(DefocusEstimatorConfig.tiny())
    return Prompter(
        encoder, defocus, PathologyPrompt(PathologyPromptConfig.tiny()), EdgePrompt(EdgePromptConfig.tiny()), optics or NoOptics()
    )


def _stage(name, **changes):
    prompter = _prompter()
    shared = {"simulation": SIMULATION, **changes}
    if name == "encoder":
        return EncoderStage(prompter.encoder, view_px=24, **shared)
    if name == "defocus":
        return DefocusStage(prompter.defocus, **shared)
    if name == "pathology":
        return PathologyPromptStage(prompter.pathology, prompter.encoder, prompter.defocus, **shared)
    if name == "coarse":
        return PFormerStage(PFormer(PFormerConfig.tiny()), prompter, fft_weight=0.1, **shared)
    if name == "restormer":
        return RestormerStage(Restormer(RestormerConfig.tiny()), prompter, **shared)
    small = replace(PDiffusionConfig.tiny(), unet=replace(PDiffusionConfig.tiny().unet, mult=(1,)))
    chain = ChainTraining(repeats=2, fft_weight=0.1, contrast_weight=0.1, degraded_share=0.5)
    settings = FineSettings(process=ResShift(kappa=1.0, min_noise=0.1), guard_px=1.0)
    return PDiffusionStage(PDiffusion(small), settings, prompter, PFormer(PFormerConfig.tiny()), chain=chain, **shared)


@pytest.fixture
def crops(nuclei_image):
    """Sixteen sharp crops of 32 px with margins of 16 px."""
    cuts = [nuclei_image[0, :, y : y + 64, x : x + 64] for y in range(0, 64, 16) for x in range(0, 64, 16)]
    return [SharpBatch(cut, torch.tensor(key), torch.tensor(16)) for key, cut in enumerate(cuts)]


def _batch(items):
    return SharpBatch(*(torch.stack(field) for field in zip(*items, strict=True)))


def _pairs(crops):
    made = simulated_at(_batch(crops), 1.6, setting=Setting.ideal())
    return [PairBatch(*(field[i] for field in made)) for i in range(len(crops))]


def _fit(stage, data, *, steps, folder, callbacks=()):
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        val_check_interval=1,
        num_sanity_val_steps=0,
    )
    trainer.fit(stage, DataLoader(data, batch_size=4), DataLoader(data[:4], batch_size=3))
    return trainer


@pytest.mark.parametrize("source", ["sharp", "pairs"])
@pytest.mark.parametrize("name", NAMES)
def test_every_stage_trains_and_validates_and_moves_only_what_it_should(name, source, crops, tmp_path):
    stage = _stage(name)
    before = {key: value.clone() for key, value in stage.state_dict().items()}
    trainer = _fit(stage, crops if source == "sharp" else _pairs(crops), steps=2, folder=tmp_path)
    moved = {key for key, value in stage.state_dict().items() if not torch.equal(value, before[key])}
    trainable = {key for key, parameter in stage.named_parameters() if parameter.requires_grad}
    own_buffers = {key for key, _ in stage.named_buffers() if any(key.startswith(f"{part}.") for part in (*stage.trained, "expander"))}
    assert moved & trainable
    assert moved <= trainable | own_buffers
    figures = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("val_")}
    assert figures
    assert all(torch.isfinite(value) for value in figures.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_stage_holds_are_the_parts_of_a_restorer(name):
    stage = _stage(name)
    assert set(stage.trained) <= set(stage.parts()) <= {"encoder", "defocus", "pathology", "edge", "coarse", "fine", "optics"}
    held = {id(module) for module in stage.modules()}
    assert all(id(part) in held for part in stage.parts().values())


@pytest.mark.parametrize("name", ["pathology", "coarse", "restormer", "fine"])
def test_the_loss_of_a_batch_is_the_mean_of_its_shares(name, crops, monkeypatch):
    """What several processes rely on: an image's randomness follows from its key, not from its place in a batch."""
    stage = _stage(name)
    stage.on_train_epoch_start()
    monkeypatch.setattr(stage, "log", lambda *_args, **_options: None)
    with torch.no_grad():
        whole = stage.training_step(_batch(crops[:4]), 0)
        shares = [stage.training_step(_batch(part), 0) for part in (crops[:2], crops[2:4])]
    assert torch.allclose(whole, sum(shares) / 2, rtol=1e-5)


def test_simulated_images_depend_on_seed_and_key_alone(crops):
    together = Simulation(ideal_share=0.5, seed=1)(_batch(crops[:6]))
    alone = Simulation(ideal_share=0.5, seed=1)(_batch(crops[4:5]))
    for whole, single in zip(together, alone, strict=True):
        assert torch.equal(whole[4:5], single)
    other = Simulation(ideal_share=0.5, seed=2)(_batch(crops[4:5]))
    assert not torch.equal(other.degraded, alone.degraded)


def test_pairs_that_were_photographed_are_left_as_they_are(crops):
    pairs = simulated_at(_batch(crops[:2]), 1.6, setting=Setting.ideal())
    assert SIMULATION(pairs) is pairs


def test_validation_looks_at_the_same_images_every_time(crops):
    first, second = (simulated_at(_batch(crops[:3]), 0.8, setting=Setting.shifted()) for _ in range(2))
    assert torch.equal(first.degraded, second.degraded)
    clean = simulated_at(_batch(crops[:3]), 0.8, setting=Setting.ideal()).clean
    assert torch.allclose(clean, sharp_middle(_batch(crops[:3])), atol=1 / 255)


def test_labels_that_nobody_knows_leave_the_loss(crops, monkeypatch):
    stage = _stage("defocus")
    monkeypatch.setattr(stage, "log_dict", lambda *_args, **_options: None)
    stage.eval()
    pairs = simulated_at(_batch(crops[:4]), 1.6, setting=Setting.ideal())
    nobody = torch.full_like(pairs.defocus_um, float("nan"))
    unknown = pairs._replace(defocus_um=nobody, ctf=nobody)
    assert float(stage.training_step(unknown, 0).detach()) == 0
    half = pairs._replace(defocus_um=torch.where(torch.arange(4) < 2, pairs.defocus_um, nobody), ctf=nobody)
    first_two = PairBatch(*(field[:2] for field in pairs))._replace(ctf=nobody[:2])
    assert torch.allclose(stage.training_step(half, 0), stage.training_step(first_two, 0), rtol=1e-5)


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


@pytest.mark.parametrize("hints", [False, True])
def test_the_p_former_learns_to_restore_one_crop(hints, crops):
    optics = OpticsPrompt(OpticsPromptConfig.tiny()) if hints else NoOptics()
    prompter = _prompter(optics)  # first, since it seeds the weights that are drawn after it too
    stage = PFormerStage(PFormer(replace(PFormerConfig.tiny(), hint_channels=optics.channels)), prompter, simulation=SIMULATION)
    pairs = simulated_at(_batch(crops[:1]), 1.6, setting=Setting.ideal())
    optimizer = torch.optim.Adam(stage.coarse.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        loss = nn.functional.l1_loss(stage.restore(pairs.degraded), pairs.clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


def test_fine_tuning_moves_only_the_parameters_that_were_named(crops, tmp_path):
    stage = PFormerStage(PFormer(PFormerConfig.tiny()), _prompter(), train_only=("refinement", "output"), simulation=SIMULATION)
    before = {key: value.clone() for key, value in stage.coarse.state_dict().items()}
    _fit(stage, crops, steps=2, folder=tmp_path)
    moved = {key for key, value in stage.coarse.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert all(key.startswith(("refinement", "output")) for key in moved)
    with pytest.raises(ValueError, match=r"'refinment'.*refinement"):
        PFormerStage(PFormer(PFormerConfig.tiny()), _prompter(), train_only=("refinment",))


def test_an_untrained_fine_stage_of_residuals_predicts_the_coarse_image(crops):
    stage = _stage("fine")
    pairs = simulated_at(_batch(crops[:2]), 1.6, setting=Setting.ideal())
    stage.eval()
    with torch.no_grad():
        coarse, fine = stage.restore(pairs.degraded, pairs.key)
    assert torch.allclose(fine, coarse.clamp(0, 1), atol=1e-5) or torch.allclose(fine, coarse, atol=1e-5)


@pytest.mark.parametrize(("share", "expected"), [(0.0, {1, 2, 3, 4}), (1.0, {4})])
def test_as_many_images_as_asked_for_stand_at_the_first_step_of_the_chain(share, expected, crops, monkeypatch):
    stage, seen = _stage("fine"), []
    monkeypatch.setattr(stage, "log", lambda *_, **__: None)
    stage.chain = replace(stage.chain, first_share=share, repeats=4)
    scale_input = ResShift.scale_input
    monkeypatch.setattr(ResShift, "scale_input", lambda process, state, t: seen.extend(t.tolist()) or scale_input(process, state, t))
    stage.training_step(_batch(crops[:8]), 0)
    assert len(seen) == 32
    assert set(seen) == expected


def test_a_fine_stage_can_learn_with_more_noise_than_it_is_used_with(crops, monkeypatch):
    seen = []
    marginal = ResShift.marginal
    monkeypatch.setattr(ResShift, "marginal", lambda process, *state: seen.append(process.kappa) or marginal(process, *state))
    for kappa in (0.0, 0.3):
        stage = _stage("fine")
        monkeypatch.setattr(stage, "log", lambda *_, **__: None)
        stage.chain = replace(stage.chain, kappa=kappa)
        stage.training_step(_batch(crops[:2]), 0)
        assert stage.settings().process.kappa == 1.0
    assert seen == [1.0, 0.3]


def test_a_refined_image_does_not_depend_on_its_batch(crops):
    stage = _stage("fine")
    for parameter in stage.fine.parameters():
        nn.init.normal_(parameter, std=0.05)
    pairs = simulated_at(_batch(crops[:3]), 1.6, setting=Setting.ideal())
    stage.eval()
    with torch.no_grad():
        together = stage.restore(pairs.degraded, pairs.key)[1]
        alone = stage.restore(pairs.degraded[2:], pairs.key[2:])[1]
    assert torch.allclose(together[2:], alone, atol=1e-5)


def test_predictions_keep_the_size_of_the_image(crops):
    image = crops[0].sharp[None, :, :37, :51]
    for name in ("coarse", "fine"):
        stage = _stage(name).eval()
        with torch.no_grad():
            restored = stage.predict_step(SharpBatch(image, torch.tensor([0]), torch.tensor([0])), 0)
        assert restored.shape == image.shape
        assert 0 <= float(restored.min()) <= float(restored.max()) <= 1


def test_a_cosine_warms_up_and_follows_the_progress():
    schedule = WarmupCosine(warmup=0.1, final=0.01)
    assert [schedule.factor(progress) for progress in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.5, 1.0, 0.505, 0.01], abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (StepDecay(0.5, "step"), [1, 0.5, 0.25]),
        (MilestoneDecay((1, 3), 0.5), [1, 0.5, 0.5, 0.25, 0.25]),
        (Constant(), [1, 1, 1]),
    ],
)
def test_schedules_multiply_the_rate_of_the_optimiser(schedule, expected):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule.attach(optimizer, lambda: 0.0)["scheduler"]
    rates = []
    for _ in expected:
        rates.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


def test_frozen_parts_have_no_gradients_and_do_not_train():
    module = frozen(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: WarmupCosine(warmup=1.0),
        lambda: StepDecay(gamma=0.0),
        lambda: MilestoneDecay((5, 3)),
        lambda: MilestoneDecay(gamma=0.0),
        lambda: Simulation(ideal_share=2.0),
        lambda: Simulation(ideal_max_um=0.0),
        lambda: ChainTraining(repeats=0),
        lambda: ChainTraining(prompt_dropout=1.5),
        lambda: ChainTraining(first_share=-0.5),
        lambda: DefocusStage(DefocusEstimator(DefocusEstimatorConfig.tiny()), distance_weight=0, ctf_weight=0),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()


def test_losses_are_zero_for_perfect_results_and_positive_otherwise():
    image, tokens = torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4)
    assert float(fft_magnitude_l1(image, image)) == 0 < float(fft_magnitude_l1(image, image.flip(0)))
    assert float(local_contrast_l1(image, image)) == 0 < float(local_contrast_l1(image, 0.5 * image))
    assert float(prompt_l1(tokens[:, 0], tokens, tokens[:, 0], tokens)) == 0
    assert float(prompt_l1(tokens[:, 0], tokens[:, :0], tokens[:, 1], tokens[:, :0])) > 0


def test_local_contrast_asks_for_the_strength_of_detail_and_not_for_its_course(generator):
    clean, other = torch.rand(2, 1, 3, 64, 64, generator=generator)
    flat = torch.full_like(clean, 0.5)
    assert float(local_contrast_l1(other, clean)) < 0.2 * float(local_contrast_l1(flat, clean))
    assert float(nn.functional.mse_loss(other, clean)) > float(nn.functional.mse_loss(flat, clean))
    half = torch.where(torch.arange(64) < 32, clean, flat)  # the same strength on average, but in the wrong place
    assert float(local_contrast_l1(half, clean)) > float(local_contrast_l1(other, clean))


def test_vicreg_prefers_agreeing_spread_decorrelated_embeddings():
    generator = torch.Generator().manual_seed(0)
    spread, other = torch.randn(2, 256, 4, generator=generator) * 1.5
    collapsed = torch.zeros(256, 4)
    correlated = spread[:, :1].expand(-1, 4)
    assert float(vicreg(spread, spread)) < min(
        float(vicreg(spread, other)), float(vicreg(collapsed, collapsed)), float(vicreg(correlated, correlated))
    )
