import math
import runpy
import sys

import numpy as np
import piq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn.functional import avg_pool2d, interpolate

from pathorestore.metrics import structure
from pathorestore.metrics.accumulators.structure import GMSD, MSSSIM, EdgePreservation, PowerSpectrumDistance
from pathorestore.metrics.fidelity import ms_ssim
from pathorestore.metrics.structure import edge_preservation, gmsd, power_spectrum_distance

SEEDS = st.integers(0, 10_000)
SIDES = st.integers(12, 40)
_PREWITT = np.array([[1.0, 0, -1]] * 3)
ALL = [ms_ssim, gmsd, edge_preservation, power_spectrum_distance]
CLASSES = [(MSSSIM, ms_ssim), (GMSD, gmsd), (EdgePreservation, edge_preservation), (PowerSpectrumDistance, power_spectrum_distance)]
HIGHER_IS_BETTER = {ms_ssim, edge_preservation}


def _pair(seed, height=24, width=24, batch=2, spread=60):
    """Random 8-bit images and a noisy copy of each, b 3 h w."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, 256, (batch, 3, height, width))
    restored = np.clip(clean + rng.integers(-spread, spread + 1, clean.shape), 0, 255)
    return (torch.from_numpy(image).float() / 255 for image in (restored, clean))


def _grey(levels):
    """Grey levels h w as an image 1 3 h w."""
    return torch.as_tensor(levels).float().expand(1, 3, *np.shape(levels)) / 255


def _textures(side=192):
    """Four textures of one place each, from fine to coarse, 4 3 h w."""
    gen = torch.Generator().manual_seed(3)
    fields = [
        interpolate(torch.rand(1, 3, side // grain, side // grain, generator=gen), size=side, mode="bilinear") for grain in (2, 4, 8, 16)
    ]
    return torch.cat(fields).clamp(0, 1)


def _noisy(image, strength=0.02):
    return (image + strength * torch.randn(image.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)


# --- all of them ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ALL)
def test_equal_images_have_the_ideal_value(metric):
    textures = _textures()
    ideal = 1.0 if metric in HIGHER_IS_BETTER else 0.0
    assert metric(textures, textures).tolist() == pytest.approx([ideal] * 4, abs=1e-6)


@pytest.mark.parametrize("metric", ALL)
def test_every_image_is_nearer_to_its_noisy_copy_than_to_another_image(metric):
    textures = _textures()
    near, far = metric(_noisy(textures), textures), metric(_noisy(textures).roll(1, 0), textures)
    assert (near > far).all() if metric in HIGHER_IS_BETTER else (near < far).all()


@pytest.mark.parametrize("metric", ALL)
def test_values_worsen_with_noise(metric):
    textures = _textures()[1:2]
    values = [metric(_noisy(textures, strength), textures).item() for strength in (0.01, 0.03, 0.1, 0.3)]
    assert values == sorted(values, reverse=metric in HIGHER_IS_BETTER)
    assert values[0] != values[-1]


@pytest.mark.parametrize("metric", ALL)
def test_each_image_has_a_number_of_its_own(metric):
    restored, clean = _pair(1, 176, 180, batch=3)
    together = metric(restored, clean)
    assert together.shape == (3,)
    assert together.dtype == torch.float32
    assert torch.allclose(together[1:2], metric(restored[1:2], clean[1:2]), atol=1e-6)


@pytest.mark.parametrize("metric", ALL)
def test_images_are_seen_as_8_bit_clipped_to_their_range(metric):
    restored, clean = _pair(2, 176, 176)
    finer = restored + 0.4 / 255 * torch.sign(torch.linspace(-1, 1, 176))
    assert torch.equal(metric(finer, clean), metric(restored, clean))
    assert torch.equal(metric(3 * (restored - 0.5), clean), metric((3 * (restored - 0.5)).clamp(0, 1), clean))


@pytest.mark.parametrize("metric", ALL)
def test_shapes_that_differ_are_refused(metric):
    _, clean = _pair(0)
    with pytest.raises(ValueError, match="one shape"):
        metric(clean[..., :-1], clean)


@pytest.mark.parametrize("metric", [ms_ssim, gmsd, power_spectrum_distance])
def test_nan_gives_nan(metric):
    _, clean = _pair(0, 176, 176)
    spoiled = clean.clone()
    spoiled[0, 0, 80, 80] = torch.nan
    values = metric(spoiled, clean)
    assert values[0].isnan()
    assert not values[1].isnan()


# --- MS-SSIM --------------------------------------------------------------------------------------------------------------------------


def test_ms_ssim_is_made_of_the_terms_of_torchmetrics_away_from_the_border():
    # torchmetrics itself averages its coarsest scale over a reflected border too, which moves the result by some thousandths
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as whole
    from torchmetrics.functional.image import structural_similarity_index_measure as one_scale

    x, y = (image.double() for image in _pair(4, 181, 190, batch=1))
    found, expected, by_torchmetrics = ms_ssim(x, y).item(), 1.0, whole(x, y, data_range=1.0).item()
    for weight in (0.0448, 0.2856, 0.3001, 0.2363):
        _, structure_term = one_scale(x, y, data_range=1.0, return_contrast_sensitivity=True)
        expected *= structure_term.item() ** weight
        x, y = avg_pool2d(x, 2), avg_pool2d(y, 2)
    _, coarsest = one_scale(x, y, data_range=1.0, return_full_image=True)
    expected *= coarsest[..., 5:-5, 5:-5].mean().item() ** 0.1333
    assert found == pytest.approx(expected, abs=1e-5)
    assert found == pytest.approx(by_torchmetrics, abs=0.01)


def test_ms_ssim_is_that_of_piq_on_grey_images_of_even_sides():
    # piq multiplies the scales before it averages the channels, and pads odd sides
    textures = _textures().mean(1, keepdim=True).mul(255).round().div(255)
    noisy = _noisy(textures, 0.2).mul(255).round().div(255)
    expected = piq.multi_scale_ssim(noisy, textures, data_range=1.0, reduction="none")
    assert ms_ssim(noisy, textures).tolist() == pytest.approx(expected.tolist(), abs=2e-5)


def test_ms_ssim_of_opposite_structure_is_0():
    texture = _textures()[1:2]
    assert ms_ssim(1 - texture, texture).item() == 0


def test_ms_ssim_of_flat_images_is_the_luminance_term_of_the_coarsest_scale():
    # Wang et al. 2003, eq. 7: contrast and structure are 1, the luminance has the exponent 0.1333
    a, b, c1 = 80, 120, 2.55**2
    first, second = (torch.full((1, 3, 176, 176), level / 255) for level in (a, b))
    assert ms_ssim(first, second).item() == pytest.approx(((2 * a * b + c1) / (a * a + b * b + c1)) ** 0.1333, rel=1e-5)


def test_ms_ssim_says_from_which_side_on_it_works():
    with pytest.raises(ValueError, match="at least 176 px"):
        ms_ssim(torch.zeros(1, 3, 175, 300), torch.zeros(1, 3, 175, 300))
    assert ms_ssim(torch.zeros(1, 3, 176, 176), torch.zeros(1, 3, 176, 176)).item() == 1


# --- GMSD -----------------------------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, height=SIDES, width=SIDES)
def test_gmsd_is_that_of_piq_with_its_defaults_on_8_bit_values(seed, height, width):
    # data_range 1 with t = 170 / 255^2 is the paper's T = 170 on levels 0..255; both take grey by BT.601 and zeros beyond the border
    restored, clean = _pair(seed, height, width)
    expected = piq.gmsd(restored, clean, data_range=1.0, t=170 / 255**2, reduction="none")
    assert gmsd(restored, clean).tolist() == pytest.approx(expected.tolist(), abs=2e-6)


def test_gmsd_of_a_step_against_a_flat_image_is_worked_by_hand():
    # after halving, 4 x 8 px with a step of 60 levels between columns 4 and 5; the flat image is black, as is the ground beyond the border
    step = np.zeros((8, 16))
    step[:, 8:] = 60
    gradient = np.hypot(*(ndimage.correlate(step[::2, ::2], kernel / 3, mode="constant") for kernel in (_PREWITT, _PREWITT.T)))
    expected = (170 / (gradient**2 + 170)).std()
    assert gmsd(_grey(step), _grey(np.zeros_like(step))).item() == pytest.approx(expected, rel=1e-6)


@given(seed=SEEDS)
def test_gmsd_does_not_care_which_image_is_the_clean_one(seed):
    restored, clean = _pair(seed)
    assert torch.allclose(gmsd(restored, clean), gmsd(clean, restored))


# --- edge preservation ----------------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, height=SIDES, width=SIDES)
def test_edge_preservation_is_the_correlation_of_scipys_laplacians(seed, height, width):
    restored, clean = _pair(seed, height, width, batch=1)
    greys = (np.tensordot([0.299, 0.587, 0.114], (image[0] * 255).round().double().numpy(), 1) for image in (restored, clean))
    first, second = (ndimage.laplace(grey)[1:-1, 1:-1].ravel() for grey in greys)
    assert edge_preservation(restored, clean).item() == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-6)


@given(seed=SEEDS, offset=st.integers(-50, 50), gain=st.sampled_from([1, 2]))
def test_edge_preservation_is_blind_to_brightness_and_contrast(seed, offset, gain):
    levels = np.random.default_rng(seed).integers(50, 78, (16, 16))
    assert edge_preservation(_grey(gain * levels + offset), _grey(levels)).item() == pytest.approx(1, abs=1e-6)
    assert edge_preservation(_grey(200 - levels), _grey(levels)).item() == pytest.approx(-1, abs=1e-6)


def test_edge_preservation_needs_edges_in_the_clean_image_and_finds_none_kept_in_a_flat_one():
    _, textured = _pair(0, batch=1)
    flat, ramp = torch.full_like(textured, 0.3), _grey(np.tile(np.arange(24) * 7, (24, 1)))
    assert edge_preservation(textured, flat).isnan().all()
    assert edge_preservation(textured, ramp).isnan().all()
    assert edge_preservation(flat, textured).item() == 0


def test_edge_preservation_refuses_what_has_no_edges_at_all():
    _, clean = _pair(0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        edge_preservation(clean * torch.nan, clean)
    with pytest.raises(ValueError, match="at least 3 px"):
        edge_preservation(clean[..., :2], clean[..., :2])


# --- power spectra --------------------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, height=st.integers(8, 40), width=st.integers(8, 40), gain=st.sampled_from([2, 3, 5]))
def test_contrast_scaled_by_a_factor_is_that_factor_in_db_exactly(seed, height, width, gain):
    steps = np.random.default_rng(seed).integers(-20, 21, (height, width))
    stretched, plain = _grey(128 + gain * steps), _grey(128 + steps)
    for restored, clean in ((stretched, plain), (plain, stretched)):
        assert power_spectrum_distance(restored, clean).item() == pytest.approx(20 * math.log10(gain), rel=1e-6)


@given(seed=SEEDS, offset=st.integers(-100, 100))
def test_brightness_does_not_change_the_power_spectrum(seed, offset):
    levels = np.random.default_rng(seed).integers(110, 146, (20, 24))
    assert power_spectrum_distance(_grey(levels + offset), _grey(levels)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("sigma_px", "height", "width"), [(0.3, 256, 256), (0.7, 256, 256), (0.5, 128, 256)])
def test_blur_is_the_root_mean_square_of_its_transfer_function_in_db(sigma_px, height, width):
    noise = np.random.default_rng(0).normal(0, 35, (height, width))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    blurred = np.fft.ifft2(np.fft.fft2(noise) * np.exp(-2 * (math.pi * sigma_px * frequency) ** 2)).real
    rings = np.arange(1, height // 2 + 1) / height
    expected = np.sqrt(np.mean((20 * np.log10(np.exp(-2 * (math.pi * sigma_px * rings) ** 2))) ** 2))
    assert power_spectrum_distance(_grey(128 + blurred), _grey(128 + noise)).item() == pytest.approx(expected, rel=0.02)


def test_pixels_where_the_window_is_zero_do_not_matter():
    levels = np.random.default_rng(0).integers(100, 156, (24, 30))
    framed = levels.copy()
    framed[[0, -1]] = 255
    framed[:, [0, -1]] = 255
    assert power_spectrum_distance(_grey(framed), _grey(levels)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 128)])
def test_white_noise_of_twice_the_strength_is_6_db_apart(height, width):
    rng = np.random.default_rng(0)
    weak, strong = (_grey(128 + rng.normal(0, spread, (height, width))) for spread in (10, 20))
    # rings of few frequencies scatter
    assert power_spectrum_distance(strong, weak).item() == pytest.approx(20 * math.log10(2), abs=0.4)


def test_a_single_wave_lies_in_the_ring_of_its_frequency():
    # amplitude 40 at 8 cycles in 64 px, periodic Hann spread: the ring's own power, worked out directly
    x = np.arange(64)
    wave = np.tile(128 + np.round(40 * np.cos(2 * math.pi * 8 * x / 64)), (64, 1))
    spectrum = structure._radial_spectrum_db(_grey(wave)[:, 0].double() * 255)[0]
    assert spectrum.argmax().item() == 8 - 1
    window = np.hanning(64)
    # the wave's total power under the window is amplitude^2 / 4 * (sum of w^2)^2 * 64^2 at its two frequencies (Parseval)
    rings = np.round(np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)) * 64)
    levels = wave - (wave * window[:, None] * window).sum() / window.sum() ** 2
    power = np.abs(np.fft.fft2(levels * window[:, None] * window)) ** 2
    assert spectrum[7].item() == pytest.approx(10 * math.log10(power[rings == 8].mean()), abs=1e-4)


def test_flat_images_hold_the_power_of_rounding_and_nothing_is_infinite():
    flat, other = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.9)
    assert power_spectrum_distance(flat, other).item() == 0
    rng = np.random.default_rng(0)
    noise = _grey(128 + rng.normal(0, 20, (64, 64)))
    # white noise of 20 levels above a rounding error of 1/sqrt(12) level
    assert power_spectrum_distance(torch.full_like(noise, 0.5), noise).item() == pytest.approx(20 * math.log10(20 * 12**0.5), abs=0.5)


def test_a_shifted_texture_keeps_its_spectrum_and_a_blurred_one_does_not():
    texture = _textures()[:1]
    blurred = interpolate(interpolate(texture, scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear")
    shifted, lost = power_spectrum_distance(texture.roll((5, 9), (-1, -2)), texture), power_spectrum_distance(blurred, texture)
    assert shifted.item() < lost.item() / 3


def test_spectra_need_images_of_8_px():
    with pytest.raises(ValueError, match="at least 8 px"):
        power_spectrum_distance(torch.zeros(1, 3, 7, 40), torch.zeros(1, 3, 7, 40))


# --- accumulators ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "function"), CLASSES)
def test_accumulated_values_are_the_mean_over_images_whatever_the_batches_and_processes(metric, function):
    restored, clean = _pair(8, 176, 176, batch=4)
    whole, first, second = metric(), metric(), metric()
    whole.update(restored, clean)
    for part in (slice(0, 2), slice(2, 3)):
        first.update(restored[part], clean[part])
    second.update(restored[3:], clean[3:])
    first.merge_state(second)
    assert whole.compute().item() == pytest.approx(function(restored, clean).mean().item(), rel=1e-6)
    assert first.compute().item() == pytest.approx(whole.compute().item(), rel=1e-6)
    assert metric().higher_is_better is (function in HIGHER_IS_BETTER)
    assert metric().is_differentiable is False


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_images_without_edges_are_left_out_and_counted():
    restored, clean = _pair(9, batch=2)
    metric, flat = EdgePreservation(), torch.full_like(clean[:1], 0.4)
    assert metric.compute().isnan()
    metric.update(flat, flat)
    assert metric.compute().isnan()
    metric.update(torch.cat([restored, flat]), torch.cat([clean, flat]))
    assert metric.compute().item() == pytest.approx(edge_preservation(restored, clean).mean().item(), rel=1e-6)
    assert metric.undefined.item() == 2
    assert metric.images.item() == 2


@settings(max_examples=1)
@given(seed=SEEDS)
def test_structure_needs_no_heavy_package(seed):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torchmetrics", "torchvision", "skimage", "scipy"):
            patch.setitem(sys.modules, name, None)
        bare = runpy.run_path(structure.__file__)
        restored, clean = _pair(seed)
        assert torch.equal(bare["gmsd"](restored, clean), gmsd(restored, clean))
