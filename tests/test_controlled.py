"""The networks of controlled latent diffusion: published sizes, the control branch from its definition, what is saved."""

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pathorestore._torchvision import ensure_torchvision
from pathorestore.functional.noise import NoiseField
from pathorestore.hub import ConfigError
from pathorestore.models.latent import AutoencoderSpace

ensure_torchvision()
diffusers = pytest.importorskip("diffusers", reason="the extra `diffusion`")

from pathorestore.models.autoencoder import AutoencoderConfig, LatentAutoencoder  # noqa: E402
from pathorestore.models.controlled import (  # noqa: E402
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    LatentUNet,
    LatentUNetConfig,
)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def awake(branch):
    """The branch with all that was zero drawn anew."""
    generator = torch.Generator().manual_seed(3)
    for parameter in branch.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return branch


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return LatentUNet(LatentUNetConfig.nano()).eval()


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(1)
    return LatentAutoencoder(AutoencoderConfig.nano()).eval()


@pytest.fixture
def batch(generator):
    """States, steps and conditions."""
    state, condition = (torch.randn(2, 4, 8, 6, generator=generator) for _ in range(2))
    return state, torch.tensor([17, 804]), condition


# 865.9 M and 83.7 M are Stable Diffusion 2.1-base's, 363.2 M what DiffBIR trains of its control branch
@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: LatentUNet(LatentUNetConfig.paper()), 865_910_724),
        (lambda: ControlNet(ControlNetConfig.paper()), 363_153_280),
        (lambda: LatentAutoencoder(AutoencoderConfig.paper()), 83_653_863),
        (lambda: LatentUNet(LatentUNetConfig.base()), 32_460_552),
        (lambda: ControlNet(ControlNetConfig.base()), 14_242_240),
        (lambda: LatentAutoencoder(AutoencoderConfig.base()), 8_533_739),
        (lambda: LatentUNet(LatentUNetConfig.tiny()), 2_147_400),
        (lambda: ControlNet(ControlNetConfig.tiny()), 921_856),
        (lambda: LatentAutoencoder(AutoencoderConfig.tiny()), 1_631_019),
    ],
)
def test_presets_have_their_advertised_size(make, count):
    with torch.device("meta"):
        assert parameters(make()) == count


def test_the_paper_sizes_are_the_defaults_of_stable_diffusion():
    """unet/config.json and vae/config.json of Stable Diffusion 2.1-base, as far as they tell of sizes."""
    with torch.device("meta"):
        sizes = LatentUNet(LatentUNetConfig.paper()).model.config
        latents = LatentAutoencoder(AutoencoderConfig.paper()).model.config
    assert sizes.down_block_types == ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    assert sizes.up_block_types == ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    assert sizes.attention_head_dim == (5, 10, 20, 20)
    assert (sizes.cross_attention_dim, sizes.use_linear_projection, sizes.layers_per_block) == (1024, True, 2)
    assert (latents.scaling_factor, latents.block_out_channels, latents.latent_channels) == (0.18215, (128, 256, 512, 512), 4)
    assert (LatentUNetConfig.paper().multiple, AutoencoderConfig.paper().factor) == (8, 8)


@torch.no_grad()
def test_an_untrained_branch_leaves_the_unet_as_it_is_exactly(unet, batch):
    state, t, condition = batch
    controlled = ControlledUNet(unet, ControlNet.from_unet(unet)).eval()
    assert torch.equal(controlled(state, t, condition), unet(state, t))
    awake(controlled.control)
    assert not torch.allclose(controlled(state, t, condition), unet(state, t), atol=1e-2)


@torch.no_grad()
def test_the_condition_enters_by_a_convolution_of_the_concatenation(unet, batch):
    state, t, condition = batch
    branch = awake(ControlNet.from_unet(unet).eval())
    state_conv, condition_conv = branch.model.conv_in, branch.model.controlnet_cond_embedding
    assert condition_conv.bias is None
    entered = []
    branch.model.down_blocks[0].register_forward_pre_hook(
        lambda _module, args, kwargs: entered.append(kwargs["hidden_states"]), with_kwargs=True
    )
    branch(state, t, condition, unet.context(2))
    weight = torch.cat([state_conv.weight, condition_conv.weight], dim=1)
    expected = F.conv2d(torch.cat([state, condition], dim=1), weight, state_conv.bias, padding=1)
    assert torch.allclose(entered[0], expected, atol=1e-5)


def test_a_branch_starts_with_the_encoder_and_middle_of_its_unet(unet):
    branch = ControlNet.from_unet(unet).model.state_dict()
    expected = diffusers.ControlNetModel.from_unet(unet.model, conditioning_channels=4).state_dict()
    shared = [name for name in unet.model.state_dict() if name in expected]
    assert {name.partition(".")[0] for name in shared} == {"conv_in", "time_embedding", "down_blocks", "mid_block"}
    for name in shared:
        assert torch.equal(branch[name], expected[name])
        assert torch.equal(branch[name], unet.model.state_dict()[name])
    own = [name for name in branch if name not in shared]
    assert {name.partition(".")[0] for name in own} == {"controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding"}
    assert not any(branch[name].any() for name in own)


