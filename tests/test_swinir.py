"""SwinIR: published sizes and names, attention from its definition, behaviour at any size."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pathorestore.hub import ConfigError, WeightsError, load_strictly
from pathorestore.models.swinir import (
    DropPath,
    SwinIR,
    SwinIRConfig,
    SwinTransformerLayer,
    without_published_buffers,
)

SMALL = SwinIRConfig(embed=8, blocks=(2, 1), heads=2, window=4, features=5, drop_path=0.0)
IMAGES = SwinIRConfig(
    embed=8, blocks=(2,), heads=2, window=2, features=6, unshuffle=4, upsampler="nearest+conv", drop_path=0.0, mean=(0.4, 0.5, 0.6), std=1.0
)


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _randomised(module, *, std=0.3):
    """The module in double precision and eval mode with all parameters drawn anew, so that nothing is zero or one by initialisation."""
    generator = _generator(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return module.double().eval()


def _image(*shape, seed=1):
    return torch.rand(*shape, dtype=torch.float64, generator=_generator(seed))


# 11.60 M and 15.8 M are what the encoder of LTE and ISTE and the restoration module of DiffBIR have
@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("paper", 11_603_044),
        ("restoration", 15_792_587),
        ("base", 1_691_776),
        ("tiny", 220_388),
        ("tiny_restoration", 480_923),
        ("base_restoration", 1_843_171),
    ],
)
def test_presets_have_their_advertised_size(preset, count):
    with torch.device("meta"):
        assert _parameters(SwinIR(getattr(SwinIRConfig, preset)())) == count


def _expected_shapes(*, first, embed, blocks, heads, features):
    """Names and shapes in the published layout, written out from its description."""
    shapes = {
        f"{first}.weight": (embed, 3, 3, 3),
        f"{first}.bias": (embed,),
        "conv_after_body.weight": (embed, embed, 3, 3),
        "conv_after_body.bias": (embed,),
        "conv_before_upsample.0.weight": (features, embed, 3, 3),
        "conv_before_upsample.0.bias": (features,),
    }
    for norm in ("patch_embed.norm", "norm"):
        shapes |= {f"{norm}.weight": (embed,), f"{norm}.bias": (embed,)}
    for number, depth in enumerate(blocks):
        shapes |= {f"layers.{number}.conv.weight": (embed, embed, 3, 3), f"layers.{number}.conv.bias": (embed,)}
        for index in range(depth):
            block = f"layers.{number}.residual_group.blocks.{index}"
            shapes[f"{block}.attn.relative_position_bias_table"] = (225, heads)
            shapes |= {f"{block}.{norm}.{part}": (embed,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
            for name, c_out, c_in in (
                ("attn.qkv", 3 * embed, embed),
                ("attn.proj", embed, embed),
                ("mlp.fc1", 2 * embed, embed),
                ("mlp.fc2", embed, 2 * embed),
            ):
                shapes |= {f"{block}.{name}.weight": (c_out, c_in), f"{block}.{name}.bias": (c_out,)}
    return shapes


def _shapes(config):
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in SwinIR(config).state_dict().items()}


def test_the_encoders_names_and_shapes_are_the_published_ones():
    tiny = _expected_shapes(first="conv_first", embed=48, blocks=(2, 2, 2), heads=6, features=32)
    assert _shapes(SwinIRConfig.tiny()) == tiny
    paper = _expected_shapes(first="conv_first", embed=180, blocks=(6,) * 6, heads=6, features=64)
    assert _shapes(SwinIRConfig.paper()) == paper


def test_the_restoration_modules_names_and_shapes_are_the_published_ones():
    expected = _expected_shapes(first="conv_first.1", embed=180, blocks=(6,) * 8, heads=6, features=64)
    expected["conv_first.1.weight"] = (180, 192, 3, 3)
    for name in ("conv_up1", "conv_up2", "conv_up3", "conv_hr"):
        expected |= {f"{name}.weight": (64, 64, 3, 3), f"{name}.bias": (64,)}
    expected |= {"conv_last.weight": (3, 64, 3, 3), "conv_last.bias": (3,)}
    assert _shapes(SwinIRConfig.restoration()) == expected


def test_a_published_state_loads_once_its_constant_buffers_are_dropped():
    network = SwinIR(SMALL)
    state = {name: torch.randn(value.shape, generator=_generator()) for name, value in network.state_dict().items()}
    published = {
        **state,
        "layers.0.residual_group.blocks.0.attn.relative_position_index": torch.zeros(16, 16),
        "layers.0.residual_group.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    }
    with pytest.raises(WeightsError, match="extra"):
        load_strictly(network, published, source="file")
    load_strictly(network, without_published_buffers(published), source="file")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def _attention_by_definition(layer, x, *, shift):
    """WMSA of one image h w c, token by token: each sees its own window; windows are displaced and cut by the borders."""
    height, width, channels = x.shape
    heads, window = layer.attn.heads, layer.window
    q, k, v = layer.attn.qkv(x).reshape(height, width, 3, heads, channels // heads).unbind(2)
    mixed = torch.zeros_like(q)
    places = [(y, x) for y in range(height) for x in range(width)]
    home = {place: tuple((side - shift) // window for side in place) for place in places}
    for place in places:
        seen = [other for other in places if home[other] == home[place]]
        rows = [(place[0] - y + window - 1) * (2 * window - 1) + place[1] - x + window - 1 for y, x in seen]
        keys, values = (torch.stack([part[other] for other in seen]) for part in (k, v))
        scores = (q[place] * keys).sum(-1) / (channels // heads) ** 0.5 + layer.attn.relative_position_bias_table[rows]
        mixed[place] = (scores.softmax(0)[..., None] * values).sum(0)
    return layer.attn.proj(mixed.flatten(2))


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 12), (4, 4), (4, 8)])
def test_a_layer_equals_its_definition_token_by_token(size, shift):
    layer = _randomised(SwinTransformerLayer(SMALL, shift=shift, drop_path=0.0))
    x = _image(*size, 8)
    with torch.no_grad():
        h = x + _attention_by_definition(layer, layer.norm1(x), shift=shift)
        hidden = layer.mlp["fc1"](layer.norm2(h))
        gelu = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        assert torch.allclose(layer(x[None])[0], h + layer.mlp["fc2"](gelu), atol=1e-12)


def test_layers_alternate_between_plain_and_displaced_windows():
    network = SwinIR(replace(SwinIRConfig.tiny(), blocks=(3, 2)))
    shifts = [layer.shift for layer in network.modules() if isinstance(layer, SwinTransformerLayer)]
    assert shifts == [0, 4, 0, 0, 4]


def test_layers_with_zero_last_projections_are_the_identity():
    layer, x = _randomised(SwinTransformerLayer(SMALL, shift=2, drop_path=0.0)), _image(2, 8, 8, 8)
    for last in (layer.attn.proj, layer.mlp["fc2"]):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    assert torch.equal(layer(x), x)


def test_the_body_is_skipped_by_the_long_connection():
    """With a silent convolution behind the body, features are those of the first convolution on the centred image."""
    network, image = _randomised(SwinIR(replace(SMALL, features=None))), _image(1, 3, 8, 8)
    nn.init.zeros_(network.conv_after_body.weight)
    nn.init.zeros_(network.conv_after_body.bias)
    assert torch.allclose(network(image), network.conv_first(2 * image - 1), atol=1e-12)


def test_groups_with_a_silent_convolution_leave_two_norms_of_the_shallow_features():
    network, image = _randomised(SwinIR(SMALL)), _image(1, 3, 8, 8)
    for group in network.layers:
        nn.init.zeros_(group.conv.weight)
        nn.init.zeros_(group.conv.bias)
    shallow = network.conv_first(2 * image - 1)
    normed = network.norm(network.patch_embed["norm"](shallow.movedim(1, -1))).movedim(-1, 1)
    body = network.conv_before_upsample[0](network.conv_after_body(normed) + shallow)
    assert torch.allclose(network(image), torch.where(body > 0, body, 0.01 * body), atol=1e-12)


@settings(max_examples=15)
@given(height=st.integers(1, 19), width=st.integers(1, 19))
def test_any_size_comes_back_in_its_own_size(height, width):
    image = torch.rand(2, 3, height, width, generator=_generator())
    for config, channels in ((SMALL, 5), (replace(SMALL, features=None), 8), (IMAGES, 3)):
        result = SwinIR(config).eval()(image)
        assert config.width == channels
        assert result.shape == (2, channels, height, width)
        assert torch.isfinite(result).all()


@settings(max_examples=10)
@given(height=st.integers(5, 11), width=st.integers(5, 11))
def test_padding_reflects_at_the_right_and_bottom(height, width):
    network, image = _randomised(SwinIR(SMALL)), _image(1, 3, height, width)
    grown = torch.nn.functional.pad(image, (0, -width % 4, 0, -height % 4), mode="reflect")
    assert torch.allclose(network(image), network(grown)[..., :height, :width], atol=1e-12)


@pytest.mark.parametrize("config", [SMALL, IMAGES])
def test_images_of_a_batch_do_not_see_each_other(config):
    network, image = _randomised(SwinIR(config)), _image(3, 3, 9, 16)
    whole, other = network(image), image.clone()
    other[2] = 0.5
    assert torch.allclose(network(other)[:2], whole[:2], atol=1e-12)
    assert torch.allclose(network(image[[2, 0, 1]]), whole[[2, 0, 1]], atol=1e-12)


@pytest.mark.parametrize(("config", "step", "margin"), [(SMALL, 4, 24), (IMAGES, 8, 32)])
def test_away_from_borders_features_move_with_the_image_by_whole_windows(config, step, margin):
    network, image = _randomised(SwinIR(config), std=0.2), _image(1, 3, 16, 64)
    whole, moved = network(image)[..., step:], network(image[..., step:])
    assert torch.allclose(moved[..., margin:], whole[..., margin:], atol=1e-10)
    assert (moved - whole).abs().max() > 1e-4  # the border is felt near it


def test_features_reach_beyond_their_own_window():
    network, image = _randomised(SwinIR(SMALL)), _image(1, 3, 12, 12)
    changed = image.clone()
    changed[..., 11, 11] = 0.0
    difference = (network(changed) - network(image)).abs().sum(1)[0]
    assert difference[5, 5] > 1e-9


def test_a_restoration_without_residual_is_the_mean_colour():
    network = SwinIR(IMAGES)
    nn.init.zeros_(network.conv_last.weight)
    nn.init.zeros_(network.conv_last.bias)
    restored = network(torch.rand(1, 3, 11, 6))
    assert torch.allclose(restored, torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1).expand_as(restored), atol=1e-6)


def test_reconstruction_doubles_by_nearest_neighbours_as_described():
    """B 3 H W out of features on the unshuffled grid, with the slopes of the description: 0.01 behind the body, 0.2 afterwards."""
    network, image = _randomised(SwinIR(IMAGES)), _image(1, 3, 16, 8)
    seen = {}
    network.conv_before_upsample[0].register_forward_hook(lambda module, args, out: seen.update(features=out))
    restored = network(image)
    x = torch.where(seen["features"] > 0, seen["features"], 0.01 * seen["features"])
    assert x.shape == (1, 6, 4, 2)
    for conv in (network.conv_up1, network.conv_up2):
        x = conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2))
        x = torch.where(x > 0, x, 0.2 * x)
    x = network.conv_hr(x)
    x = network.conv_last(torch.where(x > 0, x, 0.2 * x))
    assert torch.allclose(restored, x + network.mean, atol=1e-12)


def test_a_skip_begins_as_the_identity_and_adds_what_the_others_make():
    plain, skipping = SwinIR(IMAGES), SwinIR(replace(IMAGES, skip=True))
    image = torch.rand(2, 3, 11, 6)
    assert torch.equal(skipping(image), image)
    skipping.load_state_dict(_randomised(plain).state_dict())
    image = _image(1, 3, 11, 6)
    assert torch.allclose(skipping.double().eval()(image), image + plain(image) - plain.mean, atol=1e-12)


@pytest.mark.parametrize("config", [SwinIRConfig.tiny(), IMAGES])
def test_gradients_reach_every_parameter(config):
    network = SwinIR(config)
    network(torch.rand(1, 3, 16, 16, generator=_generator())).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_dropped_paths_are_whole_samples_and_the_mean_is_kept():
    drop = DropPath(0.25)
    kept = drop(torch.ones(4000, 2, 3))
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert torch.allclose(kept.unique(), torch.tensor([0.0, 4 / 3]))
    assert kept.mean() == pytest.approx(1, abs=0.05)  # 5.5 standard errors


def test_drop_rates_rise_linearly_over_all_layers_and_vanish_in_evaluation():
    network = SwinIR(replace(SMALL, blocks=(2, 3), drop_path=0.4))
    rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    never = SwinIR(replace(SMALL, blocks=(2, 3)))
    never.load_state_dict(network.state_dict())
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(network.eval()(image), never.train()(image))
    assert not torch.equal(network.train()(image), network(image))


@pytest.mark.parametrize("config", [replace(SMALL, features=None), IMAGES])
def test_saving_and_loading_is_bit_exact(config, tmp_path):
    network, image = SwinIR(config).eval(), torch.rand(1, 3, 10, 9)
    network.save_pretrained(tmp_path)
    again = SwinIR.from_pretrained(tmp_path)
    assert again.config == config
    assert torch.equal(again(image), network(image))


def test_half_precision_follows_the_image():
    for config in (SMALL, IMAGES):
        assert SwinIR(config).bfloat16()(torch.rand(1, 3, 9, 9).bfloat16()).dtype == torch.bfloat16


def test_an_export_computes_the_same_and_leaves_nothing_behind():
    """The size is met first while exporting: what is cached then must not come back in an ordinary call."""
    network, image = SwinIR(SMALL).eval(), torch.rand(1, 3, 52, 44)
    exported = torch.export.export(network, (image,)).module()
    result = network(image)
    assert type(result) is torch.Tensor
    assert torch.allclose(exported(image), result, atol=1e-6)


def test_a_pass_on_the_meta_device_leaves_nothing_behind():
    with torch.device("meta"):
        assert SwinIR(SMALL)(torch.rand(1, 3, 60, 36)).shape == (1, 5, 60, 36)
    assert torch.isfinite(SwinIR(SMALL)(torch.rand(1, 3, 60, 36))).all()


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="has 1 channels; expected in_channels=3"):
        SwinIR(IMAGES)(torch.rand(1, 1, 16, 16))
    assert SwinIR(replace(SMALL, in_channels=1))(torch.rand(1, 1, 6, 7)).shape == (1, 5, 6, 7)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"embed": 9}, "embed=9 must be a multiple of heads=2"),
        ({"blocks": ()}, "of at least one group"),
        ({"blocks": (2, 0)}, "must be at least 1"),
        ({"features": 0}, "must be at least 1"),
        ({"window": 1}, "window=1 must be at least 2"),
        ({"drop_path": 1.0}, "drop_path=1.0 must be at least 0 and below 1"),
        ({"mean": (0.5, 0.5)}, "mean holds 2 values; expected 1 or in_channels=3"),
        ({"std": 0.0}, "std=0.0 must be positive"),
        ({"upsampler": "pixelshuffle"}, "must be none or nearest\\+conv; got 'pixelshuffle'"),
        ({"unshuffle": 2}, "unshuffle=2 without an upsampler"),
        ({"features": None, "upsampler": "nearest+conv"}, "works on features, got None"),
        ({"unshuffle": 6, "upsampler": "nearest+conv"}, "power of two; got 6"),
        ({"skip": True}, "skip adds an image to the input; it needs upsampler"),
        ({"skip": True, "upsampler": "nearest+conv", "in_channels": 4}, "and as many channels"),
        ({"mean": (0.4, 0.5, 0.6), "upsampler": "nearest+conv", "out_channels": 1}, "cannot be added to out_channels=1"),
    ],
)
def test_configs_that_cannot_work_are_refused_with_a_remedy(change, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **change)


def test_a_stored_config_of_other_keys_is_refused(tmp_path):
    SwinIR(SMALL).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"window": 4', '"window_px": 4'))
    with pytest.raises(ConfigError, match="unknown window_px; missing window"):
        SwinIR.from_pretrained(tmp_path)
