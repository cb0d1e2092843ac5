"""LPFM: one system under many prompts; what each path must leave as it is."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from pathorestore._torchvision import ensure_torchvision
from pathorestore.degradations.composed import Theta
from pathorestore.degradations.resize import resized
from pathorestore.functional.noise import NoiseField

ensure_torchvision()
pytest.importorskip("diffusers")

from histo_samples import awake_lpfm  # noqa: E402

from pathorestore.data.task_prompts import UnknownPrompt  # noqa: E402
from pathorestore.data.tasks import Task  # noqa: E402
from pathorestore.models.contrastive import ContrastiveEncoder, ContrastiveEncoderConfig  # noqa: E402
from pathorestore.models.controlled import ControlledUNet, LatentUNet, LatentUNetConfig  # noqa: E402
from pathorestore.models.pformer import RestormerConfig  # noqa: E402
from pathorestore.models.prompted import PromptedRestormer  # noqa: E402
from pathorestore.models.text import ByteTextConfig  # noqa: E402
from pathorestore.pipelines.controlled import ControlledSampler, SamplingSettings  # noqa: E402
from pathorestore.pipelines.histo_diffusion import HistoDiffusion  # noqa: E402
from pathorestore.pipelines.lpfm import LPFM, LPFMConfig  # noqa: E402

DENOISE, DEBLUR = "denoise the H&E image", "deblur the H&E image"


@pytest.fixture(scope="module")
def model():
    return awake_lpfm()


@pytest.fixture
def image(generator):
    return torch.rand(1, 3, 32, 48, generator=generator)


def test_prompts_matter_and_seeds_too(model, image):
    made = model(image, DENOISE, seed=3)
    assert made.shape == image.shape
    assert torch.equal(made, model(image, DENOISE, seed=3))
    assert not torch.allclose(made, model(image, DEBLUR, seed=3), atol=1e-3)
    assert not torch.allclose(made, model(image, DENOISE, seed=4), atol=1e-3)
    coarse = [model(image, prompt, coarse_only=True) for prompt in (DENOISE, DEBLUR)]
    assert not torch.allclose(*coarse, atol=1e-3)


def test_images_of_a_batch_are_as_they_would_be_alone(model, image):
    both = torch.cat([image, image.flip(-1)])
    together = model(both, DENOISE)
    assert torch.equal(together[1:], model(both[1:], DENOISE))


def test_a_task_is_its_plainest_prompt(model, image):
    assert torch.equal(model(image, task="denoise"), model(image, DENOISE))
    assert torch.equal(model(image, model.asked(task="denoise")), model(image, DENOISE))
    assert model(image, "enlarge the H&E image 1.5 times").shape == (1, 3, 48, 72)
    assert model(image, DENOISE, scale=2).shape == (1, 3, 64, 96)


def test_without_an_encoder_the_path_of_the_prompt_alone_is_taken(model, image):
    parts = (model.coarse, model.text, model.fusion, model.sampler)
    bare = LPFM(*parts, contrastive=None).eval()
    assert bare.impression(image) is None
    spec = model.asked(DENOISE)
    assert torch.equal(bare(image, DENOISE), model.working(spec).upscale(image, scale=1))
    assert not torch.allclose(bare(image, DENOISE), model(image, DENOISE), atol=1e-3)


def test_what_was_done_can_be_told(model, image):
    told = Theta(*(torch.tensor([value]) for value in (0.0, 0.0, 1.0, 0.05, 100.0)))
    seen = model.impression(image, theta=told)
    assert torch.allclose(seen.theta, told.normalised())
    assert torch.equal(seen.degradation, model.impression(image).degradation)
    assert not torch.allclose(model(image, DENOISE, theta=told), model(image, DENOISE), atol=1e-4)


def test_guidance_of_one_is_the_conditional_branch_alone(model, image, monkeypatch):
    working = model.working(model.asked(DENOISE), model.impression(image))
    sampler = working.sampler
    state = torch.randn(1, 4, 8, 8)
    steps, condition = torch.tensor([7]), torch.randn(1, 4, 8, 8)
    against = model.fusion(model.text([""]), model.impression(image))

    def at(scale):
        return ControlledSampler(
            sampler.autoencoder,
            sampler.denoiser.unet,
            sampler.denoiser.control,
            replace(sampler.settings, guidance_scale=scale),
            guidance=sampler.guidance,
            against=against,
        )

    with torch.no_grad():
        conditional = sampler.denoiser(state, steps, condition, **sampler.guidance._asdict())
        plain = sampler.denoiser(state, steps, condition, **against._asdict())
        assert not torch.allclose(plain, conditional, atol=1e-3)
        assert torch.equal(at(1.0)._predicted(state, steps, condition), conditional)
        assert torch.equal(at(0.0)._predicted(state, steps, condition), plain)
        expected = plain + 3 * (conditional - plain)
        assert torch.allclose(at(3.0)._predicted(state, steps, condition), expected, atol=1e-5)
    calls = []
    forward = ControlledUNet.forward
    monkeypatch.setattr(ControlledUNet, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    working.region(image)
    alone = len(calls)
    model.with_settings(replace(model.settings, guidance_scale=2.0)).working(model.asked(DENOISE)).region(image)
    assert len(calls) - alone == 2 * alone


def test_film_at_zero_is_the_plain_coarse_network(image):
    fresh = LPFM.of(LPFMConfig.nano()).eval()
    nn.init.normal_(fresh.coarse.net.conv_last.weight, std=0.1)
    plain = HistoDiffusion(fresh.coarse.net, fresh.sampler)
    assert torch.equal(fresh(image, DENOISE, coarse_only=True), plain.coarse(image, scale=1))


def test_a_vector_adds_nothing_at_first_and_is_wanted_or_not():
    torch.manual_seed(0)
    config = LatentUNetConfig.nano()
    plain, told = LatentUNet(config), LatentUNet(replace(config, vector_dim=5))
    told.load_state_dict(plain.state_dict(), strict=False)
    state, steps = torch.randn(2, 4, 8, 8), torch.tensor([3, 500])
    with torch.no_grad():
        assert torch.equal(told(state, steps, vector=torch.randn(2, 5)), plain(state, steps))
    with pytest.raises(ValueError, match=r"expected a vector of shape \(2, 5\); got none"):
        told(state, steps)
    with pytest.raises(ValueError, match=r"expected a vector of shape none; got \(2, 5\)"):
        plain(state, steps, vector=torch.randn(2, 5))


@pytest.mark.parametrize("size", ["tiny", "base", "paper"])
def test_presets_fit_together(size):
    with torch.device("meta"):
        made = LPFM.of(getattr(LPFMConfig, size)())
    assert made.sampler.denoiser.unet.config.vector_dim == made.fusion.config.vector_dim
    assert made.text.dim == made.fusion.config.text_dim
    assert made.contrastive.dim == made.fusion.config.image_dim
    assert made.contrastive.config.degradation_dim == made.fusion.config.degradation_dim
    if size == "tiny":
        assert sum(parameter.numel() for parameter in made.parameters()) == pytest.approx(5.94e6, rel=0.01)


def test_a_restormer_can_be_the_first_stage(image, tmp_path):
    sizes = RestormerConfig(dim=8, blocks=(1, 1, 1, 1), refinement=0, heads=(1, 1, 1, 1), gamma=1.0)
    model = awake_lpfm(replace(LPFMConfig.nano(), coarse=sizes))
    first, second = (model(image, prompt, coarse_only=True) for prompt in (DENOISE, DEBLUR))
    assert not torch.allclose(first, second, atol=1e-4)
    assert model(image, DENOISE).shape == image.shape
    model.save_pretrained(tmp_path / "x")
    back = LPFM.from_pretrained(tmp_path / "x")
    assert isinstance(back.coarse, PromptedRestormer)
    assert torch.equal(back(image, DENOISE), model(image, DENOISE))


def test_a_hint_shows_the_given_image_to_the_branch(image):
    model = awake_lpfm(replace(LPFMConfig.nano(), hint=True))
    working = model.working(model.asked(DENOISE))
    sampler = working.sampler
    assert sampler.sees_given
    coarse = torch.rand(1, 3, 32, 32)
    made = [sampler(coarse, given=given, noise=NoiseField(0)) for given in (coarse, 1 - coarse)]
    assert not torch.allclose(*made, atol=1e-3)
    with pytest.raises(ValueError, match="hand it in as given="):
        sampler(coarse, noise=NoiseField(0))
    assert model(image, DENOISE).shape == image.shape


def test_unknown_words_are_passed_on_and_warned_about(model, image):
    with pytest.warns(UnknownPrompt, match="no known task's; it is passed on as it is"):
        spec = model.asked("make it shine")
    assert spec.text == "make it shine"
    assert not torch.allclose(model.working(spec).coarse(image, scale=1), model(image, DENOISE, coarse_only=True), atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.asked(DENOISE)


@pytest.mark.parametrize(("words", "told"), [({}, "give one of prompt and task"), ({"prompt": DENOISE, "task": "denoise"}, "give one of")])
def test_anything_but_one_of_prompt_and_task_is_refused(model, image, words, told):
    with pytest.raises(ValueError, match=told):
        model(image, **words)


def test_a_task_of_ones_own_is_known_to_the_system(model):
    mine = Task(name="invert", templates=("invert the colours of the {source} image",), example=model.tasks[0].example)
    parts = (model.coarse, model.text, model.fusion, model.sampler)
    assert LPFM(*parts, tasks=[*model.tasks, mine]).asked("invert the colours of the H&E image").task is mine


def test_a_saved_system_comes_back_and_asks_for_a_text_encoder_that_was_not_saved(model, image, tmp_path):
    model.save_pretrained(tmp_path / "a")
    again = LPFM.from_pretrained(tmp_path / "a")
    assert torch.equal(again(image, DENOISE), model(image, DENOISE))
    assert again.model_id == "a"

    class Foreign(nn.Module):
        dim = 16

        def forward(self, prompts):
            return model.text(prompts)

    LPFM(model.coarse, Foreign(), model.fusion, model.sampler, contrastive=model.contrastive).save_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match="there is no text encoder"):
        LPFM.from_pretrained(tmp_path / "b")
    assert torch.equal(LPFM.from_pretrained(tmp_path / "b", text=Foreign())(image, DENOISE), model(image, DENOISE))


def test_a_system_at_work_under_a_prompt_is_not_saved_as_another(model, tmp_path):
    with pytest.raises(ValueError, match="save the system that it belongs to"):
        model.working(model.asked(DENOISE)).save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_guidance_goes_away_from_the_empty_prompt(model, image):
    guided = model.with_settings(replace(model.settings, guidance_scale=2.0))
    impression = model.impression(image)
    against = guided.working(model.asked(DENOISE), impression).sampler.against
    with torch.no_grad():
        empty = model.fusion(model.text([""]), impression)
    assert torch.equal(against.context, empty.context)
    assert torch.equal(against.vector, empty.vector)


def test_settings_are_taken_over(model):
    other = model.with_settings(replace(model.settings, steps=2, sampler="ddim"))
    assert other.settings.steps == 2
    assert not other.training
    with pytest.raises(ValueError, match="guidance_scale=-1"):
        SamplingSettings(guidance_scale=-1)


def test_parts_that_do_not_fit_are_refused(model):
    nano = LPFMConfig.nano()
    nine = {part: replace(getattr(nano, part), degradation_dim=9) for part in ("fusion", "contrastive")}
    unlike = LPFM.of(replace(nano, **nine))
    with pytest.raises(ValueError, match="must agree in vector_dim"):
        LPFM(unlike.coarse, model.text, model.fusion, model.sampler)
    wide = LPFM.of(replace(LPFMConfig.nano(), text=ByteTextConfig(width=32), fusion=replace(LPFMConfig.nano().fusion, text_dim=32)))
    with pytest.raises(ValueError, match="the text encoder is 32 wide, and the fusion expects 16"):
        LPFM(model.coarse, wide.text, model.fusion, model.sampler)
    with pytest.raises(ValueError, match=r"the image encoder gives \(128, 32\) values"):
        LPFM(model.coarse, model.text, model.fusion, model.sampler, contrastive=ContrastiveEncoder(ContrastiveEncoderConfig.tiny()))


def test_what_was_done_must_be_told_of_every_image_and_to_somebody(model, image):
    told = Theta.from_normalised(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="theta has 1 rows; expected a row for each of 2"):
        model(torch.cat([image, image]), DENOISE, theta=told)
    with pytest.raises(ValueError, match="there is no encoder whose word it could replace"):
        LPFM(model.coarse, model.text, model.fusion, model.sampler)(image, DENOISE, theta=told)


def test_the_encoder_sees_the_image_as_large_as_it_becomes(model, image, monkeypatch):
    """As it was trained: a reduced image that was not enlarged looks sharp."""
    seen = []
    forward = ContrastiveEncoder.forward
    monkeypatch.setattr(ContrastiveEncoder, "forward", lambda self, part: seen.append(part) or forward(self, part))
    model(image, "enlarge the H&E image 2 times", coarse_only=True)
    assert torch.allclose(seen[0], resized(image, (64, 96)))


def test_a_prompt_leaves_the_mode_of_the_parts_alone(model):
    model.train()
    model.coarse.eval()
    working = model.working(model.asked(DENOISE))
    assert (working.training, model.coarse.training, model.sampler.denoiser.training) == (True, False, True)
    model.eval()


def test_stains_without_examples_are_doubted(model):
    for words in ({"task": "stain_af"}, {"task": "denoise", "source": "ihc"}, {"prompt": "denoise the IHC image"}):
        with pytest.warns(UnknownPrompt, match="trained on photographed images alone"):
            model.asked(**words)
