"""Laws of the acquisition chain: what a camera and a file format do to an image."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.degradations import acquisition


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sharpness(image: torch.Tensor) -> torch.Tensor:
    return image.diff(dim=-1).abs().mean((-3, -2, -1))


@given(photons=st.floats(100, 10_000), intensity=st.floats(0.05, 1))
def test_shot_noise_has_poisson_variance(photons: float, intensity: float) -> None:
    noise = acquisition.shot_noise(torch.full((1, 3, 80, 80), intensity), photons=photons, generator=seeded()) - intensity
    assert noise.var().item() == pytest.approx(intensity / photons, rel=0.06)


def test_read_noise_ignores_the_signal() -> None:
    light = torch.cat([torch.zeros(1, 3, 80, 80), torch.ones(1, 3, 80, 80)])
    noise = acquisition.read_noise(light, deviation=0.02, generator=seeded()) - light
    assert torch.allclose(noise.std((1, 2, 3)), torch.tensor([0.02, 0.02]), rtol=0.05)


@given(levels=st.integers(2, 256), seed=st.integers(0, 50))
def test_quantising_twice_is_quantising_once_and_errs_by_half_a_step(levels: int, seed: int) -> None:
    image = torch.rand(1, 3, 8, 8, generator=seeded(seed))
    once = acquisition.quantise(image, levels=levels)
    assert torch.allclose(acquisition.quantise(once, levels=levels), once)
    assert (once - image).abs().max() <= 0.5 / (levels - 1) + 1e-6


@given(phase=st.integers(0, 3), value=st.floats(0, 1))
def test_demosaicing_keeps_what_the_array_sees_and_linear_ramps(phase: int, value: float) -> None:
    flat = torch.full((1, 3, 9, 10), value)
    assert torch.allclose(acquisition.demosaic(flat, phase=phase), flat, atol=1e-6)
    ramp = (torch.arange(9.0)[:, None] + 2 * torch.arange(10.0)).expand(1, 3, 9, 10) / 30
    assert torch.allclose(acquisition.demosaic(ramp, phase=phase)[..., 2:-2, 2:-2], ramp[..., 2:-2, 2:-2], atol=1e-6)
    noise = torch.rand(1, 3, 8, 8, generator=seeded(phase))
    kept = (acquisition.demosaic(noise, phase=phase) == noise).sum((0, 2, 3))
    assert kept.tolist() == [16, 32, 16]


def test_each_phase_puts_the_red_filter_into_another_corner() -> None:
    for corner in range(4):
        red = torch.zeros(1, 3, 4, 4)
        red[:, 0, corner // 2, corner % 2] = 1
        seen = [phase for phase in range(4) if acquisition.demosaic(red, phase=phase).max() == 1]
        assert seen == [corner]


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_compression_errs_more_at_lower_quality(codec: str, nuclei_image: torch.Tensor) -> None:
    errors = [(acquisition.compress(nuclei_image, quality=q, codec=codec) - nuclei_image).abs().mean().item() for q in (95, 60, 20)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.1


def test_jpeg_subsamples_chroma_but_not_lightness() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 32, 32)
    colour = torch.stack([stripes, 0.5 + 0 * stripes, 1 - stripes], 1)
    grey = stripes[:, None].expand(1, 3, 32, 32)
    assert (acquisition.compress(colour, quality=95) - colour).abs().mean() > 0.1
    assert (acquisition.compress(grey, quality=95) - grey).abs().mean() < 0.03


def test_unknown_compression_is_refused() -> None:
    for options in ({"quality": 50, "codec": "gif"}, {"quality": 0}, {"quality": 101}):
        with pytest.raises(ValueError, match="expected 'jpeg' or 'webp'"):
            acquisition.compress(torch.zeros(1, 3, 8, 8), **options)  # type: ignore[arg-type]


def test_sharpening_raises_contrast_and_zero_of_it_does_nothing(nuclei_image: torch.Tensor) -> None:
    assert torch.allclose(acquisition.unsharp(nuclei_image, amount=0.0, sigma_px=1.0), nuclei_image, atol=1e-6)
    assert sharpness(acquisition.unsharp(nuclei_image, amount=1.0, sigma_px=1.0)) > 1.2 * sharpness(nuclei_image)


@given(sigma=st.floats(0.8, 2.5))
def test_gaussian_blur_has_its_variance(sigma: float) -> None:
    spot = torch.zeros(1, 1, 41, 41)
    spot[..., 20, 20] = 1
    profile = acquisition.gaussian_blur(spot, sigma_px=sigma).sum((0, 1, 2))
    assert profile.sum().item() == pytest.approx(1, abs=1e-5)
    assert (profile * (torch.arange(41) - 20) ** 2).sum().item() == pytest.approx(sigma**2, rel=0.08)


def test_motion_blur_smears_along_its_line_only() -> None:
    rows = torch.rand(1, 3, 32, 1, generator=seeded()).expand(1, 3, 32, 32)
    assert torch.allclose(acquisition.motion_blur(rows, length_px=5.0, angle=0.0), rows, atol=1e-5)
    assert sharpness(acquisition.motion_blur(rows.mT, length_px=5.0, angle=0.0)) < 0.6 * sharpness(rows.mT)


def test_veils_move_towards_the_mean_and_towards_grey(nuclei_image: torch.Tensor) -> None:
    veiled = acquisition.glare(nuclei_image, share=0.25)
    assert torch.allclose(veiled.std((-2, -1)), 0.75 * nuclei_image.std((-2, -1)), rtol=1e-4)
    assert torch.allclose(veiled.mean((-2, -1)), nuclei_image.mean((-2, -1)), atol=1e-5)
    assert acquisition.desaturate(nuclei_image, share=1.0).std(1).max() < 1e-6


def test_gains_and_exponents_act_on_their_own(nuclei_image: torch.Tensor) -> None:
    assert torch.allclose(acquisition.white_balance(nuclei_image, gains=(1.0, 0.5, 2.0))[:, 1], nuclei_image[:, 1] / 2)
    assert torch.equal(acquisition.gamma(nuclei_image, exponent=1.0), nuclei_image)
    assert acquisition.gamma(nuclei_image, exponent=0.8).mean() > nuclei_image.mean()
