"""Colour spaces against OpenCV, scikit-image and their own inverses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.functional.color import (
    hed_to_rgb,
    lab8_to_rgb,
    linear_to_srgb,
    luminance,
    optical_density,
    rgb_to_hed,
    rgb_to_lab8,
    srgb_to_linear,
)
from pathorestore.image import from_uint8, to_uint8

SEEDS = st.integers(0, 1000)


def random_image(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@given(seed=SEEDS)
def test_srgb_and_linear_light_are_inverse(seed: int) -> None:
    image = random_image(seed)
    assert torch.allclose(linear_to_srgb(srgb_to_linear(image)), image, atol=1e-6)
    assert torch.allclose(srgb_to_linear(linear_to_srgb(image)), image, atol=1e-6)


def test_the_srgb_curve_meets_its_standard() -> None:
    # IEC 61966-2-1: value 0.04045 is linear 0.04045 / 12.92; mid grey 0.5 is 0.21404
    values = torch.tensor([0.0, 0.04045, 0.5, 1.0])
    assert torch.allclose(srgb_to_linear(values), torch.tensor([0.0, 0.04045 / 12.92, 0.214041, 1.0]), atol=1e-6)


@given(channel=st.integers(0, 2))
def test_srgb_curves_have_finite_gradients_everywhere(channel: int) -> None:
    for curve in (srgb_to_linear, linear_to_srgb):
        image = torch.zeros(1, 3, 2, 2)
        image[:, channel] = 1
        image.requires_grad_()
        curve(image).sum().backward()
        assert image.grad is not None
        assert image.grad.isfinite().all()


def every_tenth_colour() -> torch.Tensor:
    level = torch.linspace(0, 255, 26).round().to(torch.uint8)
    return torch.cartesian_prod(level, level, level).reshape(26, -1, 3)


def test_lab_is_opencvs_to_two_grey_levels() -> None:
    import cv2

    pixels = every_tenth_colour().numpy()
    expected = torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)).float()
    found = rgb_to_lab8(from_uint8(pixels))[0].permute(1, 2, 0)
    assert (found.round() - expected).abs().max() <= 2
    assert (found - expected).abs().mean() < 0.4


def test_lab_goes_back_as_opencv_does() -> None:
    import cv2

    lab = cv2.cvtColor(every_tenth_colour().numpy(), cv2.COLOR_RGB2LAB)
    expected = torch.from_numpy(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)).int()
    found = to_uint8(lab8_to_rgb(torch.from_numpy(lab).float().permute(2, 0, 1)[None]))
    assert (torch.from_numpy(found).int() - expected).abs().max() <= 2


@given(seed=SEEDS)
def test_lab_and_rgb_are_inverse(seed: int) -> None:
    image = random_image(seed)
    assert torch.allclose(lab8_to_rgb(rgb_to_lab8(image)), image, atol=1e-3)


def test_grey_has_neutral_lab() -> None:
    grey = torch.linspace(0, 1, 11)[:, None, None, None].expand(11, 3, 1, 1)
    lab = rgb_to_lab8(grey)
    assert torch.allclose(lab[:, 1:], torch.full((11, 2, 1, 1), 128.0), atol=0.05)
    assert lab[0, 0].item() == pytest.approx(0, abs=1e-3)
    assert lab[-1, 0].item() == pytest.approx(255, abs=1e-3)


@given(seed=SEEDS)
def test_hed_is_scikit_images(seed: int) -> None:
    from skimage.color import hed2rgb, rgb2hed

    image = random_image(seed).clamp(min=0.01)
    rows = image.permute(0, 2, 3, 1).double().numpy()
    assert torch.allclose(rgb_to_hed(image).permute(0, 2, 3, 1), torch.from_numpy(rgb2hed(rows)).float(), atol=1e-5)
    stains = rgb_to_hed(image)
    expected = torch.from_numpy(hed2rgb(stains.permute(0, 2, 3, 1).double().numpy())).float()
    assert torch.allclose(hed_to_rgb(stains).permute(0, 2, 3, 1), expected, atol=1e-4)


@given(seed=SEEDS)
def test_stain_amounts_survive_the_round_trip(seed: int) -> None:
    stains = 0.1 * random_image(seed)
    assert torch.allclose(rgb_to_hed(hed_to_rgb(stains)), stains, atol=1e-4)


@given(first=st.floats(0.01, 1), second=st.floats(0.01, 1))
def test_optical_densities_add_when_absorbers_stack(first: float, second: float) -> None:
    one, two = torch.tensor(first), torch.tensor(second)
    assert torch.allclose(optical_density(one * two), optical_density(one) + optical_density(two), atol=1e-5)


def test_optical_density_is_decadic_and_bounded() -> None:
    assert torch.allclose(optical_density(torch.tensor([1.0, 0.1, 0.0])), torch.tensor([0.0, 1.0, 6.0]), atol=1e-6)
    assert math.isfinite(optical_density(torch.tensor(-0.5)).item())


def test_luminance_of_white_is_one_and_green_weighs_most() -> None:
    assert luminance(torch.ones(1, 3, 2, 2)).allclose(torch.ones(1, 1, 2, 2))
    weights = luminance(torch.eye(3)[:, :, None, None])[:, 0, 0, 0]
    assert weights.argmax() == 1
