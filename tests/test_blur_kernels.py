"""Laws of the blur kernels, against closed forms, scipy and the sums that they stand for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, special

from pathorestore.degradations import kernels

ANGLES = st.floats(-math.pi, math.pi)
SIGMAS = st.floats(0.4, 3.0)
ODD = st.integers(1, 12).map(lambda half: 2 * half + 1)


def covariance(kernel: torch.Tensor) -> np.ndarray:
    """Second moments (xx, xy), (xy, yy) of a centred kernel."""
    offset = np.arange(len(kernel)) - len(kernel) // 2
    y, x = np.meshgrid(offset, offset, indexing="ij")
    weight = kernel.double().numpy()
    return np.array([[(weight * a * b).sum() for a in (x, y)] for b in (x, y)])


def ellipse(along: float, across: float, angle: float) -> np.ndarray:
    """The covariance of an ellipse whose long axis points to (cos, sin) in x to the right and y downwards."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ np.diag([along**2, across**2]) @ turn.T


@given(along=SIGMAS, across=SIGMAS, angle=ANGLES, beta=st.floats(0.5, 4), cutoff=st.floats(0.7, math.pi), side=ODD)
def test_every_kernel_sums_to_one_and_is_symmetric_about_its_centre(
    along: float, across: float, angle: float, beta: float, cutoff: float, side: int
) -> None:
    for kernel in (
        kernels.gaussian_kernel((along, across), angle=angle, side_px=side),
        kernels.generalised_gaussian_kernel((along, across), angle=angle, beta=beta, side_px=side),
        kernels.plateau_kernel((along, across), angle=angle, beta=beta, side_px=side),
        kernels.sinc_kernel(cutoff, side_px=side),
    ):
        assert kernel.shape == (side, side)
        assert kernel.dtype == torch.float32
        assert kernel.sum().item() == pytest.approx(1, abs=1e-5)
        assert torch.allclose(kernel, kernel.flip(0, 1), atol=1e-7)


