"""Restormer and P-former: published sizes, equalities, behaviour."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pathorestore.models.pformer import PFormer, PFormerConfig, Restormer, RestormerConfig
from pathorestore.nn.restormer import MDTA, ChannelNorm


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_paper_sizes_are_the_published_ones():
    with torch.device("meta"):
        restormer = Restormer(RestormerConfig.paper())
        assert _parameters(restormer) == 26_126_644
        assert len(restormer.state_dict()) == 494
        # 1536-wide prompts; independent count of the design
        assert _parameters(PFormer(PFormerConfig.paper())) == 21_921_808
        for gate in ("mul", "add_split"):
            assert _parameters(PFormer(replace(PFormerConfig.paper(), gate=gate))) == 26_747_344


@pytest.mark.parametrize(("preset", "millions"), [("tiny", 0.848), ("base", 5.88)])
def test_own_presets_keep_their_advertised_size(preset, millions):
    with torch.device("meta"):
        assert _parameters(PFormer(getattr(PFormerConfig, preset)())) / 1e6 == pytest.approx(millions, abs=0.01)


def test_official_restormer_keys_and_shapes():
    """Names and shapes of the public checkpoints."""
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in Restormer(RestormerConfig.paper()).state_dict().items()}
    expected = {
        "patch_embed.proj.weight": (48, 3, 3, 3),
        "encoder_level1.0.norm1.body.weight": (48,),
        "encoder_level1.0.attn.temperature": (1, 1, 1),
        "latent.7.attn.temperature": (8, 1, 1),
        "latent.0.attn.qkv.weight": (1152, 384, 1, 1),
        "latent.0.attn.qkv_dwconv.weight": (1152, 1, 3, 3),
        "encoder_level1.3.ffn.project_in.weight": (254, 48, 1, 1),
        "encoder_level1.3.ffn.dwconv.weight": (254, 1, 3, 3),
        "encoder_level1.3.ffn.project_out.weight": (48, 127, 1, 1),
        "down1_2.body.0.weight": (24, 48, 3, 3),
        "down3_4.body.0.weight": (96, 192, 3, 3),
        "up4_3.body.0.weight": (768, 384, 3, 3),
        "up2_1.body.0.weight": (192, 96, 3, 3),
        "reduce_chan_level3.weight": (192, 384, 1, 1),
        "reduce_chan_level2.weight": (96, 192, 1, 1),
        "refinement.3.norm2.body.bias": (96,),
        "output.weight": (3, 96, 3, 3),
    }
    assert {key: shapes.get(key) for key in expected} == expected


def test_channel_norm_is_layer_norm_over_channels():
    norm = ChannelNorm(12).double()
    nn.init.normal_(norm.body.weight)
    nn.init.normal_(norm.body.bias)
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64)
    expected = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (12,), norm.body.weight, norm.body.bias, eps=1e-5).permute(0, 3, 1, 2)
    assert torch.allclose(norm(x), expected, atol=1e-12)


def test_mdta_equals_an_explicit_loop_over_heads():
    mdta, x = MDTA(12, heads=3).double(), torch.randn(2, 12, 6, 5, dtype=torch.float64)
    nn.init.uniform_(mdta.temperature, 0.5, 2.0)
    expected = torch.empty(2, 12, 30, dtype=torch.float64)
    q, k, v = (part.flatten(2) for part in mdta.qkv_dwconv(mdta.qkv(x)).chunk(3, dim=1))
    for image in range(2):
        for head in range(3):
            rows = slice(4 * head, 4 * head + 4)
            a, b = (nn.functional.normalize(part[image, rows], dim=-1) for part in (q, k))
            attention = (a @ b.T * mdta.temperature[head]).softmax(dim=-1)
            expected[image, rows] = attention @ v[image, rows]
    assert torch.allclose(mdta(x), mdta.project_out(expected.view(2, 12, 6, 5)), atol=1e-12)


def test_channel_attention_ignores_where_pixels_are():
    mdta = MDTA(8, heads=2).double()
    q, k = torch.randn(2, 1, 2, 4, 30, dtype=torch.float64)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mdta.attention_map(q, k), mdta.attention_map(q[..., order], k[..., order]), atol=1e-12)


@pytest.mark.parametrize("size", [(17, 31), (8, 8), (33, 40), (1, 1)])
def test_any_size_comes_back_in_its_own_size(size):
    network = PFormer(PFormerConfig.tiny())
    assert network(torch.rand(2, 3, *size), torch.randn(2, 192)).shape == (2, 3, *size)


def test_images_of_a_batch_do_not_see_each_other():
    network = PFormer(PFormerConfig.tiny()).double()
    image, prompt = torch.rand(3, 3, 16, 24, dtype=torch.float64), torch.randn(3, 192, dtype=torch.float64)
    whole = network(image, prompt)
    other_image, other_prompt = image.clone(), prompt.clone()
    other_image[2], other_prompt[2] = 0.5, 0.0
    assert torch.allclose(network(other_image, other_prompt)[:2], whole[:2], atol=1e-12)
    assert torch.allclose(network(image[[2, 0, 1]], prompt[[2, 0, 1]]), whole[[2, 0, 1]], atol=1e-12)


def test_the_prompt_changes_the_result_and_gradients_reach_every_parameter():
    network, image = PFormer(PFormerConfig.tiny()), torch.rand(1, 3, 16, 16)
    prompts = [torch.randn(1, 192, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    first, second = (network(image, prompt) for prompt in prompts)
    assert (first - second).abs().max() > 0
    first.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_router_without_normalisation_sees_the_prompts_scale():
    image, prompt = torch.rand(1, 3, 16, 16), torch.randn(1, 192)
    normed = PFormer(PFormerConfig.tiny())
    assert torch.allclose(normed(image, prompt), normed(image, 3 * prompt), atol=1e-4)
    plain = PFormer(replace(PFormerConfig.tiny(), router_norm=False))
    assert (plain(image, prompt) - plain(image, 30 * prompt)).abs().max() > 1e-4


def _networks(hint_channels):
    prompt = torch.randn(2, 192, generator=torch.Generator().manual_seed(4))
    pformer = PFormer(replace(PFormerConfig.tiny(), hint_channels=hint_channels))
    restormer = Restormer(replace(RestormerConfig.tiny(), hint_channels=hint_channels))
    return (lambda image, hints=None: pformer(image, prompt, hints)), restormer, (pformer, restormer)


def test_hints_widen_the_first_convolution_and_nothing_else():
    plain, hinted = (_networks(channels)[2][0].state_dict() for channels in (0, 5))
    assert hinted.keys() == plain.keys()
    assert [key for key in plain if plain[key].shape != hinted[key].shape] == ["patch_embed.proj.weight"]
    assert hinted["patch_embed.proj.weight"].shape == (16, 8, 3, 3)


def test_hints_are_heard_and_the_output_still_adds_the_degraded_image():
    image, hints = torch.rand(2, 3, 17, 22), torch.rand(2, 5, 17, 22)
    *callers, networks = _networks(5)
    for network, module in zip(callers, networks, strict=True):
        module.eval()
        assert (network(image, hints) - network(image, 1 - hints)).abs().max() > 1e-6
        nn.init.zeros_(module.output.weight)
        assert torch.equal(network(image, hints), image)


def test_no_hints_are_none_or_of_no_channels():
    image = torch.rand(2, 3, 16, 16)
    for network in _networks(0)[:2]:
        assert torch.equal(network(image, image[:, :0]), network(image))


@pytest.mark.parametrize(
    ("channels", "hints", "says"),
    [
        (0, torch.zeros(2, 3, 16, 16), "3 channels of hints were given to a network with hint_channels=0"),
        (3, None, "0 channels of hints were given to a network with hint_channels=3"),
        (3, torch.zeros(2, 18, 16, 16), "18 channels of hints"),
        (3, torch.zeros(2, 3, 8, 16), r"hints of \(8, 16\) px do not fit an image of \(16, 16\) px"),
    ],
)
def test_hints_that_do_not_fit_are_refused(channels, hints, says):
    for network in _networks(channels)[:2]:
        with pytest.raises(ValueError, match=says):
            network(torch.zeros(2, 3, 16, 16), hints)


def test_a_network_of_half_precision_takes_hints_of_full_precision():
    network = PFormer(replace(PFormerConfig.tiny(), hint_channels=3)).bfloat16()
    image, prompt = torch.rand(1, 3, 16, 16).bfloat16(), torch.randn(1, 192).bfloat16()
    assert network(image, prompt, torch.rand(1, 3, 16, 16)).dtype == torch.bfloat16


def _weights(network, image, prompt):
    """Expert weights of the first block."""
    seen = []
    layer = network.expert_layers()[0]
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(module.route(*args)))
    network(image, prompt)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("change", [{"route_features": False}, {"prompt_dim": 0}])
def test_each_half_of_what_the_router_sees_can_be_hidden(change):
    network = PFormer(replace(PFormerConfig.tiny(), **change))
    for layer in network.expert_layers():
        nn.init.normal_(layer.router.weight)
    image, prompt = torch.rand(2, 1, 3, 16, 16), torch.randn(2, 1, 192)
    base = _weights(network, image[0], prompt[0])
    sees_image = not torch.equal(_weights(network, image[1], prompt[0]), base)
    sees_prompt = not torch.equal(_weights(network, image[0], prompt[1]), base)
    assert (sees_image, sees_prompt) == (change != {"route_features": False}, change != {"prompt_dim": 0})
    network(image[0], prompt[0]).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"experts": 0}, "experts must be at least 1, got 0"),
        ({"gate": "max"}, "gate must be"),
        ({"moe_impl": "fast"}, "moe_impl must be"),
        ({"dim": 9, "heads": (2, 2, 4, 8)}, "2 heads do not divide"),
        ({"dim": 0}, "at least 1"),
        ({"hint_channels": -1}, "hint_channels must be at least 0, got -1"),
        ({"prompt_dim": -1}, "prompt_dim must be at least 0, got -1"),
        ({"prompt_dim": 0, "route_features": False}, "leave the routers nothing to see"),
    ],
)
def test_impossible_configurations_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(PFormerConfig.tiny(), **change)
