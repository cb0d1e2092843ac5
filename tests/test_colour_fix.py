"""Colour fixes against their formulas, and what they leave as it is."""

import pytest
import torch
import torch.nn.functional as F

from pathorestore.functional.colour_fix import RADIUS_PX, adain, density_change, low_band, wavelet


@pytest.fixture
def pair(generator):
    """A sample and a reference of other colours, in double precision."""
    sample = torch.rand(2, 3, 40, 33, dtype=torch.float64, generator=generator)
    return sample, 0.2 + 0.5 * torch.rand(2, 3, 40, 33, dtype=torch.float64, generator=generator)


def bands(image):
    """The sum of x_i - blur(x_i) over five levels, and the last blur, pixel by pixel from the published kernel."""
    kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=image.dtype) / 16
    height, width = image.shape[-2:]
    high = torch.zeros_like(image)
    for level in range(5):
        reach = 2**level
        padded = F.pad(image, (reach,) * 4, mode="replicate")
        blurred = sum(
            kernel[y, x] * padded[..., y * reach : y * reach + height, x * reach : x * reach + width] for y in range(3) for x in range(3)
        )
        high, image = high + image - blurred, blurred
    return high, image


def test_the_wavelet_fix_is_the_detail_of_one_on_the_low_band_of_the_other(pair):
    sample, reference = pair
    assert torch.allclose(wavelet(sample, reference), bands(sample)[0] + bands(reference)[1], atol=1e-12)


@pytest.mark.parametrize("fix", [wavelet, adain])
def test_an_image_fixed_by_itself_stays_as_it_is(fix, pair):
    assert torch.allclose(fix(pair[0], pair[0]), pair[0], atol=1e-12)


@pytest.mark.parametrize("fix", [wavelet, adain])
def test_a_shift_in_colour_of_the_sample_changes_nothing(fix, pair):
    sample, reference = pair
    shift = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)[:, None, None]
    assert torch.allclose(fix(sample + shift, reference), fix(sample, reference), atol=1e-12)


def test_a_shift_in_colour_of_the_reference_is_taken_over(pair):
    sample, reference = pair
    assert torch.allclose(wavelet(sample, reference + 0.3), wavelet(sample, reference) + 0.3, atol=1e-12)


def test_adain_gives_the_mean_and_deviation_of_the_reference_to_each_channel(pair):
    sample, reference = pair[0], pair[1] * torch.tensor([0.5, 1, 2], dtype=torch.float64)[:, None, None]
    fixed = adain(sample, reference)
    assert torch.allclose(fixed.mean((2, 3)), reference.mean((2, 3)), atol=1e-12)
    # both deviations are taken with 1e-5 added to their squares
    gain = ((reference.var((2, 3)) + 1e-5) / (sample.var((2, 3)) + 1e-5)).sqrt()
    assert torch.allclose(fixed.std((2, 3)), gain * sample.std((2, 3)), rtol=0, atol=1e-12)


def test_adain_of_a_flat_sample_is_finite():
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert torch.allclose(adain(flat, flat + 0.2), flat + 0.2, atol=1e-6)


def test_a_pixel_of_the_low_band_looks_as_far_as_it_says():
    spot = torch.zeros(1, 1, 101, 101)
    spot[..., 50, 50] = 1
    rows = low_band(spot)[0, 0].sum(1).nonzero().flatten()
    assert (rows.min(), rows.max()) == (50 - RADIUS_PX, 50 + RADIUS_PX)


@pytest.fixture
def dyes(generator):
    """A reference, and one image with its detail changed into another, all with every intensity well above black."""
    return tuple(0.1 + 0.8 * torch.rand(2, 3, 24, 31, dtype=torch.float64, generator=generator) for _ in range(3))


def test_a_change_of_dye_is_that_of_the_mean_density_without_its_low_band(dyes):
    reference, before, after = dyes
    change = (before.log10() - after.log10()).mean(1, keepdim=True)
    change = change - low_band(change, levels=2)
    density = -reference.log10()
    expected = density * (1 + change / (density.mean(1, keepdim=True) + 0.02)).clamp(min=0.1)
    assert torch.allclose(-density_change(reference, before, after, levels=2).log10(), expected, atol=1e-12)


def test_a_change_of_dye_keeps_the_direction_of_the_density_of_every_pixel(dyes):
    reference, before, after = dyes
    old, new = (F.normalize(-image.log10()) for image in (reference, density_change(reference, before, after, levels=3)))
    assert torch.allclose(old, new, atol=1e-12)


def test_no_change_of_dye_leaves_the_reference(dyes):
    reference, before, _ = dyes
    assert torch.allclose(density_change(reference, before, before, levels=3), reference, atol=1e-12)
    # colour alone is none: one channel gets what another loses
    shifted = before * torch.tensor([1.05, 1 / 1.05, 1], dtype=torch.float64)[:, None, None]
    assert torch.allclose(density_change(reference, before, shifted, levels=3), reference, atol=1e-12)


def test_on_clean_glass_half_of_a_change_is_drawn_and_on_tissue_most(dyes):
    _, before, after = dyes
    whole = (before.log10() - after.log10()).mean(1, keepdim=True)
    whole = 0.02 * (whole - low_band(whole, levels=3))
    for density, share in ((0.02, 0.5), (0.3, 0.3 / 0.32)):
        even = torch.full_like(before, 10**-density)
        soft = before * 10 ** (-whole)
        found = -density_change(even, before, soft, levels=3).log10() - density
        expected = share * (whole - low_band(whole, levels=3))
        assert torch.allclose(found, expected.expand_as(found), atol=1e-9)


def test_no_dye_is_drawn_where_there_is_none(dyes):
    """On glass, and within the range whatever comes."""
    _, before, after = dyes
    glass = torch.ones_like(before)
    assert torch.equal(density_change(glass, before, after, levels=3), glass)
    wild = density_change(2 * before - 0.5, torch.zeros_like(before), 9 * after, levels=3)
    assert wild.isfinite().all()
    assert 0 <= wild.min() <= wild.max() <= 1
