"""The texture decoder: what it is made of, and that no way of computing it changes what it gives."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.models.iste import Search, TextureDecoder, TextureDecoderConfig, rendering_footprint
from pathorestore.nn.implicit import Lattice, Skip, bicubic, corners, gather, grid

SMALL = TextureDecoderConfig(features=8, texture=12, hidden=(10,), heads=2)


def decoder(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return TextureDecoder(config).eval()


def field(height, width, features=8, seed=0, images=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, features, height, width, generator=generator), torch.rand(images, 3, height, width, generator=generator)


def render(network, features, image, size, **options):
    """The whole image at another size."""
    return network.render(features, image, Lattice.of(size), rendering_footprint(image.shape[-2:], size), **options)


def test_the_paper_size_has_the_papers_parameters():
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in TextureDecoder(TextureDecoderConfig.paper()).parameters())
    assert count == pytest.approx(1.14e6, abs=0.01e6)  # 12.75 M of the whole less 11.60 M of the encoder, both rounded


@given(height=st.integers(2, 7), width=st.integers(2, 7), scale=st.floats(1, 5))
def test_any_size_is_rendered(height, width, scale):
    features, image = field(height, width)
    size = round(height * scale), round(width * scale)
    assert render(decoder(), features, image, size).shape == (1, 3, *size)


@pytest.mark.parametrize("chunk", [1000, 7777, 10**9])
def test_how_many_points_are_decoded_at_a_time_changes_nothing(chunk):
    features, image = field(12, 10)
    whole, parts = (render(decoder(), features, image, (101, 77), search=Search(query_chunk=size)) for size in (10**9, chunk))
    assert torch.allclose(whole, parts, atol=1e-6)


@pytest.mark.parametrize("chunk", [300, 10**9])
def test_how_many_textures_are_compared_at_a_time_changes_no_bit(chunk):
    features, image = field(9, 11)
    whole, parts = (render(decoder(), features, image, (40, 52), search=Search(key_chunk=size)) for size in (8192, chunk))
    assert torch.equal(whole, parts)


def test_rendering_is_decoding_all_pixels_as_samples():
    features, image = field(6, 7, images=2)
    size = (17, 19)
    places = grid(*size).expand(2, -1, -1)
    footprint = rendering_footprint((6, 7), size).expand(2, -1)
    sampled = decoder()(features, image, places, footprint).transpose(1, 2).reshape(2, 3, *size)
    assert torch.allclose(render(decoder(), features, image, size), sampled, atol=1e-5)


def test_the_formula_is_that_of_the_paper():
    network, (features, image) = decoder(), field(4, 5)
    places, footprint = grid(9, 13), torch.tensor([[4 / 9, 5 / 13]], dtype=torch.float64)
    maps = network.maps(features)
    total = torch.zeros(117, 3)
    for corner in corners(places, (4, 5)):
        query, amplitude, down, right = (gather(one, corner.cell)[0] for one in maps)
        phase = 2 * torch.pi * torch.sigmoid(network.phase.weight @ (2 * footprint[0]).float())
        texture = amplitude * torch.sin(down * corner.relative[:, 0, None] + right * corner.relative[:, 1, None] + phase)
        cosine = F.normalize(query, dim=1) @ F.normalize(texture, dim=1).T
        score, index = cosine.max(dim=1)
        linear = network.fusion.fuse[0].weight
        fused = query + (torch.cat([query, texture[index]], dim=1) @ linear.T) * score[:, None]
        inputs = torch.cat([fused, corner.relative, (2 * footprint).float().expand(117, 2)], dim=1)
        total += corner.weight[:, None] * (network.pixel(inputs) + network.texture(texture))
    assert torch.allclose(network(features, image, places[None], footprint)[0], (total + 1) / 2, atol=1e-5)


def test_with_a_skip_it_begins_as_that_interpolation():
    features, image = field(10, 12, features=32)
    begins = {skip: render(decoder(replace(TextureDecoderConfig.tiny(), skip=skip)), features, image, (27, 33)) for skip in get_args(Skip)}
    assert torch.allclose(begins["bilinear"], F.interpolate(image, size=(27, 33), mode="bilinear", align_corners=False), atol=1e-5)
    assert torch.allclose(begins["bicubic"].reshape(3, -1).T, bicubic(image, grid(27, 33)), atol=1e-6)
    assert not torch.allclose(begins["none"], begins["bilinear"], atol=0.1)


def test_a_ramp_is_where_it_was():
    """A start as interpolation tells how far a picture is shifted: by less than a twentieth of a pixel."""
    ramp = torch.linspace(0.2, 0.8, 77).expand(1, 3, 101, 77).contiguous()
    network = decoder(TextureDecoderConfig.tiny())
    size = (round(101 * 2.7), round(77 * 2.7))
    large = render(network, torch.zeros(1, 32, 101, 77), ramp, size, search=Search(max_keys=100))
    places = (torch.arange(size[1]) + 0.5) * 77 / size[1] - 0.5
    inner = (places > 1) & (places < 75)  # nearer to the edges the kernel sees where the ramp ends
    slope = 0.6 / 76
    assert large.shape[-2:] == size == (273, 208)
    assert (large[0, 0, 100, inner] - (0.2 + slope * places[inner])).abs().max() < 0.05 * slope * 77 / size[1]


def test_scale_one_keeps_the_size_and_beyond_four_the_footprint_stays():
    assert rendering_footprint((8, 8), (8, 8)).tolist() == [1, 1]
    assert rendering_footprint((8, 8), (32, 16)).tolist() == [0.25, 0.5]
    assert rendering_footprint((8, 8), (64, 48)).tolist() == [0.25, 0.25]


@pytest.mark.parametrize("left_out", [None, "interact", "fuse", "decode_texture"])
def test_gradients_reach_every_parameter(left_out):
    network = decoder(replace(SMALL, **({left_out: False} if left_out else {})))
    features, image = field(5, 6, images=2)
    features.requires_grad_()
    places = torch.rand(2, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    network(features, image, places, torch.full((2, 2), 0.4, dtype=torch.float64)).square().sum().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert idle == set()
    assert features.grad.abs().amax() > 0


def test_images_of_a_batch_do_not_mix():
    features, image = field(5, 6, images=2)
    both = render(decoder(), features, image, (12, 13))
    assert torch.equal(both[1:], render(decoder(), features[1:], image[1:], (12, 13)))


def test_a_saved_decoder_decodes_the_same(tmp_path):
    network, (features, image) = decoder(), field(5, 6)
    network.save_pretrained(tmp_path)
    again = TextureDecoder.from_pretrained(tmp_path)
    assert torch.equal(render(network, features, image, (11, 12)), render(again, features, image, (11, 12)))


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="heads divide features"):
        TextureDecoderConfig(features=9, heads=2)
    with pytest.raises(ValueError, match="at least 1"):
        Search(query_chunk=0)
