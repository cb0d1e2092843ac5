"""Laws of multi-focus fusion, on simulated stacks whose height is known."""

import math

import pytest
import torch
from focal_stacks import SIDE_PX, STEP_UM, stack, tissue
from hypothesis import given, settings
from hypothesis import strategies as st

from pathorestore.functional.drift import shifted, stack_drift
from pathorestore.functional.fusion import FusionConfig, fuse_stack
from pathorestore.functional.noise import stream
from pathorestore.metrics.fidelity import psnr

TILTED = {"tilt_um": 3.2, "relief_um": 0.4}


def levels(images: torch.Tensor) -> float:
    """Standard deviation in 8-bit grey levels."""
    return float(images.std() * 255)


def turned(image: torch.Tensor, down: float, right: float) -> torch.Tensor:
    """An image moved around its borders by a fraction of a pixel."""
    rows, columns = torch.fft.fftfreq(image.shape[-2])[:, None], torch.fft.rfftfreq(image.shape[-1])
    phase = torch.exp(-2j * math.pi * (rows * down + columns * right))
    return torch.fft.irfft2(torch.fft.rfft2(image) * phase, s=image.shape[-2:]).clamp(0, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_fusion_beats_every_plane_by_eight_decibels_where_the_section_is_tilted(seed):
    scene = stack(seed=seed, **TILTED)
    best = max(float(psnr(plane[None], scene.clean)) for plane in scene.planes)
    assert float(psnr(fuse_stack(scene.planes).image, scene.clean)) > best + 8


def test_the_depth_index_is_the_height_of_the_section_within_a_fifth_of_a_plane():
    scene = stack(**TILTED)
    expected = scene.depth_um / STEP_UM + (len(scene.planes) - 1) / 2
    found = fuse_stack(scene.planes)
    assert float((found.depth_index - expected).abs().mean()) < 0.2
    assert float((found.depth_index - expected).abs().max()) < 1
    assert float(found.confidence.min()) > 0.9


@pytest.mark.parametrize("offset_um", [0.0, 0.2, 0.4])
def test_without_aberrations_the_depth_of_a_flat_section_is_exact_between_planes_too(offset_um):
    scene = stack(perfect=True, offset_um=offset_um)
    assert float((fuse_stack(scene.planes).depth_index + scene.defocus_um[0] / STEP_UM).abs().mean()) < 0.03


def test_noise_costs_little_and_is_not_above_that_of_a_plane():
    noisy, quiet = (stack(noise_levels=noise, **TILTED) for noise in (4.0, 0.0))
    found = fuse_stack(noisy.planes)
    assert levels(found.image - fuse_stack(quiet.planes).image) < 0.9 * levels(noisy.planes - quiet.planes)
    assert float((found.depth_index - fuse_stack(quiet.planes).depth_index).abs().mean()) < 0.1
    best = max(float(psnr(plane[None], noisy.clean)) for plane in noisy.planes)
    assert float(psnr(found.image, noisy.clean)) > best + 4


def test_a_flat_section_gives_its_sharpest_plane_nearly_exactly():
    scene = stack()
    middle = len(scene.planes) // 2
    found = fuse_stack(scene.planes)
    assert float(psnr(found.image, scene.planes[[middle]])) > 50
    assert float((found.depth_index - middle).abs().max()) < 0.5


def test_one_plane_comes_back_bit_for_bit():
    plane = torch.rand(1, 3, 37, 50, generator=stream(1))
    found = fuse_stack(plane)
    assert torch.equal(found.image, plane)
    assert not found.depth_index.any()
    assert found.depth_index.shape == found.confidence.shape == (1, 1, 37, 50)


def test_planes_that_agree_come_back_bit_for_bit_and_say_nothing_of_depth():
    plane = tissue(0, 64)
    found = fuse_stack(plane.expand(5, -1, -1, -1))
    assert torch.equal(found.image, plane)
    assert float(found.confidence.max()) == 0
    assert torch.allclose(found.depth_index, torch.full((1, 1, 64, 64), 2.0), atol=1e-5)


@given(values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6), height=st.integers(1, 40), width=st.integers(1, 40))
def test_constant_planes_give_their_mean_whatever_their_size(values, height, width):
    planes = torch.tensor(values)[:, None, None, None].expand(-1, 3, height, width)
    found = fuse_stack(planes)
    assert torch.allclose(found.image, planes.mean(0, keepdim=True), atol=1e-4)
    assert torch.allclose(found.depth_index, torch.tensor((len(values) - 1) / 2), atol=1e-3)
    assert float(found.confidence.max()) < 1e-3


