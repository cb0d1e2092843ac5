"""Laws of the focal-stack simulator."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.degradations import Setting, degrade, simulate_stack
from pathorestore.degradations.slab import Slab, image_slab, smooth_fields
from pathorestore.functional.color import linear_to_srgb, srgb_to_linear
from pathorestore.functional.optics import Optics, band_mtf, blur, ctf_value, transfer

SETTINGS = {"ideal": Setting.ideal(), "scanner": Setting.scanner(), "shifted": Setting.shifted()}
QUIET = replace(Setting.ideal(), noise_levels=(0.0, 0.0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sharpness(image: torch.Tensor) -> torch.Tensor:
    return image.diff(dim=-1).abs().mean((-3, -2, -1))


@pytest.fixture
def batch(nuclei_image: torch.Tensor) -> torch.Tensor:
    return torch.cat([nuclei_image, nuclei_image.flip(-1), nuclei_image.mT])


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_8_bit_images_and_labels(name: str, batch: torch.Tensor) -> None:
    result = degrade(batch, None, setting=SETTINGS[name], generator=seeded(), margin_px=32)
    assert result.degraded.shape == result.clean.shape == (3, 3, 64, 64)
    assert result.defocus_um.shape == result.ctf.shape == (3,)
    for image in (result.degraded, result.clean):
        assert torch.allclose(image * 255, (image * 255).round(), atol=1e-3)
        assert image.min() >= 0
        assert image.max() <= 1
    assert ((result.ctf > 0) & (result.ctf <= 1)).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_generator_alone_decides(name: str, batch: torch.Tensor) -> None:
    first, again, other = (degrade(batch, None, setting=SETTINGS[name], generator=seeded(s), margin_px=32) for s in (1, 1, 2))
    assert torch.equal(first.degraded, again.degraded)
    assert torch.equal(first.clean, again.clean)
    assert first.parameters == again.parameters
    assert not torch.equal(first.degraded, other.degraded)


def test_the_ideal_clean_image_is_the_sharp_one(batch: torch.Tensor) -> None:
    result = degrade(batch, None, setting=Setting.ideal(), generator=seeded(), margin_px=16)
    assert torch.equal(result.clean, (batch[..., 16:-16, 16:-16] * 255).round() / 255)


def test_the_ideal_degraded_image_is_the_blur_of_linear_light(batch: torch.Tensor) -> None:
    z = torch.tensor([-2.0, 0.5, 4.0])
    result = degrade(batch, z, setting=QUIET, generator=seeded(), margin_px=32)
    optics = Optics(spherical_waves=0.1, focal_shift_um=(0.3, 0.0, -0.3))
    expected = linear_to_srgb(blur(srgb_to_linear(batch), transfer(z, optics, 128)).clamp(0, 1))[..., 32:-32, 32:-32]
    assert (result.degraded - expected).abs().max() < 0.6 / 255
    assert torch.equal(result.defocus_um, z)
    assert torch.allclose(result.ctf, ctf_value(z), atol=1e-3)


@given(value=st.integers(20, 235), z=st.floats(-5, 5))
def test_a_constant_field_has_no_focus(value: int, z: float) -> None:
    field = torch.full((1, 3, 40, 40), value / 255)
    for margin_px in (0, 8):
        result = degrade(field, torch.tensor([z]), setting=QUIET, generator=seeded(), margin_px=margin_px)
        assert (result.degraded - value / 255).abs().max() < 1.01 / 255


def test_reflection_stands_in_for_a_missing_margin(nuclei_image: torch.Tensor) -> None:
    z = torch.tensor([1.5])
    inside = degrade(nuclei_image, z, setting=QUIET, generator=seeded())
    with_margin = degrade(nuclei_image, z, setting=QUIET, generator=seeded(), margin_px=20)
    assert inside.degraded.shape == nuclei_image.shape
    assert (inside.degraded[..., 20:-20, 20:-20] - with_margin.degraded).abs().max() < 0.02


@pytest.mark.parametrize("name", SETTINGS)
def test_more_defocus_is_a_worse_image(name: str, batch: torch.Tensor) -> None:
    errors = []
    for z in (0.0, 2.0, 6.0):
        result = degrade(batch, torch.full((3,), z), setting=SETTINGS[name], generator=seeded(3), margin_px=32)
        errors.append(((result.degraded - result.clean) ** 2).mean().item())
    assert errors[0] < errors[1] < errors[2]


def test_from_scan_zero_defocus_changes_nothing(batch: torch.Tensor) -> None:
    scan = degrade(batch, torch.zeros(3), setting=replace(QUIET, from_scan=True), generator=seeded(), margin_px=32)
    thing = degrade(batch, torch.zeros(3), setting=QUIET, generator=seeded(), margin_px=32)
    assert (scan.degraded - scan.clean).square().mean() < 0.05 * (thing.degraded - thing.clean).square().mean()


def test_drawn_focus_positions_keep_to_the_range(batch: torch.Tensor) -> None:
    drawn = torch.cat([degrade(batch[..., :32, :32], None, setting=QUIET, generator=seeded(s), margin_px=8).defocus_um for s in range(30)])
    assert drawn.abs().max() <= 5
    assert drawn.min() < -3.5
    assert drawn.max() > 3.5
    narrow = degrade(batch, None, setting=replace(QUIET, max_blur_px=4.0), generator=seeded(), margin_px=8)
    # geometric blur radius 4 px = z tan(asin NA)
    assert narrow.defocus_um.abs().max() <= 4 * 0.25 / (0.75 / (1 - 0.75**2) ** 0.5) + 1e-6


@pytest.mark.parametrize("name", SETTINGS)
def test_samples_stay_inside_the_ranges(name: str) -> None:
    setting, generator = SETTINGS[name], seeded(5)
    for parameters in (setting.sample(generator) for _ in range(50)):
        for field in ("thickness_um", "focal_share", "tilt_um", "height_um", "glare", "gamma", "noise_levels", "read_share", "sharpening"):
            low, high = getattr(setting, field)
            assert low <= getattr(parameters, field) <= high
        low, high = setting.numerical_aperture
        assert low <= parameters.optics.numerical_aperture <= high
        assert parameters.optics.numerical_aperture >= min(high, 0.54 / (4 * parameters.optics.pixel_um)) - 1e-9
        assert parameters.max_defocus_um <= setting.max_defocus_um


def test_the_shifted_setting_lies_outside_the_scanner() -> None:
    scanner, shifted = Setting.scanner(), Setting.shifted()
    for name in (
        "condenser_ratio",
        "spherical_waves",
        "focal_shift_um",
        "thickness_um",
        "glare",
        "gamma",
        "read_share",
        "residual_blur_px",
    ):
        (low, high), (other_low, other_high) = getattr(scanner, name), getattr(shifted, name)
        assert other_low >= high or other_high <= low, name
    assert shifted.codec != scanner.codec
    assert shifted.refractive_index != scanner.refractive_index


NUISANCES = {
    "condenser_ratio": (0.5, 0.5),
    "spherical_waves": (0.3, 0.3),
    "focal_shift_um": (0.0, 0.0),
    "thickness_um": (6.0, 6.0),
    "tilt_um": (3.0, 3.0),
    "height_um": (1.0, 1.0),
    "second_layer": (0.5, 0.5),
    "glare": (0.2, 0.2),
    "saturation_loss": (0.3, 0.3),
    "gamma": (1.2, 1.2),
    "white_balance": (0.9, 0.9),
    "noise_levels": (4.0, 4.0),
    "sharpening": (1.0, 1.0),
    "residual_blur_px": (1.0, 1.0),
    "motion_blur_px": (4.0, 4.0),
    "demosaic_probability": 1.0,
    "compression_probability": 1.0,
}


@pytest.mark.parametrize("nuisance", NUISANCES)
def test_every_nuisance_changes_the_image(nuisance: str, nuclei_image: torch.Tensor) -> None:
    plain = replace(QUIET, layers=3, focal_share=(0.5, 0.5), second_layer_probability=1.0)
    z = torch.tensor([1.0])
    before = degrade(nuclei_image, z, setting=plain, generator=seeded(), margin_px=32)
    after = degrade(nuclei_image, z, setting=replace(plain, **{nuisance: NUISANCES[nuisance]}), generator=seeded(), margin_px=32)
    assert (after.degraded - before.degraded).abs().mean() > 0.05 / 255


@pytest.mark.parametrize("levels", [0.5, 4.0])
def test_the_noise_that_remains_has_the_asked_level(levels: float) -> None:
    # linear 0.5 is sRGB 0.7354, where the level is defined; 8-bit rounding adds 1/12
    grey = torch.full((1, 3, 128, 128), 0.7354)
    setting = replace(Setting.ideal(), noise_levels=(levels, levels), read_share=(0.5, 0.5))
    noisy = degrade(grey, torch.tensor([5.0]), setting=setting, generator=seeded(), margin_px=8).degraded
    assert (noisy * 255).std().item() == pytest.approx((levels**2 + 1 / 12) ** 0.5, rel=0.05)


def test_the_scanner_leaves_noise_on_a_flat_field() -> None:
    flat = degrade(torch.full((8, 3, 96, 96), 0.7), None, setting=Setting.scanner(), generator=seeded(2), margin_px=32)
    left = (flat.degraded * 255).std((-2, -1)).mean(1)
    assert ((left > 0.1) & (left < 7)).all()
    assert left.median() > 0.7


@pytest.mark.parametrize("name", SETTINGS)
def test_labels_describe_the_drawn_optics(name: str, batch: torch.Tensor) -> None:
    result = degrade(batch, None, setting=SETTINGS[name], generator=seeded(9), margin_px=32)
    for defocus, ctf, parameters in zip(result.defocus_um, result.ctf, result.parameters, strict=True):
        plain = replace(parameters.optics, spherical_waves=0.0, focal_shift_um=(0.0, 0.0, 0.0))
        assert torch.allclose(ctf, band_mtf(defocus[None].abs(), plain)[0], atol=1e-6)


def test_a_stack_is_sharpest_where_the_focus_meets_the_section(nuclei_image: torch.Tensor) -> None:
    height = torch.full((1, 1, 128, 128), 1.0)
    stack = simulate_stack(nuclei_image, torch.tensor([-2.0, 0.0, 1.0, 2.0, 4.0]), setting=QUIET, generator=seeded(), depth_um=height)
    assert torch.allclose(stack.defocus_um, torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]))
    assert sharpness(stack.planes).argmax() == 2
    assert stack.ctf[2] == 1
    assert torch.equal(stack.depth_um, height)


def test_each_side_of_a_step_comes_into_focus_at_its_own_height(nuclei_image: torch.Tensor) -> None:
    height = torch.zeros(1, 1, 128, 128)
    height[..., 64:] = 3.0
    stack = simulate_stack(nuclei_image, torch.tensor([0.0, 3.0]), setting=QUIET, generator=seeded(), depth_um=height)
    left, right = sharpness(stack.planes[..., :56]), sharpness(stack.planes[..., 72:])
    assert left[0] > 1.5 * left[1]
    assert right[1] > 1.5 * right[0]
    assert torch.allclose(stack.defocus_um, torch.tensor([-1.5, 1.5]))


def test_a_stack_draws_its_parameters_once(nuclei_image: torch.Tensor) -> None:
    setting = replace(Setting.scanner(), noise_levels=(0.0, 0.0), compression_probability=0.0)
    stack = simulate_stack(nuclei_image, torch.tensor([1.0, 1.0]), setting=setting, generator=seeded())
    assert torch.equal(stack.planes[0], stack.planes[1])
    assert stack.depth_um.std() > 0


def test_a_flat_slab_is_plain_blur(nuclei_image: torch.Tensor) -> None:
    z = torch.tensor([-1.0, 2.0])
    found = image_slab(nuclei_image, Slab.flat(torch.full((128, 128), 0.5)), z, Optics(), from_scan=False)
    assert torch.allclose(found, blur(nuclei_image, transfer(z - 0.5, Optics(), 128)), atol=1e-5)


def test_layers_all_in_one_plane_are_one_layer(nuclei_image: torch.Tensor) -> None:
    shares = smooth_fields(3, 128, 128, scale_px=12, generator=seeded()).softmax(0)
    slab = Slab(torch.zeros(128, 128), torch.zeros(3), shares)
    expected = image_slab(nuclei_image, Slab.flat(torch.zeros(128, 128)), torch.tensor([2.0]), Optics(), from_scan=True)
    assert torch.allclose(image_slab(nuclei_image, slab, torch.tensor([2.0]), Optics(), from_scan=True), expected, atol=1e-5)


@given(seed=st.integers(0, 50), z=st.floats(-4, 4), from_scan=st.booleans())
def test_no_section_gains_or_loses_absorption(seed: int, z: float, *, from_scan: bool) -> None:
    light = torch.rand(1, 3, 32, 32, generator=seeded(seed))
    height, *logits = smooth_fields(3, 32, 32, scale_px=16, generator=seeded(seed))
    slab = Slab(height, torch.tensor([-1.0, 1.0]), torch.stack(logits).softmax(0))
    imaged = image_slab(light, slab, torch.tensor([z]), Optics(), from_scan=from_scan)
    assert torch.allclose(imaged.mean((-2, -1)), light.mean((-2, -1)), atol=1e-5)


def test_a_thick_section_integrates_depth_in_its_clean_image(nuclei_image: torch.Tensor) -> None:
    thick = replace(QUIET, thickness_um=(6.0, 6.0), layers=3, focal_share=(0.5, 0.5))
    result = degrade(nuclei_image, torch.tensor([2.0]), setting=thick, generator=seeded(), margin_px=32)
    assert sharpness(result.clean) < 0.95 * sharpness(nuclei_image[..., 32:-32, 32:-32])


def test_a_second_tissue_brings_structure_but_no_seams(nuclei_image: torch.Tensor) -> None:
    ramp = torch.linspace(0.3, 0.9, 128).expand(1, 3, 128, 128)
    doubled = replace(QUIET, second_layer=(1.0, 1.0), second_layer_probability=1.0, second_layer_um=(0.0, 0.0))
    for seed in range(5):
        result = degrade(ramp, torch.zeros(1), setting=doubled, generator=seeded(seed), margin_px=32)
        assert result.degraded.diff(dim=-1).abs().max() < 0.03
        assert result.degraded.diff(dim=-2).abs().max() < 0.03
    bare, covered = (degrade(nuclei_image, torch.zeros(1), setting=s, generator=seeded(), margin_px=32).degraded for s in (QUIET, doubled))
    assert covered.mean() < bare.mean() - 0.02


def test_each_layer_comes_into_focus_at_its_own_depth(nuclei_image: torch.Tensor) -> None:
    left = torch.zeros(128, 128)
    left[:, :64] = 1
    slab = Slab(torch.zeros(128, 128), torch.tensor([0.0, 3.0]), torch.stack([left, 1 - left]))
    planes = image_slab(nuclei_image, slab, torch.tensor([0.0, 3.0]), Optics(), from_scan=True)
    assert torch.allclose(planes[0, :, 30:-30, 30:40], nuclei_image[0, :, 30:-30, 30:40], atol=0.02)
    assert torch.allclose(planes[1, :, 30:-30, 90:98], nuclei_image[0, :, 30:-30, 90:98], atol=0.02)
    assert sharpness(planes[..., :56])[0] > 1.5 * sharpness(planes[..., :56])[1]


@given(scale=st.floats(8, 40))
def test_smooth_fields_have_unit_variance_and_vary_over_their_scale(scale: float) -> None:
    field = smooth_fields(400, 24, 24, scale_px=scale, generator=seeded())
    assert field.var(0).mean().item() == pytest.approx(1, rel=0.15)
    assert field.diff(dim=1).square().mean() < (1.2 / scale) ** 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": (1.2, 0.8)}, "low <= high"),
        ({"glare": (0.1,)}, "low <= high"),
        ({"demosaic_probability": 1.5}, r"\[0, 1\]"),
        ({"layers": 0}, "layers=0"),
        ({"numerical_aperture": (0.5, 1.2)}, "refractive_index"),
        ({"max_blur_px": 0.0}, "max_blur_px"),
        ({"codec": "gif"}, "codec"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Setting.ideal(), **options)  # type: ignore[arg-type]


def test_inputs_that_do_not_fit_are_refused(batch: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="one focus position per image"):
        degrade(batch, torch.zeros(2), setting=QUIET, generator=seeded())
    with pytest.raises(ValueError, match="leaves nothing"):
        degrade(batch, None, setting=QUIET, generator=seeded(), margin_px=64)
    with pytest.raises(ValueError, match="expected"):
        simulate_stack(batch, torch.zeros(1), setting=QUIET, generator=seeded())


def test_every_range_of_a_setting_reaches_the_sample() -> None:
    drawn = {field.name for field in fields(Setting.ideal().sample(seeded()))} | {field.name for field in fields(Optics())}
    handled_elsewhere = {"max_blur_px", "from_scan", "demosaic_probability", "compression_probability", "second_layer_probability"}
    assert {field.name for field in fields(Setting())} - drawn == handled_elsewhere
