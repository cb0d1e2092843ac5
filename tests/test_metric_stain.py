import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from pathorestore.metrics.accumulators.stain import StainShift
from pathorestore.metrics.stain import stain_shift, stain_vectors

SEEDS = st.integers(0, 10_000)
# Ruifrok & Johnston 2001; Macenko's own reference slide; a bluish and a purple pair
RUIFROK = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
MACENKO = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
OTHERS = (((0.75, 0.60, 0.25), (0.10, 0.80, 0.60)), ((0.55, 0.80, 0.25), (0.25, 0.95, 0.15)))
PAIRS = (RUIFROK, MACENKO, *OTHERS)


def _vectors(pair):
    return normalize(torch.tensor(pair, dtype=torch.float64), dim=1)


def _amounts(seed=0, side=64):
    """Amounts of both stains, 2 side side: a third of the pixels holds only the first, a third only the second, a third some of both."""
    gen = torch.Generator().manual_seed(seed)
    amounts = 0.3 + 0.5 * torch.rand(2, side, side, generator=gen, dtype=torch.float64)
    kind = torch.randint(3, (side, side), generator=gen)
    return amounts * torch.stack([kind != 1, kind != 0])


def _stained(pair, amounts, light=1.0):
    """The 8-bit image of these amounts by Beer-Lambert, 1 3 h w."""
    density = torch.einsum("sc,shw->chw", _vectors(pair), amounts)
    return (light * 10**-density).mul(255).round().div(255).float()[None]


def _apart(first, second):
    """Angles in degrees between vectors along the last axis."""
    return (first.double() * second.double()).sum(-1).clamp(-1, 1).arccos().rad2deg()


# --- vectors --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
def test_vectors_that_an_image_was_made_of_are_found_within_2_degrees_and_in_order(pair):
    found = stain_vectors(_stained(pair, _amounts()))
    assert found.shape == (1, 2, 3)
    assert found.dtype == torch.float32
    assert _apart(found[0], _vectors(pair)).max() < 2
    assert found.norm(dim=-1).flatten().tolist() == pytest.approx([1, 1], abs=1e-6)


@given(seed=SEEDS, share=st.floats(0.3, 0.7))
def test_the_order_of_the_stains_does_not_depend_on_which_there_is_more_of(seed, share):
    amounts = _amounts(seed) * torch.tensor([share, 1 - share], dtype=torch.float64)[:, None, None] * 2
    found = stain_vectors(_stained(RUIFROK, amounts))[0]
    assert found[0, 0] > found[1, 0]
    assert _apart(found, _vectors(RUIFROK)).max() < 3


@pytest.mark.parametrize("signs", [(1, 1, -1), (1, -1, 1), (1, -1, -1)])
def test_the_signs_of_the_singular_vectors_do_not_matter(signs, monkeypatch):
    image, eigh = _stained(MACENKO, _amounts()), torch.linalg.eigh
    expected = stain_vectors(image)
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (None, eigh(matrix)[1] * torch.tensor(signs)))
    assert torch.allclose(stain_vectors(image), expected, atol=0.01)


def test_vectors_are_the_extremes_of_the_angle_in_the_plane_worked_by_hand():
    # two pure stains of equal number: the plane is theirs and the 1st and 99th percentile are the vectors themselves
    amounts = torch.zeros(2, 20, 20, dtype=torch.float64)
    amounts[0, :10], amounts[1, 10:] = 0.5, 0.5
    image = _stained(MACENKO, amounts)
    exact = normalize(torch.stack([-image[0, :, 0, 0].double().log10(), -image[0, :, -1, 0].double().log10()]), dim=1)
    assert torch.allclose(stain_vectors(image)[0].double(), exact, atol=1e-6)


def test_one_percent_of_stray_pixels_does_not_move_the_vectors():
    image = _stained(RUIFROK, _amounts())
    stray = image.clone()
    # 30 of 4096 pixels of green ink
    stray[..., :30, 0] = torch.tensor([0.1, 0.7, 0.3])[:, None]
    assert _apart(stain_vectors(stray), stain_vectors(image)).max() < 1


@given(thickness=st.floats(0.6, 1.6))
def test_a_thicker_or_thinner_section_has_the_same_vectors(thickness):
    amounts = _amounts()
    found, expected = (stain_vectors(_stained(RUIFROK, amounts * factor)) for factor in (thickness, 1))
    assert _apart(found, expected).max() < 1


@given(light=st.floats(0.6, 0.95))
def test_a_dimmer_lamp_changes_nothing_once_the_value_of_glass_is_given(light):
    amounts = _amounts()
    dim, bright = _stained(RUIFROK, amounts, light), _stained(RUIFROK, amounts)
    assert _apart(stain_vectors(dim, white=light), stain_vectors(bright)).max() < 1.5
    assert stain_shift(dim, bright, white=1).item() > stain_shift(dim, dim, white=light).item() == 0


def test_glass_around_the_tissue_does_not_matter():
    amounts = torch.zeros(2, 128, 128, dtype=torch.float64)
    amounts[:, :64, :64] = _amounts()
    assert torch.allclose(stain_vectors(_stained(RUIFROK, amounts)), stain_vectors(_stained(RUIFROK, _amounts())), atol=1e-6)


def test_an_image_of_a_single_stain_gives_it_twice():
    amounts = _amounts()
    amounts[1] = 0
    amounts[0] += 0.3
    found = stain_vectors(_stained(RUIFROK, amounts))[0]
    assert _apart(found, _vectors(RUIFROK)[:1]).max() < 2