@given(sigma=SIGMAS, side=ODD)
def test_an_isotropic_gaussian_is_the_product_of_two_lines_and_the_filter_of_scipy(sigma: float, side: int) -> None:
    kernel = kernels.gaussian_kernel((sigma, sigma), side_px=side)
    line = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * sigma**2))
    assert np.allclose(kernel, np.outer(line, line) / line.sum() ** 2, atol=1e-7)
    spot = np.zeros((side, side))
    spot[side // 2, side // 2] = 1
    assert np.allclose(kernel, ndimage.gaussian_filter(spot, sigma, radius=side // 2), atol=1e-7)


@given(along=st.floats(1.0, 4.0), across=st.floats(1.0, 4.0), angle=ANGLES)
def test_an_anisotropic_gaussian_has_the_covariance_that_was_asked_for(along: float, across: float, angle: float) -> None:
    kernel = kernels.gaussian_kernel((along, across), angle=angle, side_px=61)
    assert np.allclose(covariance(kernel), ellipse(along, across, angle), atol=1e-3)
    spread = kernels.spread_px2(kernel)
    assert np.allclose(spread, np.diag(ellipse(along, across, angle))[::-1], atol=1e-3)


def test_a_positive_angle_turns_the_long_axis_downwards() -> None:
    kernel = kernels.gaussian_kernel((4.0, 1.0), angle=math.pi / 4, side_px=21)
    assert kernel[15, 15] > 100 * kernel[5, 15]
    flat = kernels.gaussian_kernel((4.0, 1.0), side_px=21)
    assert flat[10, 15] > 100 * flat[15, 10]


@given(along=SIGMAS, across=SIGMAS, angle=ANGLES, beta=st.floats(0.5, 4))
def test_turning_by_pi_changes_nothing_and_by_half_of_it_swaps_the_axes(along: float, across: float, angle: float, beta: float) -> None:
    for make in (kernels.generalised_gaussian_kernel, kernels.plateau_kernel):
        kernel = make((along, across), angle=angle, beta=beta, side_px=15)
        assert torch.allclose(make((along, across), angle=angle + math.pi, beta=beta, side_px=15), kernel, atol=1e-6)
        assert torch.allclose(make((across, along), angle=angle + math.pi / 2, beta=beta, side_px=15), kernel, atol=1e-6)


@given(along=SIGMAS, across=SIGMAS, angle=ANGLES)
def test_a_generalised_gaussian_of_beta_one_is_the_gaussian(along: float, across: float, angle: float) -> None:
    general = kernels.generalised_gaussian_kernel((along, across), angle=angle, beta=1.0, side_px=17)
    assert torch.allclose(general, kernels.gaussian_kernel((along, across), angle=angle, side_px=17), atol=1e-7)


@given(sigma=SIGMAS, beta=st.floats(0.5, 4))
def test_generalised_gaussians_and_plateaus_are_their_formulas(sigma: float, beta: float) -> None:
    general = kernels.generalised_gaussian_kernel((sigma, sigma), beta=beta, side_px=21).double()
    plateau = kernels.plateau_kernel((sigma, sigma), beta=beta, side_px=21).double()
    for x, y in ((1, 0), (0, 2), (2, 1)):
        q = (x**2 + y**2) / sigma**2
        assert (general[10 + y, 10 + x] / general[10, 10]).item() == pytest.approx(math.exp(-(q**beta) / 2), rel=1e-4, abs=1e-7)
        assert (plateau[10 + y, 10 + x] / plateau[10, 10]).item() == pytest.approx(1 / (1 + q**beta), rel=1e-4)


def test_a_plateau_has_half_its_height_at_sigma_and_a_flatter_top_for_larger_beta() -> None:
    for beta in (1.0, 1.5, 2.0):
        kernel = kernels.plateau_kernel((4.0, 2.0), beta=beta, side_px=21)
        assert (kernel[10, 14] / kernel[10, 10]).item() == pytest.approx(0.5, rel=1e-5)
        assert (kernel[12, 10] / kernel[10, 10]).item() == pytest.approx(0.5, rel=1e-5)
    tops = [kernels.plateau_kernel((4.0, 4.0), beta=beta, side_px=21) for beta in (0.5, 1.0, 2.0, 4.0)]
    assert [top[10, 12] / top[10, 10] for top in tops] == sorted(top[10, 12] / top[10, 10] for top in tops)


def test_a_sinc_is_bessels_formula() -> None:
    cutoff = 1.3
    kernel = kernels.sinc_kernel(cutoff, side_px=15).double()
    for x, y in ((1, 0), (3, 2), (0, 7)):
        r = math.hypot(x, y)
        # J1(t) / t is one half at the centre
        assert (kernel[7 + y, 7 + x] / kernel[7, 7]).item() == pytest.approx(2 * special.j1(cutoff * r) / (cutoff * r), abs=1e-6)


@pytest.mark.parametrize("cutoff", [0.8, 1.5, 2.2])
def test_a_sinc_passes_low_and_stops_high_frequencies(cutoff: float) -> None:
    kernel = kernels.sinc_kernel(cutoff, side_px=101).double()
    offset = torch.arange(101.0, dtype=torch.float64) - 50
    for direction in (0.0, 0.6):
        along = offset * math.cos(direction) + offset[:, None] * math.sin(direction)
        response = [(kernel * torch.cos(frequency * along)).sum().item() for frequency in (cutoff - 0.3, cutoff, cutoff + 0.3)]
        assert response == pytest.approx([1, 0.5, 0], abs=0.07)
    assert kernel.min() < 0


def test_an_impulse_becomes_the_kernel_and_a_field_stays() -> None:
    kernel = torch.rand(7, 7, generator=torch.Generator().manual_seed(0))
    kernel = kernel / kernel.sum()
    spot = torch.zeros(1, 3, 21, 22)
    spot[..., 9, 11] = 1
    blurred = kernels.filtered(spot, kernel)
    # each pixel takes the mean of its neighbours, so that the kernel appears upside down
    assert torch.allclose(blurred[0, 1, 6:13, 8:15], kernel.flip(0, 1), atol=1e-6)
    assert torch.allclose(kernels.filtered(torch.full((1, 3, 5, 4), 0.4), kernel), torch.tensor(0.4), atol=1e-6)


@given(height=st.integers(1, 30), width=st.integers(1, 30), side=ODD, seed=st.integers(0, 99))
def test_the_filter_is_the_sum_with_reflected_borders(height: int, width: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, max(height, side), max(width, side), generator=generator)
    kernel = torch.rand(side, side, generator=generator)
    expected = ndimage.correlate(image[0, 2].double().numpy(), kernel.double().numpy(), mode="mirror")
    assert np.allclose(kernels.filtered(image, kernel)[0, 2], expected, atol=1e-5 * side**2)
    assert kernels.filtered(image[..., :height, :width], kernel).shape[-2:] == (height, width)


def test_a_kernel_off_centre_has_its_peak_there_even_between_pixels() -> None:
    kernel = kernels.gaussian_kernel((1.0, 1.0), side_px=25, centre_px=(1.5, -2.0))
    offset = torch.arange(25.0) - 12
    assert (kernel.sum(1) * offset).sum().item() == pytest.approx(1.5, abs=1e-4)
    assert (kernel.sum(0) * offset).sum().item() == pytest.approx(-2, abs=1e-4)
    assert kernels.spread_px2(kernel) == pytest.approx((1, 1), abs=1e-3)
    narrow = kernels.gaussian_kernel((0.0, 0.0), side_px=5, centre_px=(0.5, 0.5))
    assert torch.allclose(narrow[2:4, 2:4], torch.tensor(0.25))


def test_impossible_kernels_are_refused() -> None:
    for side in (0, 4, -3):
        with pytest.raises(ValueError, match="no central pixel"):
            kernels.gaussian_kernel((1.0, 1.0), side_px=side)
    with pytest.raises(ValueError, match="must not be negative"):
        kernels.plateau_kernel((1.0, -1.0), beta=1.0, side_px=5)
    for make in (kernels.plateau_kernel, kernels.generalised_gaussian_kernel):
        with pytest.raises(ValueError, match="beta=0 must be > 0"):
            make((1.0, 1.0), beta=0, side_px=5)
    for cutoff in (0.0, 3.2):
        with pytest.raises(ValueError, match="highest frequency"):
            kernels.sinc_kernel(cutoff, side_px=5)
