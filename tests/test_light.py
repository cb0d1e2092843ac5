"""A restored image holds the light of the degraded one, wherever that is looked at from afar."""

import torch

from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.degradations.optical import degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.functional.color import srgb_to_linear
from pathorestore.functional.noise import stream
from pathorestore.pipelines.light import keep_light


def _from_afar(image):
    return gaussian_blur(srgb_to_linear(image.clamp(0, 1)), sigma_px=16.0)[..., 32:-32, 32:-32]


def test_defocus_moves_light_and_neither_makes_nor_takes_it(nuclei_image):
    sharp = nuclei_image.repeat(1, 1, 2, 2)
    pair = degrade(sharp, torch.tensor([3.2]), setting=Setting.ideal(), generator=stream(0))
    assert (_from_afar(pair.degraded) - _from_afar(pair.clean)).abs().mean() < 0.005
    kept = keep_light(pair.clean, pair.degraded)
    assert (kept - pair.clean).abs().mean() < 0.004  # the truth is hardly touched, by a grey level


def test_wrong_colours_are_put_right_and_detail_stays(nuclei_image):
    sharp = nuclei_image.repeat(1, 1, 2, 2)
    degraded = gaussian_blur(sharp, sigma_px=2.0)
    wrong = (sharp * torch.tensor([0.8, 1.0, 1.1]).view(1, 3, 1, 1)).clamp(0, 1)
    kept = keep_light(wrong, degraded)
    before, after = ((_from_afar(image) - _from_afar(degraded)).abs().max() for image in (wrong, kept))
    assert after < 0.2 * before
    assert (kept - sharp).square().mean() < 0.2 * (wrong - sharp).square().mean()


def test_small_differences_are_left_to_the_network(nuclei_image):
    near = nuclei_image + 0.002
    assert torch.allclose(keep_light(near, nuclei_image), near, atol=1e-6)


def test_overshoot_is_left_for_the_blend():
    image = torch.full((1, 3, 64, 64), 0.5)
    restored = image.clone()
    restored[..., 32, 32] = 1.3
    assert float(keep_light(restored, image)[..., 32, 32].max()) > 1.2