def test_glass_and_crumbs_have_no_stains():
    glass = torch.full((1, 3, 64, 64), 0.97)
    crumbs = glass.clone()
    crumbs[..., :9, :9] = 0.4
    tissue = _stained(RUIFROK, _amounts())
    vectors = stain_vectors(torch.cat([glass, crumbs, tissue]))
    assert vectors[:2].isnan().all()
    assert vectors[2].isfinite().all()
    # of a large image at least 1 % must be tissue
    large = torch.full((1, 3, 200, 200), 0.97)
    large[..., :19, :20] = 0.4
    assert stain_vectors(large).isnan().all()
    large[..., :21, :20] = 0.4
    assert stain_vectors(large).isfinite().all()


def test_black_pixels_and_channels_without_light_do_not_count():
    image = _stained(RUIFROK, _amounts())
    image[..., 0, :10] = 0
    image[:, 1, 1, :10] = 0
    assert _apart(stain_vectors(image), stain_vectors(_stained(RUIFROK, _amounts()))).max() < 0.1
    assert stain_vectors(torch.zeros(1, 3, 64, 64)).isnan().all()


# --- shift ----------------------------------------------------------------------------------------------------------------------------


def test_equal_images_are_not_shifted_at_all():
    images = torch.cat([_stained(pair, _amounts()) for pair in PAIRS])
    assert stain_shift(images, images).tolist() == [0] * 4


def test_the_shift_is_the_mean_angle_between_the_vectors_the_images_were_made_of():
    images = [_stained(pair, _amounts(index)) for index, pair in enumerate(PAIRS)]
    found = stain_shift(torch.cat(images), torch.cat([*images[1:], images[0]]))
    expected = [_apart(_vectors(PAIRS[index]), _vectors(PAIRS[(index + 1) % 4])).mean().item() for index in range(4)]
    assert found.tolist() == pytest.approx(expected, abs=1.5)


def test_every_image_is_nearer_to_its_noisy_copy_than_to_another_stain():
    clean = torch.cat([_stained(pair, _amounts()) for pair in PAIRS])
    noisy = (clean + 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert (stain_shift(noisy, clean) < stain_shift(noisy.roll(1, 0), clean)).all()


def test_other_tissue_of_the_same_stain_is_hardly_shifted():
    assert stain_shift(_stained(RUIFROK, _amounts(1)), _stained(RUIFROK, _amounts(2))).item() < 1


@given(seed=SEEDS)
def test_the_shift_is_the_same_in_both_directions(seed):
    first, second = _stained(PAIRS[seed % 4], _amounts(seed)), _stained(PAIRS[(seed + 1) % 4], _amounts(seed + 1))
    assert stain_shift(first, second).item() == pytest.approx(stain_shift(second, first).item(), rel=1e-6)


@pytest.mark.parametrize("turn", [0.001, 0.01, 1.0])
def test_small_angles_are_not_lost(turn, monkeypatch):
    first = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[None]
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    second = torch.tensor([[cos, sin, 0], [-sin, cos, 0]])[None]
    vectors = {0.0: first, 1.0: second}
    monkeypatch.setattr("pathorestore.metrics.stain.stain_vectors", lambda image, white: vectors[image.mean().item()])
    assert stain_shift(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item() == pytest.approx(turn, rel=1e-3)


def test_a_pair_with_glass_is_undefined():
    glass, tissue = torch.full((1, 3, 64, 64), 0.97), _stained(RUIFROK, _amounts())
    shifts = stain_shift(torch.cat([glass, tissue, glass, tissue]), torch.cat([tissue, glass, glass, tissue]))
    assert shifts.isnan().tolist() == [True, True, True, False]


def test_bad_input_is_one_clear_error():
    image = _stained(RUIFROK, _amounts())
    with pytest.raises(ValueError, match="one shape"):
        stain_shift(image[..., :-1], image)
    with pytest.raises(ValueError, match="batch, 3, height, width"):
        stain_vectors(image[0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        stain_vectors(image * torch.nan)
    with pytest.raises(ValueError, match="value of empty glass"):
        stain_vectors(image, white=0)


# --- accumulator ----------------------------------------------------------------------------------------------------------------------


def test_accumulated_shifts_are_the_mean_over_defined_images_whatever_the_batches_and_processes():
    glass = torch.full((1, 3, 64, 64), 0.97)
    restored = torch.cat([*(_stained(pair, _amounts()) for pair in PAIRS), glass])
    clean = torch.cat([*(_stained(RUIFROK, _amounts(9)) for _ in PAIRS), glass])
    whole, first, second = StainShift(), StainShift(), StainShift()
    whole.update(restored, clean)
    first.update(restored[:2], clean[:2])
    second.update(restored[2:3], clean[2:3])
    second.update(restored[3:], clean[3:])
    first.merge_state(second)
    assert whole.compute().item() == pytest.approx(stain_shift(restored, clean).nanmean().item(), rel=1e-6)
    assert first.compute().item() == pytest.approx(whole.compute().item(), rel=1e-6)
    assert first.undefined.item() == whole.undefined.item() == 1
    assert StainShift().higher_is_better is False
    assert StainShift().is_differentiable is False


def test_the_value_of_glass_reaches_the_accumulated_shift():
    dim, bright = _stained(RUIFROK, _amounts(), 0.7), _stained(MACENKO, _amounts(), 0.7)
    metric = StainShift(white=0.7)
    metric.update(dim, bright)
    assert metric.compute().item() == pytest.approx(stain_shift(dim, bright, white=0.7).item())