@settings(max_examples=8)
@given(order=st.permutations(range(9)))
def test_permuting_the_planes_leaves_the_image_and_permutes_the_index(order):
    scene = stack(**TILTED)
    straight, mixed = fuse_stack(scene.planes), fuse_stack(scene.planes[list(order)])
    assert torch.allclose(mixed.image, straight.image, atol=1e-5)
    assert torch.allclose(mixed.confidence, straight.confidence, atol=1e-5)
    # off the middle between two planes the nearest is the sharpest one; a parabola moves it by half a plane at most
    clear = (straight.depth_index - straight.depth_index.round()).abs() < 0.3
    renumbered = torch.tensor([order.index(number) for number in range(9)], dtype=torch.float32)
    expected = renumbered[straight.depth_index.round().long()]
    assert float((mixed.depth_index - expected)[clear].abs().max()) < 0.75


def test_the_reversed_stack_has_the_same_image_and_the_reversed_depth():
    scene = stack(noise_levels=4.0, **TILTED)
    straight, reversed_ = fuse_stack(scene.planes), fuse_stack(scene.planes.flip(0))
    assert torch.allclose(reversed_.image, straight.image, atol=1e-5)
    assert torch.allclose(reversed_.depth_index, len(scene.planes) - 1 - straight.depth_index, atol=1e-3)


def test_fused_values_lie_between_those_of_the_planes():
    scene = stack(noise_levels=4.0, **TILTED)
    found = fuse_stack(scene.planes).image
    assert (found <= scene.planes.amax(0, keepdim=True) + 1e-6).all()
    assert (found >= scene.planes.amin(0, keepdim=True) - 1e-6).all()


def test_where_nothing_is_to_be_seen_all_planes_are_averaged_and_the_depth_is_the_mean_plane():
    planes = (0.8 + 0.01 * torch.randn(9, 3, 96, 96, generator=stream(3))).clamp(0, 1)
    found = fuse_stack(planes)
    assert levels(found.image) < 0.4 * levels(planes)
    assert float(found.confidence.mean()) < 0.3
    assert float((found.depth_index - 4).abs().mean()) < 1.5


def test_a_blank_patch_takes_the_depth_of_its_surroundings():
    scene = stack(offset_um=1.6)
    planes = scene.planes.clone()
    planes[..., 72:120, 72:120] = 0.9
    found = fuse_stack(planes)
    assert float((found.depth_index[..., 72:120, 72:120] - 2).abs().max()) < 0.6
    assert torch.allclose(found.image[..., 72:120, 72:120], torch.tensor(0.9), atol=1e-6)


def test_the_depth_follows_a_step_within_a_few_pixels():
    """Two flat halves, as the fold of a section makes them; the wide window alone would smear them into each other."""
    low, high = stack(offset_um=1.6).planes, stack(offset_um=-1.6).planes
    planes = torch.cat([low[..., :96], high[..., 96:]], -1)
    depth = fuse_stack(planes).depth_index
    assert float((depth[..., 80:90] - 2).abs().mean()) < 0.4
    assert float((depth[..., 102:112] - 6).abs().mean()) < 0.4


@given(height=st.integers(1, 40), width=st.integers(1, 40), count=st.integers(1, 4))
def test_any_size_is_fused_and_stays_in_range(height, width, count):
    planes = torch.rand(count, 3, height, width, generator=stream(height, width, count))
    found = fuse_stack(planes)
    for result, channels in zip(found, (3, 1, 1), strict=True):
        assert result.shape == (1, channels, height, width)
        assert result.isfinite().all()
    assert 0 <= float(found.image.min()) <= float(found.image.max()) <= 1
    assert 0 <= float(found.confidence.min()) <= float(found.confidence.max()) <= 1
    assert 0 <= float(found.depth_index.min()) <= float(found.depth_index.max()) <= count - 1


@pytest.mark.parametrize("config", [FusionConfig(), FusionConfig(wide_px=8.0, band_px=(0.7, 1.0))])
def test_a_strip_with_its_halo_fuses_like_the_whole(config):
    """So that stacks of any size can be fused in strips: nothing further away than the halo counts."""
    planes = torch.cat([stack(**TILTED).planes, stack(seed=1, **TILTED).planes], -2)
    halo, top = config.halo_px, 128
    whole = fuse_stack(planes, config)
    strip = fuse_stack(planes[..., top : top + 2 * halo + 32, :], config)
    for part, all_ in zip(strip, whole, strict=True):
        inner = slice(halo, halo + 32)
        assert torch.allclose(part[..., inner, :], all_[..., top + halo : top + halo + 32, :], atol=1e-6)
    assert not torch.allclose(strip.confidence[..., :16, :], whole.confidence[..., top : top + 16, :], atol=1e-6)


