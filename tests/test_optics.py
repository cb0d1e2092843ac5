"""Laws of the defocus optics, against closed forms and a brute-force pupil autocorrelation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.functional.color import linear_to_srgb
from pathorestore.functional.optics import (
    Optics,
    PsfTable,
    band_mtf,
    blur,
    ctf_value,
    frequency_grid,
    measured_ctf,
    otf,
    psf,
    transfer,
    wiener,
)
from pathorestore.functional.pupil import radial_transfer

GREEN = Optics(wavelengths_um=(0.55,), focal_shift_um=(0.0,))
APERTURES = st.floats(0.3, 0.9)
DISTANCES = st.floats(0.0, 6.0)
CONDENSERS = st.sampled_from([0.5, 0.7, 1.0])


def at(*defocus_um: float) -> torch.Tensor:
    return torch.tensor(defocus_um, dtype=torch.float32)


def brute_force_transfer(optics: Optics, defocus_um: float, grid: int = 1024, step_um: float = 0.08) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies and Re TCC(f, 0) along one axis from a sampled pupil (Goodman, Introduction to Fourier Optics)."""
    wavelength, index = optics.wavelengths_um[0], optics.refractive_index
    axis = torch.fft.fftfreq(grid, step_um, dtype=torch.float64)
    square = axis[:, None] ** 2 + axis**2
    rho = square.sqrt() * wavelength / optics.numerical_aperture
    if optics.paraxial:
        phase = -math.pi * wavelength * defocus_um * square / index
    else:
        phase = 2 * math.pi * defocus_um * (((index / wavelength) ** 2 - square).clamp(min=0).sqrt() - index / wavelength)
    phase = phase + 2 * math.pi * optics.spherical_waves * (6 * rho**4 - 6 * rho**2 + 1)
    inside = (rho <= 1).double()
    pupil = torch.polar(inside, phase * inside)
    field, lit = torch.fft.ifft2(pupil), torch.fft.ifft2(pupil * (rho <= optics.condenser_ratio))
    spectrum = torch.fft.fft2((field * lit.conj()).real).real
    return axis[: grid // 2], (spectrum / spectrum[0, 0])[0, : grid // 2]


# lam .55 um, NA .75, n 1, .25 um/px; sampled pupil of 1024 points at 0.125 um, itself good to about 1e-3
EXACT = {0.2: 0.9706, 0.4: 0.8873, 0.8: 0.6199, 1.6: 0.2351, 2.4: 0.1195, 3.2: 0.0668, 4.0: 0.0397, 4.8: 0.0248, 6.4: 0.0121, 9.6: 0.0070}
PARAXIAL = {0.2: 0.979, 0.4: 0.9185, 0.8: 0.7103, 1.6: 0.2994, 2.4: 0.1761, 3.2: 0.1208, 4.0: 0.0809, 4.8: 0.0567, 6.4: 0.0339, 9.6: 0.0202}


@pytest.mark.parametrize(("paraxial", "golden"), [(False, EXACT), (True, PARAXIAL)])
def test_the_ctf_value_meets_the_golden_numbers(*, paraxial: bool, golden: dict[float, float]) -> None:
    value = ctf_value(at(*golden), paraxial=paraxial)
    assert torch.allclose(value, at(*golden.values()), atol=2e-3, rtol=0)


def test_the_ctf_value_falls_strictly_from_one() -> None:
    value = ctf_value(torch.arange(0, 10.01, 0.2))
    assert value[0] == 1
    assert (value.diff() < 0).all()


@given(z=DISTANCES, waves=st.floats(-0.3, 0.3))
def test_the_ctf_value_is_one_in_focus_and_even_whatever_the_aberration(z: float, waves: float) -> None:
    value = ctf_value(at(0.0, z, -z), spherical_waves=round(waves, 1))
    assert value[0] == 1
    assert value[1] == value[2]


def test_the_ctf_table_agrees_with_the_direct_computation_also_far_out() -> None:
    defocus = torch.linspace(0, 20, 101)
    assert torch.allclose(ctf_value(defocus), band_mtf(defocus, GREEN), atol=5e-4, rtol=0)


def test_in_focus_the_transfer_function_is_the_analytic_mtf() -> None:
    # Goodman, eq. 6-31: (2/pi)(acos s - s sqrt(1 - s^2)), s = f lam / (2 NA)
    s = (frequency_grid(64, 64, 0.25) * 0.55 / 1.5).clamp(max=1)
    analytic = 2 / math.pi * (s.acos() - s * (1 - s**2).sqrt())
    assert torch.allclose(transfer(at(0.0), GREEN, 64)[0, 0], analytic, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("optics", "defocus_um"),
    [
        (GREEN, 1.6),
        (Optics(wavelengths_um=(0.46,), focal_shift_um=(0.0,), spherical_waves=0.2), -4.0),
        (Optics(wavelengths_um=(0.61,), focal_shift_um=(0.0,), numerical_aperture=0.9), 2.0),
        (Optics(wavelengths_um=(0.54,), focal_shift_um=(0.0,), refractive_index=1.515, spherical_waves=0.3), 5.0),
        (Optics(wavelengths_um=(0.54,), focal_shift_um=(0.0,), paraxial=True), 3.0),
        (Optics(wavelengths_um=(0.54,), focal_shift_um=(0.0,), condenser_ratio=0.5, spherical_waves=0.1), 2.0),
    ],
)
def test_the_transfer_function_is_the_autocorrelation_of_the_pupil(optics: Optics, defocus_um: float) -> None:
    wavelength = optics.wavelengths_um[0]
    frequency, expected = brute_force_transfer(optics, defocus_um)
    shift = frequency * wavelength / optics.numerical_aperture
    found = radial_transfer(at(defocus_um), optics, wavelength, shift=shift[shift < 2.1])[0]
    assert torch.allclose(found.double(), expected[shift < 2.1], atol=1.5e-3, rtol=0)


def test_stokseths_closed_form_is_near_the_transfer_function() -> None:
    # Stokseth, JOSA 59 (1969) 1314-1321; its own error is 0.03 in focus and 0.10 far out of focus
    s = torch.linspace(0.02, 1.9, 60, dtype=torch.float64)
    for z, tolerance in ((0.0, 0.035), (1.0, 0.06), (3.0, 0.1)):
        path = z * (1 - math.sqrt(1 - 0.75**2))
        x = 4 * math.pi * path * s / 0.55 * (1 - s / 2)
        jinc = torch.where(x.abs() < 1e-9, 1.0, 2 * torch.special.bessel_j1(x) / x.clamp(min=1e-9))
        closed = (1 - 0.69 * s + 0.0076 * s**2 + 0.043 * s**3) * jinc
        assert (radial_transfer(at(z), GREEN, 0.55, shift=s)[0] - closed).abs().max() < tolerance


@given(z=DISTANCES, aperture=APERTURES, ratio=CONDENSERS, waves=st.floats(-0.3, 0.3))
def test_nothing_images_better_than_the_diffraction_limit(z: float, aperture: float, ratio: float, waves: float) -> None:
    aberrated = Optics(numerical_aperture=aperture, condenser_ratio=ratio, spherical_waves=waves, focal_shift_um=(0.3, 0.0, -0.3))
    limit = transfer(at(0.0), Optics(numerical_aperture=aperture, condenser_ratio=ratio), 32)
    assert (transfer(at(z), aberrated, 32).abs() <= limit + 2e-3).all()


@given(z=DISTANCES, aperture=APERTURES, half=st.integers(4, 20), pixel=st.floats(0.1, 0.5))
def test_a_psf_is_a_symmetric_even_distribution(z: float, aperture: float, half: int, pixel: float) -> None:
    kernel = psf(at(z, -z), Optics(numerical_aperture=aperture, pixel_um=pixel), 2 * half + 1)
    assert kernel.min() >= 0
    assert torch.allclose(kernel.sum((-2, -1)), torch.ones(2, 3), atol=1e-5)
    assert torch.allclose(kernel, kernel.flip(-1), atol=1e-6)
    assert torch.allclose(kernel, kernel.mT, atol=1e-6)
    assert torch.allclose(kernel[0], kernel[1], atol=1e-6)


def test_in_focus_the_psf_is_the_airy_pattern() -> None:
    # Born & Wolf, Principles of Optics, sec. 8.5.2: I(v) = (2 J1(v) / v)^2, v = 2 pi r NA / lam
    kernel = psf(at(0.0), Optics(wavelengths_um=(0.55,), focal_shift_um=(0.0,), pixel_um=0.05), 61)[0, 0]
    v = (2 * math.pi * 0.75 / 0.55 * 0.05 * torch.arange(31, dtype=torch.float64)).clamp(min=1e-6)
    airy = (2 * torch.special.bessel_j1(v) / v) ** 2
    assert torch.allclose((kernel[30, 30:] / kernel[30, 30]).double(), airy, atol=2e-3, rtol=0)


@pytest.mark.parametrize("optics", [Optics(spherical_waves=0.1), Optics(focal_shift_um=(0.3, 0.0, -0.3))])
def test_aberrations_make_the_sign_of_defocus_visible(optics: Optics) -> None:
    above, below = psf(at(1.0, -1.0), optics, 41)
    assert (above - below).abs().sum() > 0.05


def test_axial_colour_swaps_which_channel_is_sharp() -> None:
    peaks = psf(at(0.3, -0.3), Optics(wavelengths_um=(0.55,) * 3, focal_shift_um=(0.3, 0.0, -0.3)), 21).amax((-2, -1))
    assert peaks[0].argmax() == 2
    assert peaks[1].argmax() == 0
    assert torch.allclose(peaks[0].flip(0), peaks[1], atol=1e-6)


@given(size=st.integers(8, 40), z=DISTANCES)
def test_a_finer_frequency_grid_passes_through_the_same_transfer_function(size: int, z: float) -> None:
    coarse, fine = (transfer(at(z), GREEN, (side, side)) for side in (2 * size, 4 * size))
    # rows up to half of the grid hold the non-negative frequencies
    assert torch.allclose(fine[..., : 2 * size + 1 : 2, ::2], coarse[..., : size + 1, :], atol=1e-5)


def test_a_closed_condenser_approaches_coherent_imaging_of_absorption() -> None:
    # coherent limit of Hopkins' formula: Re[P(f) conj P(0)] = cos(phase(f) - phase(0)) inside the aperture, nothing outside
    optics = Optics(wavelengths_um=(0.55,), focal_shift_um=(0.0,), condenser_ratio=0.02)
    shift = torch.linspace(0, 0.9, 20, dtype=torch.float64)
    axial = torch.sqrt((1 / 0.55) ** 2 - (shift * 0.75 / 0.55) ** 2) - 1 / 0.55
    found = radial_transfer(at(0.8), optics, 0.55, shift=shift)[0]
    assert torch.allclose(found.double(), torch.cos(2 * math.pi * 0.8 * axial), atol=0.02, rtol=0)
    assert radial_transfer(at(0.8), optics, 0.55, shift=torch.tensor([1.05]))[0, 0] == 0


@given(ratio=CONDENSERS)
def test_the_condenser_sets_the_cut_off(ratio: float) -> None:
    optics = Optics(condenser_ratio=ratio)
    beyond = radial_transfer(at(0.0, 2.0), optics, 0.55, shift=torch.tensor([1 + ratio - 0.05, 1 + ratio + 0.01]))
    assert beyond[0, 0] > 0
    assert (beyond[:, 1] == 0).all()


def test_the_kernel_and_the_transfer_function_blur_alike(nuclei_image: torch.Tensor) -> None:
    kernel = psf(at(2.0), Optics(), 61)[0]
    direct = torch.nn.functional.conv2d(torch.nn.functional.pad(nuclei_image, (30,) * 4, mode="circular"), kernel[:, None], groups=3)
    assert torch.allclose(direct, blur(nuclei_image, otf(at(2.0), Optics(), 128)), atol=4e-3)


@given(z=st.floats(-6, 6), value=st.floats(0, 1), height=st.integers(5, 30), width=st.integers(5, 30))
def test_blur_keeps_constants_and_the_mean(z: float, value: float, height: int, width: int) -> None:
    response = transfer(at(z), Optics(), (height, width))
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(blur(torch.full((1, 3, height, width), value), response), torch.tensor(value), atol=1e-5)
    assert torch.allclose(blur(noise, response).mean((-2, -1)), noise.mean((-2, -1)), atol=1e-5)


def test_wiener_undoes_a_blur_that_lost_nothing(nuclei_image: torch.Tensor) -> None:
    response = transfer(at(0.4), Optics(pixel_um=0.4), 128)
    assert response.abs().min() > 0.01
    assert torch.allclose(wiener(blur(nuclei_image, response), response, 1e-9), nuclei_image, atol=1e-2)
    assert torch.allclose(wiener(nuclei_image, response, 1e9), blur(nuclei_image, response), atol=1e-3)


def one_over_f_texture(size: int, generator: torch.Generator) -> torch.Tensor:
    frequency = frequency_grid(size, size, 0.25).clamp(min=0.01)
    texture = torch.fft.irfft2(torch.fft.rfft2(torch.randn(size, size, generator=generator)) / frequency, s=(size, size))
    return (0.5 + 0.08 * texture / texture.std()).expand(1, 3, size, size)


def test_the_ctf_value_can_be_measured_on_a_texture(generator: torch.Generator) -> None:
    # identity I_z = I_0 * h_z; the closed value is taken at the wavelength of all three channels
    optics = Optics(wavelengths_um=(0.55,) * 3)
    defocus = at(0.2, 0.8, 1.6, 3.2, 4.8)
    texture = one_over_f_texture(256, generator)
    planes = linear_to_srgb(blur(texture, transfer(defocus, optics, 256)).clamp(0, 1))
    reference = linear_to_srgb(blur(texture, transfer(at(0.0), optics, 256)).clamp(0, 1))
    measured = measured_ctf(planes, reference, optics)
    assert measured.valid.all()
    assert torch.allclose(measured.value, ctf_value(defocus), atol=0.02, rtol=0)


def test_the_noise_floor_is_taken_out_of_the_measured_ctf(generator: torch.Generator) -> None:
    optics = Optics(wavelengths_um=(0.55,) * 3)
    texture = one_over_f_texture(256, generator)
    sharp, plane = (linear_to_srgb(blur(texture, transfer(at(z), optics, 256)).clamp(0, 1)) for z in (0.0, 2.4))
    noisy = plane + 0.01 * torch.randn(plane.shape, generator=generator)
    quiet, loud = (measured_ctf(image, sharp, optics).value for image in (plane, noisy.clamp(0, 1)))
    assert (loud - quiet).abs() < 0.06


def test_a_blank_tile_is_marked_invalid(generator: torch.Generator) -> None:
    blank = (0.9 + 0.005 * torch.randn(1, 3, 64, 64, generator=generator)).clamp(0, 1)
    assert not measured_ctf(blank, blank, Optics()).valid.any()


@given(z=st.floats(-5, 5), waves=st.sampled_from([0.0, 0.1]))
def test_the_psf_table_interpolates_the_direct_kernels(z: float, waves: float) -> None:
    table = _table(waves)
    direct = psf(at(z), table.optics, 15)
    assert (table(at(z)) - direct).abs().max() < 1e-2 * direct.max()
    assert torch.allclose(table(at(z)).sum((-2, -1)), torch.ones(1, 3), atol=1e-5)


_TABLES: dict[float, PsfTable] = {}


def _table(waves: float) -> PsfTable:
    if waves not in _TABLES:
        _TABLES[waves] = PsfTable(Optics(spherical_waves=waves, focal_shift_um=(0.3, 0.0, -0.3)), 15, 5.0)
    return _TABLES[waves]


def test_the_psf_table_has_ends() -> None:
    table = _table(0.0)
    assert torch.allclose(table(at(5.0, -5.0)), table.kernels[[-1, 0]], atol=1e-7)
    with pytest.raises(ValueError, match="larger max_defocus_um"):
        table(at(5.1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"numerical_aperture": 1.2}, "refractive_index"),
        ({"numerical_aperture": 0.0}, "between 0 and"),
        ({"condenser_ratio": 0.0}, "condenser_ratio"),
        ({"condenser_ratio": 1.1}, "condenser_ratio"),
        ({"pixel_um": 0.0}, "positive lengths"),
        ({"wavelengths_um": ()}, "positive lengths"),
        ({"focal_shift_um": (0.0,)}, "one entry for each"),
    ],
)
def test_impossible_optics_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optics(**fields)  # type: ignore[arg-type]


def test_wrong_sizes_and_hopeless_defocus_are_refused() -> None:
    with pytest.raises(ValueError, match="try 21"):
        psf(at(0.0), Optics(), 20)
    with pytest.raises(ValueError, match="size_px="):
        blur(torch.zeros(1, 3, 16, 16), transfer(at(0.0), Optics(), 18))
    with pytest.raises(ValueError, match="smaller"):
        transfer(at(900.0), Optics(), 16)
    with pytest.raises(ValueError, match="max_defocus_um=0"):
        PsfTable(Optics(), 15, 0)
