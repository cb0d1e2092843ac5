"""The U-Net and its parts, and P-diffusion on top of it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pathorestore.functional.noise import NoiseField
from pathorestore.models.latent import AutoencoderSpace, UnshuffleSpace
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.prompts import Prompts
from pathorestore.models.unet import UNet, UNetConfig
from pathorestore.nn.conditioning import timestep_embedding
from pathorestore.nn.swin import SwinBlock, WindowAttention, shift_mask

SMALL = UNetConfig(in_channels=6, out_channels=3, channels=16, mult=(1, 2), res_blocks=1, swin_dim=16, swin_heads=2, mlp_ratio=2, groups=4)


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_paper_size_is_the_published_one():
    with torch.device("meta"):
        unet = UNet(UNetConfig.paper())
    assert _parameters(unet) == 118_593_583
    names = set(unet.state_dict())
    for block in (1, 4, 7, 10):
        assert f"input_blocks.{block}.1.blocks.1.attn.relative_position_bias_table" in names
    for block in (3, 6, 9):
        assert f"input_blocks.{block}.0.op.weight" in names
    for block in (0, 3, 6, 9):
        assert f"output_blocks.{block}.1.patch_embed.proj.weight" in names
    for block in (2, 5, 8):
        assert f"output_blocks.{block}.1.conv.weight" in names
    assert {"time_embed.0.weight", "time_embed.2.bias", "out.0.weight", "out.2.weight", "middle_block.1.patch_unembed.proj.bias"} <= names
    assert {"input_blocks.4.0.skip_connection.weight", "middle_block.0.in_layers.2.weight", "middle_block.0.out_layers.3.bias"} <= names
    assert unet.state_dict()["input_blocks.1.1.blocks.0.attn.relative_position_bias_table"].shape == (225, 6)


@pytest.mark.parametrize(("preset", "millions"), [("tiny", 1.452), ("base", 23.15)])
def test_own_presets_keep_their_advertised_size(preset, millions):
    with torch.device("meta"):
        assert _parameters(PDiffusion(getattr(PDiffusionConfig, preset)())) / 1e6 == pytest.approx(millions, abs=0.01)


def test_time_embedding_is_cosines_then_sines():
    embedding = timestep_embedding(torch.tensor([0, 3]), 160)
    assert torch.equal(embedding[0], torch.cat([torch.ones(80), torch.zeros(80)]))
    assert float(embedding[1, 80]) == pytest.approx(float(torch.sin(torch.tensor(3.0))), rel=1e-6)
    assert float(embedding[1, 1]) == pytest.approx(float(torch.cos(3 * torch.tensor(10000.0) ** (-1 / 80))), rel=1e-5)


def test_window_attention_equals_an_explicit_loop():
    attention, tokens = WindowAttention(8, window=4, heads=2).double(), torch.randn(3, 16, 8, dtype=torch.float64)
    q, k, v = attention.qkv(tokens).reshape(3, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = torch.zeros(3, 2, 16, 4, dtype=torch.float64)
    for first in range(16):
        scores = torch.zeros(3, 2, 16, dtype=torch.float64)
        for second in range(16):
            dy, dx = first // 4 - second // 4 + 3, first % 4 - second % 4 + 3
            bias = attention.relative_position_bias_table[dy * 7 + dx]
            scores[..., second] = (q[:, :, first] * k[:, :, second]).sum(-1) / 2 + bias
        expected[:, :, first] = (scores.softmax(-1)[..., None] * v).sum(2)
    merged = attention.proj(expected.permute(0, 2, 1, 3).reshape(3, 16, 8))
    assert torch.allclose(attention(tokens, None), merged, atol=1e-12)


def test_the_correct_mask_blocks_all_that_were_not_neighbours():
    """After the roll, a position's region is told by whether its source row and column wrapped around."""
    side, window, shift = 16, 8, 4
    mask = shift_mask(side, side, window, shift, "correct")
    rows = (torch.arange(side) + shift) % side
    wrapped = (rows < shift).long()
    for number in range(4):
        top, left = number // 2 * window, number % 2 * window
        tags = torch.tensor([[int(wrapped[top + y]), int(wrapped[left + x])] for y in range(window) for x in range(window)])
        same = (tags[:, None] == tags[None]).all(-1)
        assert torch.equal(mask[number] == 0, same)


def test_the_resshift_mask_is_the_correct_one_with_positions_transposed():
    correct, published = (shift_mask(32, 32, 8, 4, kind) for kind in ("correct", "resshift"))
    order = torch.arange(64).view(8, 8).T.flatten()
    assert torch.equal(published, correct[:, order][:, :, order])
    assert not torch.equal(published, correct)


def test_shifting_is_skipped_where_one_window_covers_the_map():
    torch.manual_seed(0)
    shifted = SwinBlock(8, window=8, heads=2, mlp_ratio=2, shift=4, groups=4, mask="correct")
    plain = SwinBlock(8, window=8, heads=2, mlp_ratio=2, shift=0, groups=4, mask="correct")
    plain.load_state_dict(shifted.state_dict())
    x = torch.randn(1, 8, 8, 8)
    assert torch.equal(shifted(x), plain(x))


def test_a_wrong_working_size_is_refused_with_the_multiple():
    with pytest.raises(ValueError, match="must be multiples of 16"):
        UNet(SMALL)(torch.zeros(1, 6, 24, 16), torch.tensor([0]))


def test_wrong_channel_counts_are_refused():
    with pytest.raises(ValueError, match="in_channels must be 96, got 48"):
        PDiffusionConfig(unet=replace(UNetConfig.tiny(), in_channels=48))
    with pytest.raises(ValueError, match="groups must divide"):
        UNetConfig(channels=33)
    with pytest.raises(ValueError, match="factor 1"):
        replace(PDiffusionConfig.tiny(), space="pixel")