def test_the_planes_are_left_as_they_were():
    planes = stack(**TILTED).planes
    before = planes.clone()
    fuse_stack(planes, FusionConfig(align=True))
    assert torch.equal(planes, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"band_px": (1.0, 1.0)},
        {"band_px": (0.0, 1.0)},
        {"near_px": 0.0},
        {"near_px": 32.0},
        {"selectivity": 0.0},
        {"noise_margin": 0.0},
        {"noise_margin": 1.5},
        {"wide_share": -1.0},
    ],
)
def test_settings_that_make_no_filter_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FusionConfig(**wrong)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 1, 8, 8), (3, 8, 8)])
def test_what_is_no_stack_is_refused(shape):
    with pytest.raises(ValueError, match="expected \\(planes, 3, height, width\\)"):
        fuse_stack(torch.zeros(shape))


def drifted(drift_px: torch.Tensor) -> torch.Tensor:
    scene = stack(**TILTED)
    return torch.cat([turned(plane[None], *move) for plane, move in zip(scene.planes, drift_px.tolist(), strict=True)])


def test_alignment_finds_and_undoes_a_known_drift():
    scene, rim = stack(**TILTED), 8
    drift_px = torch.randn(len(scene.planes), 2, generator=stream(5)).cumsum(0)
    drift_px -= drift_px[len(scene.planes) // 2].clone()
    planes = drifted(drift_px)
    found = stack_drift(planes)
    near = slice(2, 7)  # the section lies between these planes; what is far out of focus gives and takes nothing
    assert float((found - drift_px)[near].abs().max()) < 0.25
    assert float((found - drift_px).abs().max()) < 0.5
    inner = (..., slice(rim, SIDE_PX - rim), slice(rim, SIDE_PX - rim))
    plain, aligned = (fuse_stack(planes, FusionConfig(align=align)).image[inner] for align in (False, True))
    undrifted = float(psnr(fuse_stack(scene.planes).image[inner], scene.clean[inner]))
    assert float(psnr(aligned, scene.clean[inner])) > float(psnr(plain, scene.clean[inner])) + 3
    assert float(psnr(aligned, scene.clean[inner])) > undrifted - 0.5


def test_alignment_costs_next_to_nothing_where_there_is_no_drift():
    scene = stack(**TILTED)
    plain, aligned = (float(psnr(fuse_stack(scene.planes, FusionConfig(align=align)).image, scene.clean)) for align in (False, True))
    assert aligned > plain - 0.3


def test_drift_of_many_pixels_is_found():
    drift_px = torch.tensor([[-41.5, 20.25], [-18.0, 9.5], [0.0, 0.0], [22.75, 0.5], [39.0, -17.5]])
    planes = stack(planes=5, tilt_um=1.6).planes
    moved = torch.cat([turned(plane[None], *move) for plane, move in zip(planes, drift_px.tolist(), strict=True)])
    assert float((stack_drift(moved) - drift_px).abs().max()) < 0.5


def test_blank_planes_and_unrelated_ones_do_not_drift():
    assert not stack_drift(torch.full((3, 3, 64, 64), 0.5)).any()
    assert not stack_drift(torch.rand(4, 3, 64, 64, generator=stream(7))).any()


def test_shifting_there_and_back_changes_nothing_but_the_rim():
    plane = stack().planes[[4]]
    move = torch.tensor([[1.3, -2.6]])
    back = shifted(shifted(plane, move), -move)
    inner = (..., slice(24, -24), slice(24, -24))
    assert float((back - plane)[inner].abs().max()) < 0.02
    assert torch.equal(shifted(plane, torch.tensor([[0.05, 0.0]])), plane)
    whole = shifted(plane, torch.tensor([[3.0, -5.0]]))
    assert torch.allclose(whole[..., 24:-24, 24:-24], plane.roll((3, -5), (-2, -1))[..., 24:-24, 24:-24], atol=1e-5)


def test_a_move_out_of_the_image_is_refused():
    with pytest.raises(ValueError, match="out of its 16 x 16 px"):
        shifted(torch.zeros(1, 3, 16, 16), torch.tensor([[0.0, 16.0]]))
