"""The embedded prompted model on tissue that it never saw: prompts do what they say, and nothing else does it better."""

from pathlib import Path

import pytest
import torch

import pathorestore
from pathorestore._torchvision import ensure_torchvision
from pathorestore.data.tasks import builtin_tasks, named
from pathorestore.functional.noise import stream
from pathorestore.metrics.fidelity import psnr
from pathorestore.pipelines.demo import demo_image

ensure_torchvision()
pytest.importorskip("diffusers", reason="the extra `diffusion`")

from pathorestore.pipelines.lpfm import LPFM, LPFMConfig  # noqa: E402

WEIGHTS = Path(pathorestore.__file__).parent / "weights"
PLACES = [(100, 150), (250, 60), (40, 330), (300, 300)]
FIRST = ("denoise", "deblur", "restore_jpeg", "sr", "stain_pas", "stain_masson", "stain_ihc")


@pytest.fixture(scope="module")
def model():
    return LPFM.from_pretrained("lpfm-tiny")


@pytest.fixture(scope="module")
def sharp():
    """Four places of 96 px, immunohistochemistry: no stain that it was trained on."""
    return [demo_image()[..., y : y + 96, x : x + 96] for y, x in PLACES]


def gains(model, sharp, task, prompts, **how):
    """Mean PSNR of what comes out under each prompt, and of what went in, over the places."""
    scores = []
    for number, one in enumerate(sharp):
        given, wanted, _ = named(builtin_tasks(), task).tried(one, stream(3, number))
        made = [given, *(model(given, task=prompt, scale=1.0, **how) for prompt in prompts)]
        scores.append([psnr(image, wanted).item() for image in made])
    return torch.tensor(scores).mean(0).tolist()


def test_it_is_the_tiny_preset_and_shares_what_it_did_not_train(model):
    config, parts = LPFMConfig.tiny(), model.parts()
    assert model.model_id == "lpfm-tiny"
    assert (parts["coarse"].config.restormer, parts["text"].config) == (config.coarse, config.text)
    assert (parts["contrastive"].config, parts["fusion"].config) == (config.contrastive, config.fusion)
    sizes = {path.parent.name: path.stat().st_size for path in (WEIGHTS / "lpfm-tiny").rglob("*.safetensors")}
    assert sizes["autoencoder"] < 20_000
    assert sizes["unet"] < 0.2 * (WEIGHTS / "histo-diffusion-tiny" / "unet" / "model.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 24e6


@pytest.mark.parametrize("task", FIRST)
def test_the_right_prompt_is_nearer_than_what_was_given_and_than_other_prompts(model, sharp, task):
    others = [other for other in FIRST if other != task]
    given, right, *wrong = gains(model, sharp, task, [task, *others], coarse_only=True)
    assert right > given
    assert right > max(wrong)


def test_detail_is_drawn_under_the_prompt_too(model, sharp):
    given, right, wrong = gains(model, sharp[:2], "stain_pas", ["stain_pas", "denoise"])
    assert right > given + 1
    assert right > wrong + 1


def test_the_encoder_estimates_noise_and_the_prompt_may_tell_it_otherwise(model, sharp):
    quiet = model.contrastive.estimate(torch.cat(sharp)).noise_std
    noisy = model.contrastive.estimate((torch.cat(sharp) + 0.08 * torch.randn(4, 3, 96, 96, generator=stream(5))).clamp(0, 1)).noise_std
    assert (noisy > quiet + 0.02).all()


def test_its_card_tells_how_the_weights_came_about():
    card = (WEIGHTS / "lpfm-tiny" / "README.md").read_text()
    assert "not recorded" not in card
    assert "denoise" in card
