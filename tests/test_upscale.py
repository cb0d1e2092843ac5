"""ISTE as a whole: sizes, tiles, geometry, and what it says no to."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.degradations.resize import reduced, resized
from pathorestore.hub import WeightsError
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.implicit_decoders import ImplicitDecoderConfig, LIIFDecoder, LTEDecoder
from pathorestore.models.iste import Search, TextureDecoder, TextureDecoderConfig
from pathorestore.models.swinir import SwinIR, SwinIRConfig
from pathorestore.nn.implicit import bicubic, grid
from pathorestore.pipelines import iste
from pathorestore.pipelines.demo import demo_image
from pathorestore.pipelines.enlarge import cuts
from pathorestore.pipelines.iste import ISTE, load_default


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = SwinIR(SwinIRConfig(embed=12, blocks=(1,), heads=2, window=4, features=8, drop_path=0.0))
    return ISTE(encoder, TextureDecoder(TextureDecoderConfig(features=8, texture=12, hidden=(16,), heads=2))).eval()


@pytest.fixture(scope="module")
def embedded():
    return load_default()


@pytest.fixture(scope="module")
def bicubic_start():
    """An untrained model with its skip: what it draws is where bicubic interpolation draws it."""
    torch.manual_seed(0)
    return ISTE(
        SwinIR(SwinIRConfig(embed=12, blocks=(1,), heads=2, window=4, features=32)), TextureDecoder(TextureDecoderConfig.tiny())
    ).eval()


@given(length=st.integers(1, 300), scale=st.floats(0.3, 9), tile=st.integers(9, 80), overlap=st.integers(0, 4))
def test_every_pixel_is_made_once_from_pixels_around_it(length, scale, tile, overlap):
    out_length = max(1, round(length * scale))
    made = []
    for cut in cuts(length, out_length, tile_px=tile, overlap_px=overlap):
        made += range(*cut.made)
        assert cut.read[1] - cut.read[0] <= tile
        assert 0 <= cut.read[0] < cut.read[1] <= length
        places = cut.coordinates(length, out_length)
        assert places.abs().max() <= 1 + 1e-12
    assert made == list(range(out_length))


@pytest.mark.parametrize(("scale", "size"), [(1, (21, 17)), (2.7, (57, 46)), (4, (84, 68)), (8, (168, 136))])
def test_any_scale_gives_the_rounded_size(model, scale, size, generator):
    large = model.upscale(torch.rand(1, 3, 21, 17, generator=generator), scale=scale)
    assert large.shape == (1, 3, *size)
    assert large.isfinite().all()
    assert 0 <= large.min() <= large.max() <= 1


@pytest.mark.parametrize("scale", [1, 2, 2.7, 5])
def test_tiles_draw_bicubic_pictures_without_a_seam_or_shift(bicubic_start, scale, generator):
    image = F.avg_pool2d(torch.rand(1, 3, 61, 83, generator=generator), 3, 1)
    size = round(59 * scale), round(81 * scale)
    tiled = bicubic_start.upscale(image, out_size=size, tile_px=24, overlap_px=4)
    assert torch.allclose(tiled[0].flatten(1).T, bicubic(image, grid(*size)).clamp(0, 1), atol=2e-5)


def test_a_ramp_of_101_by_77_is_not_shifted(bicubic_start):
    ramp = torch.linspace(0.2, 0.8, 101)[:, None].expand(1, 3, 101, 77).contiguous()
    large = bicubic_start.upscale(ramp, scale=2.7, tile_px=48)
    assert large.shape[-2:] == (273, 208)
    places = (torch.arange(273) + 0.5) * 101 / 273 - 0.5
    slope = 0.6 / 100  # a shift by one small pixel changes so much
    inner = (places > 1) & (places < 99)  # nearer to the edges the kernel sees where the ramp ends
    assert (large[0, 0, inner, 100] - (0.2 + slope * places[inner])).abs().max() < 0.05 * slope


def test_a_system_looks_for_textures_as_it_was_told(model, generator):
    image = torch.rand(1, 3, 20, 22, generator=generator)
    everywhere = model.upscale(image, scale=2)
    model.search = Search(max_keys=9)
    thinned = model.upscale(image, scale=2)
    model.search = Search()
    assert torch.equal(model.upscale(image, scale=2), everywhere)
    assert not torch.equal(thinned, everywhere)


def test_one_tile_is_the_whole_image(model, generator):
    image = torch.rand(1, 3, 20, 22, generator=generator)
    assert torch.equal(model.upscale(image, scale=2, tile_px=22), model.upscale(image, scale=2, tile_px=500, overlap_px=90))


def test_images_of_a_batch_do_not_mix(model, generator):
    images = torch.rand(2, 3, 12, 12, generator=generator)
    assert torch.equal(model.upscale(images, scale=3)[1:], model.upscale(images[1:], scale=3))


def test_a_saved_system_draws_the_same_and_knows_its_name(model, tmp_path, generator):
    image = torch.rand(1, 3, 12, 14, generator=generator)
    model.save_pretrained(tmp_path / "mine")
    again = ISTE.from_pretrained(tmp_path / "mine")
    assert torch.equal(model.upscale(image, scale=2.5), again.upscale(image, scale=2.5))
    assert again.model_id == "mine"
    assert len(again.weights_sha256) == 64


@pytest.mark.parametrize("kind", [LIIFDecoder, LTEDecoder])
def test_another_decoder_is_saved_and_loaded_as_what_it_is(model, kind, tmp_path, generator):
    image = torch.rand(1, 3, 12, 14, generator=generator)
    other = ISTE(model.encoder, kind(ImplicitDecoderConfig(features=8, hidden=(9,), texture=6))).eval()
    other.save_pretrained(tmp_path)
    again = ISTE.from_pretrained(tmp_path)
    assert isinstance(again.decoder, kind)
    assert torch.equal(other.upscale(image, scale=2.5), again.upscale(image, scale=2.5))


def test_gradients_reach_every_parameter_of_the_system(model):
    image = torch.rand(2, 3, 9, 8)
    places = torch.rand(2, 40, 2, dtype=torch.float64) * 2 - 1
    model(image, places, torch.full((2, 2), 0.5, dtype=torch.float64)).square().mean().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == set()


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({}, "one of scale and out_size"),
        ({"scale": 2, "out_size": (4, 4)}, "one of scale and out_size"),
        ({"scale": 0}, "must lie above 0"),
        ({"scale": 0.01}, "cannot become 0 x 0"),
        ({"out_size": (12, 204)}, "cannot become 12 x 204"),
        ({"scale": float("nan")}, "must lie above 0"),
        ({"scale": 2, "tile_px": 16, "overlap_px": 8}, "more than twice overlap_px"),
    ],
)
def test_impossible_wishes_are_refused(model, wish, told):
    with pytest.raises(ValueError, match=told):
        model.upscale(torch.rand(1, 3, 12, 12), **wish)


def test_a_folder_without_a_decoder_or_with_two_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    for parts in ({"encoder": "SwinIR"}, {"decoder": "TextureDecoder"}, {"encoder": "SwinIR", "decoder": "TextureDecoder", "liif": "LIIF"}):
        shutil.copytree(tmp_path / "whole", tmp_path / "broken", dirs_exist_ok=True)
        if "liif" in parts:
            LIIFDecoder(ImplicitDecoderConfig(features=8, hidden=(8,))).save_pretrained(tmp_path / "broken" / "liif")
        content = json.loads((tmp_path / "whole" / "system.json").read_text())
        (tmp_path / "broken" / "system.json").write_text(json.dumps(content | {"parts": parts}))
        with pytest.raises(WeightsError, match="expected an encoder and one of decoder, liif, lte"):
            ISTE.from_pretrained(tmp_path / "broken")


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="gives 8 features but the decoder expects 32"):
        ISTE(SwinIR(SwinIRConfig(embed=12, blocks=(1,), heads=2, features=8)), TextureDecoder(TextureDecoderConfig.tiny()))


@pytest.mark.parametrize("blur", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("scale", "gain_db"), [(2.0, 1.0), (2.7, 0.8), (3.3, 0.5), (6.0, 0.2), (8.0, 0.1)])
def test_the_embedded_weights_beat_bicubic_on_tissue_that_they_never_saw(embedded, scale, gain_db, blur):
    """Immunohistochemistry, where they were trained on haematoxylin and eosin."""
    small, clean = reduced(demo_image()[..., 100:292, 150:342], scale, blur=blur)
    size = (clean.shape[-2], clean.shape[-1])
    bicubic_db, ours_db = (psnr(one, clean).item() for one in (resized(small, size), embedded.upscale(small, out_size=size)))
    assert ours_db > bicubic_db + gain_db


def test_the_embedded_weights_search_among_as_many_textures_as_in_training(embedded):
    assert embedded.model_id == "iste-tiny"
    assert embedded.search.max_keys == 1024


def test_the_embedded_card_tells_how_the_weights_came_about():
    card = (Path(iste.__file__).parents[1] / "weights" / "iste-tiny" / "README.md").read_text()
    assert "not recorded" not in card
    assert "gain over bicubic x3.3" in card
