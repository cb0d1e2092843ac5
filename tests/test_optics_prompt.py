"""The optics prompt: identities, the known inverse filter as oracle, and the system that listens to it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pathorestore.degradations.slab import relative_transfer
from pathorestore.functional.color import linear_to_srgb, srgb_to_linear
from pathorestore.functional.optics import blur, transfer, wiener
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import TinyEncoder, TinyEncoderConfig
from pathorestore.models.optics_prompt import NoOptics, OpticsPrompt, OpticsPromptConfig
from pathorestore.models.pformer import PFormer, PFormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter
from pathorestore.pipelines.light import keep_light
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.refine import KeepCoarse
from pathorestore.pipelines.tiled import TiledRestorer

WEIGHTINGS = ("all", "estimated", "chosen")
BANK = OpticsPromptConfig()


def _prompt(weighting, **change):
    return OpticsPrompt(replace(BANK, weighting=weighting, **change))


def at(*z_um):
    return torch.tensor(z_um)


def _textures(batch, height=64, width=64):
    rough = torch.rand(batch, 3, height // 2 + 1, width // 2 + 1, generator=torch.Generator().manual_seed(3))
    return 0.2 + 0.6 * nn.functional.interpolate(rough, size=(height, width), mode="bilinear")


def _faint(batch, height=64, width=64):
    """Textures so faint that no filter drives them out of [0, 1]."""
    return 0.5 + 0.04 * (_textures(batch, height, width) - 0.5)


def _defocused(sharp, z_um, config=BANK):
    """What the objective makes of sharp images at one distance, with borders that join."""
    response = transfer(at(z_um), config.optics, (sharp.shape[-2], sharp.shape[-1]))
    return linear_to_srgb(blur(srgb_to_linear(sharp), response).clamp(0, 1))


@pytest.mark.parametrize("weighting", ["estimated", "chosen"])
@pytest.mark.parametrize("from_scan", [False, True])
def test_an_image_in_focus_gets_no_hints(weighting, from_scan, nuclei_image):
    prompt = _prompt(weighting, from_scan=from_scan)
    assert prompt(nuclei_image, at(0.0)).abs().max() < 1e-4
    assert prompt(nuclei_image, at(2.4)).abs().max() > 0.05


@pytest.mark.parametrize("from_scan", [False, True])
@pytest.mark.parametrize("size", [(128, 128), (96, 61)])
def test_the_filter_chosen_at_a_node_is_the_known_wiener_filter(from_scan, size):
    prompt, image = _prompt("chosen", from_scan=from_scan), _faint(2, *size)
    height, width = size
    # 61 + 2 * 32 is no size for a Fourier transform, 128 is the next
    padded = nn.functional.pad(image, (32, 32 if width == 128 else 35, 32, 32), mode="reflect")
    respond = relative_transfer if from_scan else transfer
    response = respond(at(1.8), BANK.optics, (padded.shape[-2], padded.shape[-1]))
    expected = wiener(srgb_to_linear(padded), response, BANK.noise_to_signal)[..., 32 : 32 + height, 32 : 32 + width]
    for z_um in (1.8, -1.8):  # blur has no sign without aberrations
        hints = prompt(image, at(z_um, z_um))
        assert hints.abs().max() > 0.02
        assert (srgb_to_linear(image + hints) - expected).abs().max() < 1e-4


def test_between_nodes_the_transfer_function_is_interpolated_and_beyond_the_last_it_stays():
    prompt, image = _prompt("chosen"), _faint(1)
    size = (128, 128)
    ends = transfer(at(1.2, 1.8), BANK.optics, size)
    padded = srgb_to_linear(nn.functional.pad(image, (32, 32, 32, 32), mode="reflect"))
    expected = wiener(padded, ends.mean(0, keepdim=True), BANK.noise_to_signal)[..., 32:-32, 32:-32]
    assert (srgb_to_linear(image + prompt(image, at(1.5))) - expected).abs().max() < 1e-4
    assert torch.equal(prompt(image, at(4.2)), prompt(image, at(40.0)))


@given(z_um=st.lists(st.floats(-12, 12), min_size=1, max_size=4))
def test_weights_are_not_negative_sum_to_one_and_interpolate_the_distance(z_um):
    distance = torch.tensor(z_um)
    weights = _prompt("all").weights(distance)
    assert weights.shape == (len(z_um), 7)
    assert weights.min() >= 0
    assert torch.allclose(weights.sum(1), torch.ones(len(z_um)), atol=1e-6)
    assert ((weights > 0).sum(1) <= 2).all()
    ladder = torch.tensor((0.0, *BANK.nodes_um))
    assert torch.allclose(weights @ ladder, distance.abs().clamp(max=4.2), atol=1e-5)


def test_estimated_hints_are_the_banks_changes_under_the_weights():
    image, z_um = _textures(3), at(0.2, 2.0, 9.0)
    bank, estimated = _prompt("all"), _prompt("estimated")
    changes = bank(image, z_um).unflatten(1, (6, 3)) - image[:, None]
    expected = changes * bank.weights(z_um)[:, 1:, None, None, None]
    assert torch.allclose(estimated(image, z_um).unflatten(1, (6, 3)), expected, atol=1e-6)
    silent = (bank.weights(z_um)[:, 1:] == 0)[:, :, None].expand(-1, -1, 3).flatten(1)
    assert estimated(image, z_um)[silent].abs().max() == 0


def test_the_whole_bank_ignores_the_estimate():
    image = _textures(1)
    assert torch.equal(_prompt("all")(image, at(0.0)), _prompt("all")(image, at(3.0)))


@pytest.mark.parametrize(("node", "z_um"), [(0, 0.6), (2, 1.8), (3, 2.4)])
def test_the_bank_at_the_true_node_comes_closer_to_the_sharp_image(node, z_um, nuclei_image):
    degraded = _defocused(nuclei_image, z_um)
    hints = _prompt("all")(degraded, at(0.0)).unflatten(1, (6, 3))
    inner = (..., slice(24, -24), slice(24, -24))
    before, after = (psnr(image[inner].clamp(0, 1), nuclei_image[inner]) for image in (degraded, hints[:, node]))
    assert after > before + 2
    assert hints.sub(nuclei_image[:, None])[inner].square().mean((0, 2, 3, 4)).argmin() == node


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_images_of_a_batch_do_not_see_each_other(weighting):
    prompt, image, z_um = _prompt(weighting), _textures(3), at(0.5, 1.7, 3.0)
    whole = prompt(image, z_um)
    other, other_z_um = image.clone(), z_um.clone()
    other[2], other_z_um[2] = 0.5, 0.0
    assert torch.allclose(prompt(other, other_z_um)[:2], whole[:2], atol=1e-5)
    assert torch.allclose(prompt(image[1:2], z_um[1:2]), whole[1:2], atol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("size", [(1, 1), (7, 45), (31, 64)])
def test_any_size_gives_bounded_hints_of_its_own_size(weighting, size):
    prompt = _prompt(weighting)
    image = (torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    hints = prompt(image, at(0.9, 4.0))
    assert hints.shape == (2, prompt.channels, *size)
    assert prompt.channels == (3 if weighting == "chosen" else 18)
    lowest, highest = (-0.5, 1.5) if weighting == "all" else (-1.5, 1.5)
    assert lowest <= hints.min() <= hints.max() <= highest


def test_a_plain_image_stays_plain_whatever_the_filter():
    image = torch.full((1, 3, 40, 40), 0.6)
    assert (_prompt("all")(image, at(0.0)) - 0.6).abs().max() < 1e-4


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_hints_are_full_precision_under_autocast(weighting):
    prompt, image, z_um = _prompt(weighting), _textures(1), at(1.5)
    with torch.autocast("cpu", torch.bfloat16):
        hints = prompt(image, z_um)
    assert hints.dtype == torch.float32
    assert torch.equal(hints, prompt(image, z_um))
    assert prompt(image.bfloat16(), z_um.bfloat16()).dtype == torch.float32


def test_filters_first_used_in_inference_mode_serve_training_too():
    prompt, image = _prompt("chosen", noise_to_signal=4.2e-3), _textures(1).requires_grad_()
    with torch.inference_mode():
        prompt(image, at(1.5))
    prompt(image, at(1.5).requires_grad_()).square().sum().backward()
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("preset", ["tiny", "base", "paper"])
def test_a_saved_optics_prompt_comes_back_the_same_and_holds_no_tensor(preset, tmp_path):
    prompt = OpticsPrompt(getattr(OpticsPromptConfig, preset)())
    assert prompt.state_dict() == {}
    prompt.save_pretrained(tmp_path)
    loaded, image = OpticsPrompt.from_pretrained(tmp_path), _textures(1)
    assert loaded.config == prompt.config
    assert torch.equal(loaded(image, at(1.0)), prompt(image, at(1.0)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weighting": "best"}, "weighting must be all, estimated or chosen"),
        ({"nodes_um": ()}, "nodes_um must be positive distances"),
        ({"nodes_um": (0.0, 1.0)}, "nodes_um must be positive distances"),
        ({"nodes_um": (1.0, 1.0)}, "nodes_um must be positive distances"),
        ({"nodes_um": (1.0, float("nan"))}, "nodes_um must be positive distances"),
        ({"noise_to_signal": 0.0}, "noise_to_signal must be positive"),
        ({"pad_px": -1}, "pad_px must be at least 0"),
        ({"optics": replace(BANK.optics, wavelengths_um=(0.55,), focal_shift_um=(0.0,))}, "a wavelength for each of R, G, B"),
    ],
)
def test_impossible_configurations_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(BANK, **change)


def _system(optics, **change):
    torch.manual_seed(0)
    encoder, defocus = TinyEncoder(TinyEncoderConfig.tiny()), DefocusEstimator(DefocusEstimatorConfig.tiny())
    nn.init.constant_(defocus.fc2.bias, 1.5)  # untrained, but sure of being out of focus
    prompter = Prompter(encoder, defocus, PathologyPrompt(PathologyPromptConfig.tiny()), EdgePrompt(EdgePromptConfig.tiny()), optics)
    coarse = PFormer(replace(PFormerConfig.tiny(), hint_channels=optics.channels, **change))
    nn.init.normal_(coarse.output.weight, std=0.05)
    return MoPRestorer(prompter, coarse, KeepCoarse()).eval()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_system_with_optics_restores_tiles_as_it_restores_wholes(weighting):
    system, image = _system(_prompt(weighting)), _textures(1, 128, 128)
    whole = system.restore(image, seed=1)
    assert (TiledRestorer(system, tile_px=128, overlap_px=32).restore(image, seed=1) - whole).abs().max() < 1e-6


def test_hints_follow_their_tiles_through_batches_and_in_any_order(monkeypatch):
    system, image = _system(_prompt("estimated")), _textures(1, 100, 150)
    alone = TiledRestorer(system, tile_px=64, overlap_px=16).restore(image)
    backwards = TiledRestorer(system, tile_px=64, overlap_px=16, order=lambda count: range(count - 1, -1, -1)).restore(image)
    assert torch.equal(backwards, alone)
    monkeypatch.setattr(TiledRestorer, "_groups", lambda self, order: [order[start : start + 3] for start in range(0, len(order), 3)])
    assert (TiledRestorer(system, tile_px=64, overlap_px=16).restore(image) - alone).abs().max() < 1e-4


def test_the_coarse_stage_hears_the_optics():
    system, image = _system(_prompt("chosen")), _textures(1)
    prompts = system.prepare(image)
    assert torch.allclose(prompts.optics, system.prompter.optics(image, prompts.defocus_um), atol=1e-6)
    deaf = system.coarse(image, prompts.pathology, torch.zeros_like(prompts.optics))
    heard = system.coarse(image, prompts.pathology, prompts.optics)
    assert (heard - deaf).abs().max() > 1e-3
    assert (system.restore(image) - keep_light(heard, image).clamp(0, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("optics", [_prompt("chosen"), NoOptics()])
def test_a_saved_system_keeps_its_optics_and_restores_the_same_bits(optics, tmp_path):
    system, image = _system(optics), _textures(1)
    system.save_pretrained(tmp_path)
    assert (tmp_path / "optics" / "config.json").exists() == isinstance(optics, OpticsPrompt)
    loaded = MoPRestorer.from_pretrained(tmp_path)
    assert type(loaded.prompter.optics) is type(optics)
    assert torch.equal(loaded.restore(image), system.restore(image))


def test_optics_and_coarse_stage_that_do_not_fit_are_refused():
    system = _system(_prompt("chosen"))
    with pytest.raises(ValueError, match="gives 3 channels of hints but the coarse stage expects hint_channels=0"):
        MoPRestorer(system.prompter, PFormer(PFormerConfig.tiny()), KeepCoarse())


def test_a_system_whose_routers_see_no_prompt_takes_any_prompter():
    system, image = _system(NoOptics(), prompt_dim=0), _textures(1)
    assert system.restore(image).shape == image.shape
    with pytest.raises(ValueError, match="prompts of width 192 but the coarse stage expects 191"):
        _system(NoOptics(), prompt_dim=191)