@torch.no_grad()
def test_the_branch_sees_the_condition_the_step_and_the_context(unet, batch):
    state, t, condition = batch
    model = ControlledUNet(unet, awake(ControlNet.from_unet(unet))).eval()
    before = model(state, t, condition)
    # the U-Net itself does not see the condition
    assert not torch.allclose(model(state, t, condition.flip(-1)), before, atol=1e-3)
    assert not torch.allclose(model(state, t.flip(0), condition), before, atol=1e-3)
    other = torch.randn(2, 5, 16)
    assert not torch.allclose(model(state, t, condition, context=other), before, atol=1e-4)
    assert torch.equal(model(state, t, condition, context=unet.context(2)), before)
    branch = model.control
    assert torch.equal(model(state, t, condition, context=other), unet(state, t, context=other, control=branch(state, t, condition, other)))
    assert not torch.allclose(branch(state, t, condition, other).middle, branch(state, t, condition, unet.context(2)).middle, atol=1e-4)


def test_gradients_reach_all_of_the_branch_and_none_of_a_frozen_unet(unet, batch):
    state, t, condition = batch
    frozen = LatentUNet(unet.config).requires_grad_(False)
    model = ControlledUNet(frozen, awake(ControlNet.from_unet(frozen)))
    (model(state, t, condition) - torch.randn(2, 4, 8, 6)).square().mean().backward()
    assert [name for name, parameter in model.control.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad is None for parameter in frozen.parameters())


@torch.no_grad()
@pytest.mark.parametrize("condition_channels", [4, 8])
def test_saved_networks_predict_the_same(unet, batch, tmp_path, condition_channels):
    state, t, condition = batch
    condition = condition.repeat(1, condition_channels // 4, 1, 1)
    branch = awake(ControlNet.from_unet(unet, condition_channels=condition_channels).eval())
    unet.save_pretrained(tmp_path / "unet")
    branch.save_pretrained(tmp_path / "control")
    again = ControlledUNet(LatentUNet.from_pretrained(tmp_path / "unet"), ControlNet.from_pretrained(tmp_path / "control"))
    assert again.control.config == branch.config
    assert torch.equal(again(state, t, condition), ControlledUNet(unet, branch)(state, t, condition))
    assert torch.equal(again.unet.null_context, unet.null_context)
    with pytest.raises(ConfigError, match="describes a ControlNet"):
        LatentUNet.from_pretrained(tmp_path / "control")


@torch.no_grad()
def test_a_saved_autoencoder_and_its_scaling_come_back(autoencoder, tmp_path, generator):
    image = torch.rand(1, 3, 16, 24, generator=generator)
    mine = LatentAutoencoder(replace(autoencoder.config, scaling=0.7)).eval()
    mine.save_pretrained(tmp_path)
    again = LatentAutoencoder.from_pretrained(tmp_path)
    assert again.config.scaling == 0.7
    assert torch.equal(again.encode(image), mine.encode(image))
    assert torch.equal(again.decode(again.encode(image)), mine.decode(mine.encode(image)))


@torch.no_grad()
def test_latents_are_scaled_posteriors_of_centred_images(autoencoder, generator):
    image, noise = torch.rand(2, 3, 16, 24, generator=generator), torch.randn(2, 4, 4, 6, generator=generator)
    mine = LatentAutoencoder(replace(autoencoder.config, scaling=0.5)).eval()
    mine.load_state_dict(autoencoder.state_dict())
    theirs = autoencoder.model.encode(2 * image - 1).latent_dist
    assert torch.allclose(mine.encode(image), 0.5 * theirs.mode())
    assert torch.allclose(mine.encode(image, noise=noise), 0.5 * (theirs.mean + theirs.std * noise), atol=1e-6)
    assert torch.allclose(mine.posterior(image).log_variance, theirs.logvar)
    latent = torch.randn(2, 4, 4, 6, generator=generator)
    assert torch.allclose(mine.decode(latent), (autoencoder.model.decode(2 * latent).sample + 1) / 2)


@torch.no_grad()
def test_calibration_gives_latents_of_unit_variance(autoencoder, generator):
    mine = LatentAutoencoder(autoencoder.config).eval()
    images = [torch.rand(count, 3, 16, 16, generator=generator) for count in (3, 2)]
    scaling = mine.calibrate(images)
    assert mine.config.scaling == scaling
    latents = torch.cat([mine.encode(batch) for batch in images])
    assert float(latents.std(correction=0)) == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="got 0 values"):
        mine.calibrate([])


def test_noise_of_latents_is_that_of_any_latent_space(autoencoder):
    field, like = NoiseField(4, ((8, 16),)), torch.zeros(1, 4, 3, 5)
    noise = autoencoder.noise(field, 7, like)
    assert torch.equal(noise, AutoencoderSpace(nn.Identity(), channels=4, factor=4).noise(field, 7, like))
    whole = autoencoder.noise(NoiseField(4), 7, torch.zeros(1, 4, 8, 12))
    assert torch.equal(noise, whole[..., 2:5, 4:9])


def test_parts_that_do_not_fit_are_refused(unet):
    other = replace(ControlNetConfig.nano(), layers=2)
    with pytest.raises(ValueError, match="another size than the U-Net: layers; make it by ControlNet"):
        ControlledUNet(unet, ControlNet(other))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": (2,)}, "one entry for each level"),
        ({"layers": 0}, "sizes of at least 1"),
        ({"heads": (3, 2)}, "must divide the width 16"),
        ({"groups": 5}, "must divide the width 16"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(LatentUNetConfig.nano(), **change)


@pytest.mark.parametrize(
    ("change", "says"), [({"widths": ()}, "at least 1"), ({"scaling": 0.0}, "positive"), ({"groups": 3}, "must divide")]
)
def test_sizes_of_autoencoders_that_cannot_be_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(AutoencoderConfig.nano(), **change)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "pathorestore\[diffusion\]"'):
        LatentUNet(LatentUNetConfig.nano())
