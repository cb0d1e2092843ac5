"""The stages of Histo-Diffusion: what each learns from, what stays as it is, and that a run of them gives a system."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from pathorestore.data.batches import SharpBatch
from pathorestore.degradations.blind import degrade_blind
from pathorestore.degradations.blind_recipes import OneRound
from pathorestore.degradations.resize import reduced, resized
from pathorestore.functional.noise import stream
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.autoencoder import LatentAutoencoder
from pathorestore.models.controlled import ControlNet, LatentUNet
from pathorestore.models.swinir import SwinIR
from pathorestore.pipelines.histo_diffusion import HistoDiffusion, HistoDiffusionConfig
from pathorestore.training import AutoencoderStage, ControlStage, LatentUNetStage, RestorationModuleStage
from pathorestore.training.export import describe

pytest.importorskip("diffusers")

NANO = HistoDiffusionConfig.nano()
LIGHT = OneRound.histo_light()


def batch(size=32, keys=(3, 4), seed=0):
    sharp = F.avg_pool2d(torch.rand(len(keys), 3, size + 2, size + 2, generator=torch.Generator().manual_seed(seed)), 3, 1)
    return SharpBatch(sharp, torch.tensor(keys), torch.zeros(len(keys), dtype=torch.long))


def made(kind, seed=0, **changes):
    torch.manual_seed(0)
    restoration, autoencoder, unet = SwinIR(NANO.restoration), LatentAutoencoder(NANO.autoencoder), LatentUNet(NANO.unet)
    stage = {
        RestorationModuleStage: lambda: RestorationModuleStage(restoration, recipe=LIGHT, seed=seed, **changes),
        AutoencoderStage: lambda: AutoencoderStage(autoencoder, seed=seed, **changes),
        LatentUNetStage: lambda: LatentUNetStage(unet, autoencoder, settings=NANO.settings, seed=seed, **changes),
        ControlStage: lambda: ControlStage(
            ControlNet.from_unet(unet), unet, autoencoder, restoration, recipe=LIGHT, settings=NANO.settings, seed=seed, **changes
        ),
    }[kind]()
    stage.log = lambda *_, **__: None
    return stage


def normal(stage, salt, shape, keys=(3, 4)):
    """The noise that images of these keys draw for a use."""
    return torch.stack([torch.randn(shape, generator=stream(stage.simulation.seed, salt, key)) for key in keys])


def told_by(stage, made_of, monkeypatch):
    told = {}
    monkeypatch.setattr(stage, "score", lambda name, values, **_: told.setdefault(name, []).append(values))
    with torch.no_grad():
        stage.evaluate(made_of)
    return {name: torch.cat(values) for name, values in told.items()}


STAGES = [RestorationModuleStage, AutoencoderStage, LatentUNetStage, ControlStage]


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_learns_and_leaves_alone_what_is_frozen(kind):
    stage, given = made(kind), batch()
    before = {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in stage.parts().items()}
    optimizer = torch.optim.Adam([one for one in stage.parameters() if one.requires_grad], lr=2e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = stage.training_step(given, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, part in stage.parts().items():
        assert all(one.requires_grad == (name in stage.trained) for one in part.parameters()), name
        changed = any(not torch.equal(value, before[name][key]) for key, value in part.state_dict().items())
        assert changed == (name in stage.trained), name


@pytest.mark.parametrize("kind", STAGES)
def test_the_loss_follows_from_the_keys_of_images_alone(kind):
    stage, whole = made(kind).eval(), batch(keys=(3, 4))
    with torch.no_grad():
        together = stage.training_step(whole, 0)
        assert torch.equal(stage.training_step(whole, 7), together)
        apart = torch.stack([stage.training_step(SharpBatch(*(part[i : i + 1] for part in whole)), 0) for i in range(2)]).mean()
        other = stage.training_step(SharpBatch(whole.sharp, torch.tensor([5, 6]), whole.margin_px), 0)
    assert torch.allclose(together, apart, rtol=1e-4)
    assert not torch.equal(together, other)


@pytest.mark.parametrize("kind", STAGES)
def test_every_trained_part_gets_gradients_and_a_checkpoint_describes_all(kind):
    stage = made(kind)
    # behind zero convolutions nothing is learned before these have moved
    for parameter in stage.parameters():
        if parameter.requires_grad and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.05)
    stage.training_step(batch(), 0).backward()
    for name in stage.trained:
        assert all(one.grad is not None and bool(one.grad.any()) for one in stage.parts()[name].parameters() if one.numel() > 1), name
    described = describe(stage)
    assert set(described["parts"]) == set(stage.parts())
    assert described["trained"] == list(stage.trained)


def test_the_restoration_module_learns_the_sharp_image_of_what_was_degraded():
    stage, given = made(RestorationModuleStage).eval(), batch()
    degraded = degrade_blind(given.sharp, LIGHT, generator=stage.streams(given.key, salt=10)).image
    assert torch.equal(stage.training_step(given, 0), F.mse_loss(stage.restoration(degraded), given.sharp))


def test_the_autoencoder_pays_for_its_divergence_from_the_normal():
    stage, given = made(AutoencoderStage, kl_weight=0.3).eval(), batch()
    mean, log_variance = stage.autoencoder.posterior(given.sharp)
    posterior = Normal(mean, (log_variance / 2).exp())
    latent = stage.autoencoder.config.scaling * (mean + posterior.stddev * normal(stage, 11, mean.shape[1:]))
    expected = (stage.autoencoder.decode(latent) - given.sharp).abs().mean() + 0.3 * kl_divergence(posterior, Normal(0.0, 1.0)).mean()
    assert torch.allclose(stage.training_step(given, 0), expected, rtol=1e-5)


def test_the_u_net_sees_samples_of_latents_noised_to_steps_of_the_whole_process(monkeypatch):
    stage, seen = made(LatentUNetStage).eval(), []
    stage.autoencoder.config = replace(stage.autoencoder.config, scaling=0.4)
    given = batch(keys=range(40))

    def predicted(batch, state, t):
        seen.append((state, t))
        return torch.zeros_like(state)

    monkeypatch.setattr(stage, "predicted", predicted)
    stage.training_step(given, 0)
    mean, log_variance = stage.autoencoder.posterior(given.sharp)
    latent = 0.4 * (mean + (log_variance / 2).exp() * normal(stage, 11, mean.shape[1:], range(40)))
    noise, process = normal(stage, 13, mean.shape[1:], range(40)), NANO.settings.process
    (state, t), *_ = seen
    assert torch.allclose(state, process.noised(latent, t, noise), atol=1e-5)
    assert 0 <= t.min() < 200
    assert 800 < t.max() < 1000
    seen.clear()
    told = told_by(stage, given, monkeypatch)
    assert [int(steps[0]) for _, steps in seen] == [50, 250, 500, 750, 950]
    assert all(torch.allclose(state, process.noised(latent, steps, noise), atol=1e-5) for state, steps in seen)
    assert torch.allclose(told["mse_50"], noise.square().flatten(1).mean(dim=1))


@pytest.mark.parametrize("kind", [RestorationModuleStage, AutoencoderStage, LatentUNetStage, ControlStage])
def test_another_seed_is_another_run(kind):
    with torch.no_grad():
        assert not torch.equal(made(kind).eval().training_step(batch(), 0), made(kind, seed=1).eval().training_step(batch(), 0))


def test_the_restoration_module_is_judged_on_its_own_recipe_and_on_reductions(monkeypatch):
    stage, given = made(RestorationModuleStage).eval(), batch(size=48)
    told = told_by(stage, given, monkeypatch)
    degraded = degrade_blind(given.sharp, LIGHT, generator=stage.streams(given.key, salt=10)).image
    assert torch.allclose(told["gain"], psnr(stage.restored(degraded), given.sharp) - psnr(degraded, given.sharp), atol=1e-4)
    small, clean = reduced(given.sharp, 4.0, blur=0.0)
    bicubic = resized(small, tuple(clean.shape[-2:]))
    with torch.no_grad():
        assert torch.allclose(told["gain_x4_sharp"], psnr(stage.restored(bicubic), clean) - psnr(bicubic, clean), atol=1e-4)
    assert not torch.allclose(told["gain_x4"], told["gain_x4_sharp"])


def test_the_autoencoder_measures_its_scaling_when_it_is_validated(monkeypatch):
    stage = made(AutoencoderStage).eval()
    stage._trainer = type("Trainer", (), {"sanity_checking": False, "testing": False})()
    told_by(stage, batch(), monkeypatch)
    with torch.no_grad():
        stage.on_validation_epoch_end()
    latent = stage.autoencoder.encode(batch().sharp)
    assert latent.std().item() == pytest.approx(1, rel=0.02)
    assert describe(stage)["parts"]["autoencoder"]["config"]["scaling"] == stage.autoencoder.config.scaling
    with pytest.raises(ValueError, match="kl_weight must not be negative"):
        AutoencoderStage(stage.autoencoder, kl_weight=-1)


def test_noise_is_predicted_in_the_states_of_the_process(monkeypatch):
    """A U-Net that knows the noise makes no error, whatever the step."""
    stage, given = made(LatentUNetStage).eval(), batch()
    noise = stage._noise(given)
    monkeypatch.setattr(stage, "predicted", lambda batch, state, t: noise)
    with torch.no_grad():
        assert stage.training_step(given, 0) == 0
    told = told_by(stage, given, monkeypatch)
    assert all(not bool(values.any()) for values in told.values())
    assert {"mse", "mse_50", "mse_950"} <= set(told)


def test_the_branch_is_controlled_by_the_mode_of_what_was_restored():
    stage, given = made(ControlStage).eval(), batch()
    degraded = degrade_blind(given.sharp, LIGHT, generator=stage.streams(given.key, salt=10)).image
    with torch.no_grad():
        expected = stage.autoencoder.encode(stage.restoration(degraded))
        assert torch.equal(stage._condition(given), expected)
    assert isinstance(stage.system, HistoDiffusion)
    assert stage.settings() == NANO.settings


def test_the_control_stage_draws_images_when_it_is_validated(monkeypatch):
    stage, given = made(ControlStage).eval(), batch(size=48)
    told = told_by(stage, given, monkeypatch)
    small, clean = reduced(given.sharp, 4.0)
    size = tuple(clean.shape[-2:])
    gain = psnr(stage.system.upscale(small, out_size=size), clean) - psnr(resized(small, size), clean)
    assert torch.allclose(told["gain_x4"], gain, atol=1e-4)
    pictures = stage.pictures(given)
    assert list(pictures) == ["bicubic", "coarse", "drawn", "clean"]
    assert len({picture.shape for picture in pictures.values()}) == 1


def test_a_u_net_may_learn_beside_its_branch():
    stage = made(ControlStage)
    assert stage.trained == ("control",)
    both = ControlStage(stage.control, stage.unet.requires_grad_(True), stage.autoencoder, stage.restoration, train_unet=True)
    assert both.trained == ("control", "unet")
    assert all(one.requires_grad for one in both.unet.parameters())
