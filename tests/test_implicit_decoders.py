"""LIIF and LTE against their formulas, and in the place of ISTE's decoder."""

import pytest
import torch
import torch.nn.functional as F

from pathorestore.models.implicit_decoders import ImplicitDecoderConfig, LIIFDecoder, LTEDecoder
from pathorestore.models.iste import Search, rendering_footprint
from pathorestore.nn.implicit import Lattice, bicubic, corners, grid

SMALL = ImplicitDecoderConfig(features=8, hidden=(10, 9), texture=12)
BOTH = pytest.mark.parametrize("kind", [LIIFDecoder, LTEDecoder])


def made(kind, config=SMALL):
    torch.manual_seed(0)
    return kind(config).eval()


def field(height, width, features=8, images=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, features, height, width, generator=generator), torch.rand(images, 3, height, width, generator=generator)


def by_formula(network, features, places, size, speak):
    """Sum over the corners of area-weighed MLP outputs, each cell looked up by hand."""
    total = torch.zeros(len(places), 3)
    height, width = features.shape[-2:]
    for corner in corners(places, (height, width)):
        for query, cell in enumerate(corner.cell.tolist()):
            inputs = speak(cell // width, cell % width, corner.relative[query], size)
            total[query] += corner.weight[query] * network.mlp(inputs)
    return (total + 1) / 2


@torch.no_grad()
def test_liif_is_an_mlp_over_nine_features_place_and_pixel_size():
    network, (features, image) = made(LIIFDecoder), field(4, 5)
    places, footprint = grid(6, 7), torch.tensor([4 / 6, 5 / 7], dtype=torch.float64)
    padded = F.pad(features, (1, 1, 1, 1))[0]

    def speak(y, x, relative, size):
        return torch.cat([padded[:, y : y + 3, x : x + 3].reshape(-1), relative, size])

    expected = by_formula(network, features, places, (2 * footprint).float(), speak)
    assert torch.allclose(network(features, image, places[None], footprint[None])[0], expected, atol=1e-5)


@torch.no_grad()
def test_lte_is_an_mlp_over_amplitudes_of_waves():
    network, (features, image) = made(LTEDecoder), field(4, 5)
    places, footprint = grid(6, 7), torch.tensor([4 / 6, 5 / 7], dtype=torch.float64)
    amplitude, frequency = network.amplitude(features)[0], network.frequency(features)[0].view(2, 6, 4, 5)

    def speak(y, x, relative, size):
        phase = network.phase.weight @ size
        angle = torch.pi * (frequency[0, :, y, x] * relative[0] + frequency[1, :, y, x] * relative[1] + phase)
        return amplitude[:, y, x] * torch.cat([angle.cos(), angle.sin()])

    expected = by_formula(network, features, places, (2 * footprint).float(), speak)
    assert torch.allclose(network(features, image, places[None], footprint[None])[0], expected, atol=1e-5)


@BOTH
def test_rendering_is_decoding_all_pixels_whatever_the_chunk(kind):
    network, (features, image) = made(kind), field(6, 7, images=2)
    footprint = rendering_footprint((6, 7), (16, 19))
    whole, parts = (
        network.render(features, image, Lattice.of((16, 19)), footprint, search=Search(query_chunk=size)) for size in (10**6, 100)
    )
    sampled = network(features, image, grid(16, 19).expand(2, -1, -1), footprint.expand(2, -1)).transpose(1, 2).reshape(2, 3, 16, 19)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert torch.allclose(whole, sampled, atol=1e-5)


@BOTH
def test_with_the_skip_it_begins_as_bicubic_interpolation(kind):
    network, (features, image) = made(kind, ImplicitDecoderConfig.tiny()), field(6, 7, features=32)
    drawn = network.render(features, image, Lattice.of((17, 20)), rendering_footprint((6, 7), (17, 20)))
    assert torch.allclose(drawn[0].flatten(1).T, bicubic(image, grid(17, 20)), atol=1e-6)


@BOTH
def test_gradients_reach_every_parameter_and_saved_decoders_decode_the_same(kind, tmp_path):
    network, (features, image) = made(kind), field(5, 6)
    places = torch.rand(1, 40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    footprint = torch.full((1, 2), 0.4, dtype=torch.float64)
    drawn = network(features, image, places, footprint)
    drawn.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    network.save_pretrained(tmp_path)
    assert torch.equal(kind.from_pretrained(tmp_path)(features, image, places, footprint), drawn)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="texture even"):
        ImplicitDecoderConfig(texture=7)