def _network(**change):
    torch.manual_seed(1)
    config = PDiffusionConfig(unet=SMALL, space="pixel", factor=1, prompt_dim=12, context_dim=16, edge_channels=5, head_dim=8, **change)
    network = PDiffusion(config).double()
    for parameter in network.unet.parameters():  # the residual blocks start at zero; give them something to do
        nn.init.normal_(parameter, std=0.05)
    return network


def _inputs(batch=2):
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    unseen = draw(batch, 0, 32, 32), draw(batch, 7), draw(batch, 12)
    prompts = Prompts(draw(batch, 12), draw(batch, 5, 32, 32), draw(batch), draw(batch), *unseen)
    return draw(batch, 3, 32, 32), draw(batch, 3, 32, 32), torch.tensor([1, 3] * (batch // 2)), prompts


def test_untrained_injections_leave_resshifts_network_unchanged_bit_for_bit():
    network = _network()
    state, coarse, t, prompts = _inputs()
    plain = network.unet(torch.cat([state, coarse], dim=1), t - 1)
    assert torch.equal(network(state, t, network.condition(coarse, coarse, prompts)), plain)


def test_a_residual_prediction_adds_the_coarse_state():
    network, residual = _network(), _network(predict="residual")
    state, coarse, t, prompts = _inputs()
    clean = network(state, t, network.condition(coarse, coarse, prompts))
    assert torch.allclose(residual(state, t, residual.condition(coarse, coarse, prompts)), clean + coarse, atol=1e-12)


def _trained(network):
    for module in (network.fuse_state, network.fuse_edge, network.cross_down.attention.out, network.cross_up.attention.out):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def test_the_split_fusion_is_one_convolution_of_the_concatenation():
    network = _trained(_network())
    state, coarse, _, prompts = _inputs()
    stem = network.unet.input_blocks[0][0](torch.cat([state, coarse], dim=1))
    joint = nn.Conv2d(16 + 5, 16, 1).double()
    with torch.no_grad():
        joint.weight.copy_(torch.cat([network.fuse_state.weight, network.fuse_edge.weight], dim=1))
        joint.bias.copy_(network.fuse_state.bias)
    split = network.fuse_state(stem) + network.condition(coarse, coarse, prompts).edge
    assert torch.allclose(split, joint(torch.cat([stem, prompts.edge], dim=1)), atol=1e-12)


@pytest.mark.parametrize("part", ["pathology", "edge"])
def test_each_prompt_changes_the_prediction_once_trained(part):
    network = _trained(_network())
    state, coarse, t, prompts = _inputs()
    other = prompts._replace(**{part: getattr(prompts, part) + 1})
    first, second = (network(state, t, network.condition(coarse, coarse, p)) for p in (prompts, other))
    assert (first - second).abs().max() > 1e-6


def test_one_context_token_adds_the_same_everywhere_and_eight_do_not():
    """Softmax over one key is one: the increment cannot depend on the query."""
    for tokens, null, constant in ((1, False, True), (8, True, False)):
        network = _trained(_network(context_tokens=tokens, null_token=null))
        h = torch.randn(1, 32, 8, 8, dtype=torch.float64)
        context = network.context(torch.randn(1, 12, dtype=torch.float64))
        assert context.shape[1] == tokens + int(null)
        increment = network.cross_down(h, network.cross_down.keys_values(context)) - h
        spread = (increment - increment.mean(dim=(2, 3), keepdim=True)).abs().max()
        assert (spread < 1e-12) == constant


def test_gradients_reach_every_parameter_once_injections_are_open():
    network = _trained(_network())
    state, coarse, t, prompts = _inputs()
    network(state, t, network.condition(coarse, coarse, prompts)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_unshuffling_loses_nothing(factor):
    space, image = UnshuffleSpace(factor), torch.randint(0, 256, (2, 3, 16, 24)) / 255
    state = space.encode(image)
    assert state.shape == (2, space.channels, 16 // factor, 24 // factor)
    assert state.abs().max() <= 1
    assert torch.allclose(space.decode(state), image, atol=1e-7)
    assert torch.equal(torch.nn.functional.pixel_shuffle(torch.nn.functional.pixel_unshuffle(image, factor), factor), image)


def test_unshuffled_noise_is_that_of_the_pixels_wherever_the_tile_starts():
    space, like = UnshuffleSpace(4), torch.zeros(1, 48, 4, 4)
    near = space.decode(space.noise(NoiseField(3, ((0, 0),)), 1, like))
    far = space.decode(space.noise(NoiseField(3, ((3, 5),)), 1, like))
    assert torch.equal(near[..., 3:, 5:], far[..., :-3, :-5])


def test_an_autoencoder_space_decodes_what_it_encodes_and_shares_noise_on_its_grid():
    class Halver(nn.Module):
        def encode(self, x):
            return nn.functional.pixel_unshuffle(x, 2)

        def decode(self, z):
            return nn.functional.pixel_shuffle(z, 2)

    space, image = AutoencoderSpace(Halver(), channels=12, factor=2), torch.rand(1, 3, 8, 8)
    assert torch.allclose(space.decode(space.encode(image)), image, atol=1e-6)
    near, far = (space.noise(NoiseField(0, ((y, 0),)), 1, torch.zeros(1, 12, 4, 4)) for y in (0, 2))
    assert torch.equal(near[..., 1:, :], far[..., :-1, :])


def test_a_latent_model_asks_for_its_autoencoder():
    network = PDiffusion(PDiffusionConfig(unet=SMALL, space="latent", prompt_dim=12))
    with pytest.raises(ValueError, match="autoencoder"):
        network.own_space()
