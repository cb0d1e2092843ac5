"""The mixture of depthwise experts and its folded form: definition, identities, gradients."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.nn.experts import ExpertFeedForward, mix_folded, mix_naive, mix_taps


def _operands(batch, channels, height, width, experts, dtype):
    generator = torch.Generator().manual_seed(batch * 100 + height)
    features = torch.randn(batch, channels, height, width, generator=generator, dtype=dtype)
    kernels = torch.randn(experts, channels, 1, 3, 3, generator=generator, dtype=dtype)
    weights = torch.randn(batch, experts, generator=generator, dtype=dtype).softmax(dim=1)
    return features, kernels, weights


@given(batch=st.sampled_from([1, 2, 5]), h=st.integers(1, 13), w=st.integers(1, 13), experts=st.integers(1, 4))
def test_folded_and_taps_equal_one_convolution_per_expert(batch, h, w, experts):
    operands = _operands(batch, 6, h, w, experts, torch.float64)
    expected = mix_naive(*operands)
    assert (mix_folded(*operands) - expected).abs().max() < 1e-12
    assert (mix_taps(*operands) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("form", [mix_folded, mix_taps])
def test_gradients_of_the_fast_forms_equal_the_naive_ones(form, batch):
    def gradients(mix):
        operands = [value.requires_grad_() for value in _operands(batch, 4, 7, 9, 3, torch.float64)]
        mix(*operands).square().sum().backward()
        return [value.grad for value in operands]

    for fast, slow in zip(gradients(form), gradients(mix_naive), strict=True):
        assert torch.allclose(fast, slow, atol=1e-10, rtol=1e-10)


def test_float32_rounding_of_the_folded_form_is_small():
    operands = _operands(4, 32, 33, 31, 3, torch.float32)
    assert (mix_folded(*operands) - mix_naive(*operands)).abs().max() < 1e-5


def _layer(gate="add", experts=3):
    torch.manual_seed(3)
    return ExpertFeedForward(8, 16, experts=experts, prompt_dim=5, gate=gate).double()


@pytest.mark.parametrize("gate", ["add", "mul", "add_split"])
def test_routing_pools_before_the_projection_as_the_equation_pools_after(gate):
    layer, x, prompt = _layer(gate), torch.randn(2, 8, 6, 7, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    features = layer.project_in(x)[:, :16]
    literal = layer.router(torch.cat([features.mean(dim=(2, 3)), prompt], dim=1)).softmax(dim=1)
    assert torch.allclose(layer.route(x, layer.prompt_logits(prompt)), literal, atol=1e-12)


def test_the_add_gate_is_equation_3_literally():
    layer, x, prompt = _layer("add"), torch.randn(2, 8, 6, 7, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    features = layer.project_in(x)
    weights = layer.router(torch.cat([features.mean(dim=(2, 3)), prompt], dim=1)).softmax(dim=1)
    mixed = mix_naive(features, layer.experts, weights)
    expected = layer.project_out(layer.main(features) + torch.nn.functional.gelu(mixed))
    assert torch.allclose(layer(x, layer.prompt_logits(prompt)), expected, atol=1e-12)


@pytest.mark.parametrize("gate", ["add", "mul", "add_split"])
def test_all_implementations_of_a_layer_agree(gate):
    layer, x, prompt = _layer(gate), torch.randn(3, 8, 9, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    outputs = []
    for impl in ("naive", "folded", "taps"):
        layer.moe_impl = impl
        outputs.append(layer(x, layer.prompt_logits(prompt)))
    assert torch.allclose(outputs[1], outputs[0], atol=1e-12)
    assert torch.allclose(outputs[2], outputs[0], atol=1e-12)


def test_a_router_without_features_depends_on_the_prompt_alone_and_one_without_prompt_on_them():
    x, prompt = torch.randn(2, 8, 6, 7), torch.randn(2, 5)
    blind = ExpertFeedForward(8, 16, experts=3, prompt_dim=5, route_features=False)
    assert blind.router.weight.shape == (3, 5)
    assert torch.allclose(blind.route(x, blind.prompt_logits(prompt)), blind.router(prompt).softmax(dim=1))
    alone = ExpertFeedForward(8, 16, experts=3, prompt_dim=0)
    pooled = alone.project_in(x).mean(dim=(2, 3))
    assert torch.allclose(alone.route(x, alone.prompt_logits(prompt[:, :0])), alone.router(pooled).softmax(dim=1), atol=1e-6)
    with pytest.raises(ValueError, match="a router needs something to see"):
        ExpertFeedForward(8, 16, experts=3, prompt_dim=0, route_features=False)


def test_one_expert_makes_the_router_irrelevant():
    layer, x = _layer("mul", experts=1), torch.randn(1, 8, 6, 6, dtype=torch.float64)
    first, second = (layer(x, layer.prompt_logits(torch.randn(1, 5, dtype=torch.float64))) for _ in range(2))
    assert torch.equal(first, second)


def test_permuting_experts_and_router_rows_together_changes_nothing():
    layer, order = _layer(), torch.tensor([2, 0, 1])
    permuted = copy.deepcopy(layer)
    with torch.no_grad():
        permuted.experts.copy_(layer.experts[order])
        permuted.router.weight.copy_(layer.router.weight[order])
        permuted.router.bias.copy_(layer.router.bias[order])
    x, prompt = torch.randn(2, 8, 6, 7, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    assert torch.allclose(layer(x, layer.prompt_logits(prompt)), permuted(x, permuted.prompt_logits(prompt)), atol=1e-12)


def test_experts_start_apart_so_that_the_router_has_something_to_choose():
    layer = _layer()
    assert (layer.experts[0] - layer.experts[1]).abs().mean() > 1e-3
