"""The local feature interactor against its definition, pixel by pixel."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.nn.local_interaction import LocalFeatureInteractor


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return LocalFeatureInteractor(8, heads=2).eval()


def by_definition(layer, features):
    """softmax(q k / root d) v over self, window mean and eight neighbours, one pixel and head after the other."""

    def apply(projection, vector):
        return projection(vector.view(1, -1, 1, 1)).flatten()

    padded = F.pad(features, (1, 1, 1, 1), mode="reflect")
    out = torch.empty_like(features)
    for image in range(len(features)):
        for y in range(features.shape[2]):
            for x in range(features.shape[3]):
                here = features[image, :, y, x]
                window = padded[image, :, y : y + 3, x : x + 3].flatten(1)
                others = [window.mean(dim=1), *(window[:, place] for place in range(9) if place != 4)]
                pairs = torch.stack([apply(layer.own, here), *(apply(layer.around, other) for other in others)])
                keys, values = pairs.view(10, 2, layer.heads, -1).unbind(dim=1)
                query = apply(layer.query, here).view(layer.heads, -1)
                scores = torch.einsum("hd,thd->ht", query, keys) / math.sqrt(query.shape[1])
                mixed = torch.einsum("ht,thd->hd", scores.softmax(dim=1), values).flatten()
                out[image, :, y, x] = apply(layer.out, mixed)
    return out


@torch.no_grad()
def test_it_is_attention_to_ten_tokens(layer, generator):
    features = torch.randn(2, 8, 4, 5, generator=generator)
    assert torch.allclose(layer(features), by_definition(layer, features), atol=1e-5)


@given(height=st.integers(1, 6), width=st.integers(1, 6))
@torch.no_grad()
def test_any_size_is_kept(height, width):
    assert LocalFeatureInteractor(4, heads=1)(torch.randn(1, 4, height, width)).shape == (1, 4, height, width)


@torch.no_grad()
def test_what_is_farther_than_a_pixel_away_has_no_say(layer, generator):
    features = torch.randn(1, 8, 7, 7, generator=generator)
    changed = features.clone()
    changed[..., 0, 0] += 1
    moved = (layer(features) - layer(changed)).abs().amax(dim=1)[0] > 1e-6
    assert moved[:2, :2].all()
    assert not moved[2:].any()
    assert not moved[:, 2:].any()


@torch.no_grad()
def test_images_of_a_batch_do_not_mix_and_neither_do_shifted_places(layer, generator):
    features = torch.randn(2, 8, 6, 6, generator=generator)
    assert torch.allclose(layer(features)[1:], layer(features[1:]), atol=1e-6)
    rolled = layer(features.roll((1, 2), dims=(2, 3))).roll((-1, -2), dims=(2, 3))
    assert torch.allclose(rolled[..., 2:-2, 3:-3], layer(features)[..., 2:-2, 3:-3], atol=1e-6)


def test_neighbours_have_gradients(layer, generator):
    features = torch.randn(1, 8, 5, 5, generator=generator, requires_grad=True)
    layer(features)[0, :, 2, 2].sum().backward()
    reached = features.grad.abs().amax(dim=1)[0] > 0
    assert reached[1:4, 1:4].all()
    assert reached.sum() == 9
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        LocalFeatureInteractor(8, heads=3)
