"""Bootstrap intervals keep their promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pathorestore.metrics.statistics import Interval, bootstrap_interval, paired_interval

NUMBERS = st.lists(st.floats(-100, 100, allow_nan=False), min_size=2, max_size=20)


def normal(count, seed=0, scale=1.0):
    return scale * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_is_that_of_scipy(level):
    values = normal(40) ** 2
    ours = bootstrap_interval(values, level=level, draws=20_000)
    theirs = stats.bootstrap(
        (values.numpy(),), np.mean, confidence_level=level, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert ours.mean == pytest.approx(values.mean().item(), rel=1e-12)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * spread)


def test_the_paired_interval_is_that_of_scipy():
    first, second = normal(30, seed=1), normal(30, seed=2, scale=0.5)
    ours = paired_interval(first, second, draws=20_000)
    theirs = stats.bootstrap(
        (first.numpy(), second.numpy()),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = [interval.low <= 0 <= interval.high for interval in (bootstrap_interval(normal(30, seed)) for seed in range(400))]
    # 95 % less what the percentile method loses at n = 30, give or take three standard errors of 400 trials
    assert 0.90 <= np.mean(covered) <= 0.98


def test_images_of_one_slide_are_no_independent_witnesses():
    """Ten slides of eight images that share most of their difference: drawing images alone claims far too much."""
    alone, together = [], []
    for seed in range(300):
        slide, image = normal(10, seed=2 * seed), normal(80, seed=2 * seed + 1, scale=0.3)
        values, groups = slide.repeat_interleave(8) + image, [index // 8 for index in range(80)]
        for covered, kept in ((alone, None), (together, groups)):
            interval = bootstrap_interval(values, kept, draws=500)
            covered.append(interval.low <= 0 <= interval.high)
    assert np.mean(alone) < 0.65
    assert 0.84 <= np.mean(together) <= 0.97  # percentiles of ten groups are somewhat narrow


@given(NUMBERS)
def test_the_mean_lies_in_its_interval_and_the_interval_among_the_values(values):
    interval = bootstrap_interval(values, draws=200)
    slack = 1e-9
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
    assert interval.mean == pytest.approx(np.mean(values), abs=1e-9)


@given(NUMBERS, st.floats(-50, 50), st.floats(0.1, 10))
def test_shifting_and_scaling_the_values_shifts_and_scales_the_interval(values, shift, scale):
    moved = bootstrap_interval([scale * value + shift for value in values], draws=200)
    assert tuple(moved) == pytest.approx([scale * bound + shift for bound in bootstrap_interval(values, draws=200)], abs=1e-6)


@given(NUMBERS)
def test_groups_of_one_image_are_no_groups(values):
    assert bootstrap_interval(values, [f"slide {index}" for index in range(len(values))]) == bootstrap_interval(values)


def test_what_groups_are_called_does_not_matter():
    values = normal(12)
    assert bootstrap_interval(values, list("aabbccddeeff")) == bootstrap_interval(values, [index // 2 for index in range(12)])


def test_a_group_brings_all_its_images_and_their_weight():
    """Two groups: a sample is the first alone, both, or the second alone, so 95 % of the means span exactly the two group means."""
    interval = bootstrap_interval([1.0, 1.0, 1.0, 5.0], ["large"] * 3 + ["small"])
    assert tuple(interval) == (2.0, 1.0, 5.0)


def test_the_interval_shrinks_with_the_root_of_the_number_of_images():
    few, many = (bootstrap_interval(normal(count, seed=1)) for count in (10, 1000))
    assert many.high - many.low == pytest.approx(4 / 1000**0.5, rel=0.1)
    assert few.high - few.low > 5 * (many.high - many.low)


@given(NUMBERS, st.integers(0, 5))
def test_the_difference_to_oneself_is_nothing_and_turning_it_round_changes_its_sign(values, seed):
    others = normal(len(values), seed).tolist()
    there, back = paired_interval(values, others, seed=seed), paired_interval(others, values, seed=seed)
    assert paired_interval(values, values) == (0, 0, 0)
    assert tuple(there) == pytest.approx((-back.mean, -back.high, -back.low), abs=1e-9)


def test_pairing_removes_what_both_have_in_common():
    images, noise = normal(50, scale=10.0), normal(50, seed=1, scale=0.1)
    paired = paired_interval(images + noise + 0.5, images)
    assert paired.low > 0.4
    assert paired.high < 0.6
    alone = bootstrap_interval(images)
    assert alone.high - alone.low > 4


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    values = normal(20)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_drawing_in_portions_draws_the_same(monkeypatch):
    values = normal(20)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("pathorestore.metrics.statistics._AT_ONCE", 100)
    assert bootstrap_interval(values) == pytest.approx(whole, rel=1e-12)  # sums of other lengths round otherwise


def test_unknown_values_are_left_out_on_either_side_of_a_pair():
    values, groups = [1.0, math.nan, 3.0, 4.0], ["a", "b", "c", "d"]
    assert bootstrap_interval(values, groups) == bootstrap_interval([1.0, 3.0, 4.0], ["a", "c", "d"])
    assert paired_interval(values, [0.0, 0.0, math.nan, 1.0], groups).mean == 2.0
    assert all(math.isnan(bound) for bound in bootstrap_interval([math.nan]))
    assert all(math.isnan(bound) for bound in bootstrap_interval([]))


def test_one_group_has_a_mean_and_no_bounds():
    interval = bootstrap_interval([1.0, 2.0], ["a", "a"])
    assert interval.mean == 1.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_a_format_serves_all_three_numbers():
    assert f"{Interval(0.514, 0.12, 0.928):+.2f}" == "+0.51 [+0.12, +0.93]"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bootstrap_interval([1.0, 2.0], ["a"]), "2 values came with 1 groups"),
        (lambda: paired_interval([1.0, 2.0], [1.0]), "2 values cannot be paired with 1"),
        (lambda: bootstrap_interval([1.0], level=95), "level must lie in"),
        (lambda: bootstrap_interval([1.0], draws=0), "draws be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_equal_infinities_differ_by_nothing_and_a_lone_one_is_left_out():
    values, others = [math.inf, math.inf, 3.0, 5.0], [math.inf, 1.0, 2.0, 4.0]
    assert paired_interval(values, others) == pytest.approx(bootstrap_interval([0.0, 1.0, 1.0]))
