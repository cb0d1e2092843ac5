"""Laws of the stages of blind degradation: each against its definition."""

import io
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pathorestore.degradations import blind_stages, kernels
from pathorestore.functional.color import luminance
from pathorestore.image import from_uint8, to_uint8


def run(stage: blind_stages.Stage, image: torch.Tensor) -> torch.Tensor:
    return stage(image, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("stage", "kernel"),
    [
        (
            blind_stages.GaussianBlur(sigma_px=(2.0, 1.0), angle=0.5, side_px=9),
            kernels.gaussian_kernel((2.0, 1.0), angle=0.5, side_px=9),
        ),
        (
            blind_stages.GaussianBlur(sigma_px=(2.0, 1.0), angle=-0.5, beta=2.5, side_px=9),
            kernels.generalised_gaussian_kernel((2.0, 1.0), angle=-0.5, beta=2.5, side_px=9),
        ),
        (
            blind_stages.PlateauBlur(sigma_px=(2.0, 1.0), angle=0.5, beta=1.5, side_px=9),
            kernels.plateau_kernel((2.0, 1.0), angle=0.5, beta=1.5, side_px=9),
        ),
        (blind_stages.SincBlur(cutoff=1.2, side_px=9), kernels.sinc_kernel(1.2, side_px=9).clamp(min=0)),
    ],
)
def test_a_blur_turns_an_impulse_into_its_kernel(stage: blind_stages.Blur, kernel: torch.Tensor) -> None:
    spot = torch.zeros(1, 3, 17, 17)
    spot[..., 8, 8] = 1
    assert torch.allclose(run(stage, spot)[..., 4:13, 4:13], kernel.expand(1, 3, 9, 9), atol=1e-6)


@pytest.mark.parametrize(("kind", "flag"), [("linear", cv2.INTER_LINEAR), ("cubic", cv2.INTER_CUBIC), ("area", cv2.INTER_AREA)])
def test_resizing_is_opencvs(kind: Any, flag: int, nuclei_image: torch.Tensor) -> None:
    for size in ((32, 64), (256, 128)) if kind != "area" else ((32, 64),):
        there = cv2.resize(nuclei_image[0].permute(1, 2, 0).numpy(), size[::-1], interpolation=flag).clip(0, 1)
        here = run(blind_stages.Resize(to_px=size, kind=kind), nuclei_image)
        assert np.abs(here[0].permute(1, 2, 0).numpy() - there).max() < 1e-5


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_keeping_one_pixel_of_each_block_shifts_nothing(scale: int) -> None:
    ramp = (torch.arange(48.0)[:, None] + 2 * torch.arange(60.0)).expand(1, 3, 48, 60) / 200
    to_px = (48 // scale, 60 // scale)
    kept = run(blind_stages.Subsample(from_px=(48, 60), to_px=to_px, sigma_px=1.0), ramp)
    means = torch.nn.functional.avg_pool2d(ramp, scale)
    inside = (..., slice(16 // scale, -(16 // scale)), slice(16 // scale, -(16 // scale)))
    assert torch.allclose(kept[inside], means[inside], atol=1e-5)


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise_has_its_deviation_and_grey_noise_one_value_a_pixel(*, grey: bool) -> None:
    noise = run(blind_stages.GaussianNoise(deviation=0.05, grey=grey), torch.full((1, 3, 90, 90), 0.5)) - 0.5
    assert noise.std().item() == pytest.approx(0.05, rel=0.03)
    assert noise.mean().abs() < 0.002
    assert torch.allclose(noise[:, 0], noise[:, 1], atol=1e-6) == grey
    assert torch.allclose(noise[:, 0], noise[:, 2], atol=1e-6) == grey


def test_correlated_noise_has_its_covariance() -> None:
    mixing = [[1.5, 0.6, -0.4], [0.6, 1.0, 0.1], [-0.4, 0.1, 0.5]]
    noise = run(blind_stages.CorrelatedNoise(deviation=0.04, mixing=mixing), torch.full((1, 3, 150, 150), 0.5)) - 0.5
    measured = torch.cov(noise[0].flatten(1)) / 0.04**2
    assert torch.allclose(measured, torch.tensor(mixing), atol=0.05)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_poisson_noise_has_a_variance_proportional_to_the_mean(scale: float) -> None:
    stage = blind_stages.PoissonNoise(scale=scale)
    for mean in (0.2, 0.4, 0.6):
        noise = run(stage, torch.full((1, 3, 120, 120), mean)) - mean
        assert noise.var().item() == pytest.approx(scale**2 * mean / 256, rel=0.05)
        assert noise.mean().abs() < 0.002 * scale
    assert stage.noise_variance() == pytest.approx(scale**2 * 0.5 / 256)
    assert torch.equal(run(stage, torch.zeros(1, 3, 9, 9)), torch.zeros(1, 3, 9, 9))


def test_grey_poisson_noise_counts_the_luminance() -> None:
    colour = torch.tensor([0.5, 0.2, 0.7])[:, None, None].expand(1, 3, 120, 120)
    noise = run(blind_stages.PoissonNoise(scale=1.5, grey=True), colour) - colour
    assert torch.allclose(noise[:, 0], noise[:, 1], atol=1e-6)
    assert noise.var().item() == pytest.approx(1.5**2 * luminance(colour).mean().item() / 256, rel=0.05)


@pytest.mark.parametrize("quality", [30, 60, 95, 100])
def test_jpeg_is_what_pillow_decodes(quality: int, nuclei_image: torch.Tensor) -> None:
    file = io.BytesIO()
    Image.fromarray(to_uint8(nuclei_image)).save(file, "JPEG", quality=quality)
    there = from_uint8(np.asarray(Image.open(file)))
    assert (run(blind_stages.Jpeg(quality=quality), nuclei_image) - there).abs().max() <= 1.01 / 255
