"""The embedded generative upscaler on tissue and a stain that it never saw: what it is for, and that its risk map knows its limits."""

from pathlib import Path

import pytest
import torch

import pathorestore
from pathorestore._torchvision import ensure_torchvision
from pathorestore.degradations.resize import reduced, resized
from pathorestore.metrics.fidelity import psnr
from pathorestore.metrics.nuclei import nuclei_difference
from pathorestore.metrics.risk import rank_correlation
from pathorestore.pipelines.demo import demo_image
from pathorestore.pipelines.enlarge import Enlargement, enlarged
from pathorestore.pipelines.enlargement_risk import ready_enlargement_risk
from pathorestore.pipelines.trust import local_error
from pathorestore.pipelines.upscalers import UpscaleOptions, ready_upscaler

ensure_torchvision()
pytest.importorskip("diffusers", reason="the extra `diffusion`")

from pathorestore.pipelines.histo_diffusion import HistoDiffusion, HistoDiffusionConfig  # noqa: E402

WEIGHTS = Path(pathorestore.__file__).parent / "weights"
PLACES = [(100, 150), (250, 60), (40, 330), (300, 300)]


@pytest.fixture(scope="module")
def model():
    return HistoDiffusion.from_pretrained("histo-diffusion-tiny")


@pytest.fixture(scope="module")
def fields():
    """Small, clean and size of four places of 128 px, immunohistochemistry, at x4 without blur."""
    told = []
    for y, x in PLACES:
        small, clean = reduced(demo_image()[..., y : y + 128, x : x + 128], 4, blur=0)
        told.append((small, clean, (clean.shape[-2], clean.shape[-1])))
    return told


def test_it_is_the_tiny_preset_and_all_weights_together_fit_their_budget(model):
    config, denoiser = HistoDiffusionConfig.tiny(), model.sampler.denoiser
    assert model.model_id == "histo-diffusion-tiny"
    assert (model.restoration.config, denoiser.unet.config) == (config.restoration, config.unet)
    assert model.sampler.autoencoder.config.channels == config.autoencoder.channels
    assert (model.settings.tile_px, model.settings.min_px) == (config.settings.tile_px, config.settings.min_px)
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 24e6


def test_the_first_stage_is_nearer_than_interpolation_where_the_image_was_blurred(model):
    small, clean = reduced(demo_image()[..., 100:292, 150:342], 4, blur=1)
    size = (clean.shape[-2], clean.shape[-1])
    assert psnr(model.coarse(small, out_size=size), clean).item() > psnr(resized(small, size), clean).item() + 0.5


def test_what_is_drawn_has_the_texture_of_nuclei_rather_than_interpolation_or_the_first_stage(model, fields):
    texture = torch.tensor(
        [
            [
                nuclei_difference(made, clean).l1_texture.item()
                for made in (resized(small, size), model.coarse(small, out_size=size), model.upscale(small, out_size=size))
            ]
            for small, clean, size in fields
        ]
    )
    bicubic, coarse, drawn = texture.mean(dim=0).tolist()
    assert drawn < coarse < bicubic


def test_no_speck_of_another_colour_is_drawn(model, fields):
    """Detail has the dye of its place: on a stain that no stage ever saw colours stay within some grey levels of the first stage's."""
    for small, _, size in fields:
        coarse, drawn = model.coarse(small, out_size=size), model.upscale(small, out_size=size)
        off = (drawn - drawn.mean(1, keepdim=True)) - (coarse - coarse.mean(1, keepdim=True))
        assert off.abs().max() < 18 / 255
        assert (drawn - coarse).abs().max() > 18 / 255, "it draws at all"


def test_its_risk_map_ranks_the_errors(fields):
    options = UpscaleOptions(target=Enlargement(scale=4), model="histo-diffusion-tiny")
    ready = ready_upscaler(options)
    risk = ready_enlargement_risk(ready, options)
    risks, errors = [], []
    for small, clean, size in fields[:2]:
        made = enlarged(ready.pieces, small, size)
        risks.append(risk.expected_error(small, made))
        errors.append(local_error(made, clean, window_px=risk.model.settings.window_px))
    assert rank_correlation(torch.cat(risks), torch.cat(errors)) > 0.4


def test_its_card_tells_how_the_weights_came_about():
    card = (WEIGHTS / "histo-diffusion-tiny" / "README.md").read_text()
    assert "not recorded" not in card
    assert "L1_texture" in card
