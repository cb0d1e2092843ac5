"""Limits of agreement and concordance are those of the papers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pathorestore.metrics.agreement import bland_altman, concordance

# Bland & Altman, Lancet 327 (1986) 307-310, table: peak expiratory flow rate in l/min, first readings of 17 subjects
WRIGHT = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
NUMBERS = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=3, max_size=15)


def test_the_peak_flow_meters_agree_as_published():
    # The paper: mean -2.1, sd 38.8, limits (2 sd) -79.7 and 75.5; 95 % intervals -22.0 to 17.8, -114.3 to -45.1, 40.9 to 110.1.
    found = bland_altman(WRIGHT, MINI, width_sd=2)
    assert found.bias.mean == pytest.approx(-2.1, abs=0.05)
    assert found.sd == pytest.approx(38.8, abs=0.05)
    # it computed with the rounded mean and sd
    assert (found.lower.mean, found.upper.mean) == pytest.approx((-79.7, 75.5), abs=0.1)
    assert found.bias[1:] == pytest.approx((-22.0, 17.8), abs=0.1)
    # and took sqrt(3 / n) for the standard error of a limit, which sqrt(1 / n + 4 / (2 (n - 1))) is 2 % above at n = 17
    assert found.lower[1:] == pytest.approx((-114.3, -45.1), abs=0.8)
    assert found.upper[1:] == pytest.approx((40.9, 110.1), abs=0.8)
    assert found.pairs == 17


def test_by_default_the_limits_are_1_96_sd_away():
    found = bland_altman(WRIGHT, MINI)
    assert (found.lower.mean, found.upper.mean) == pytest.approx((-2.1176 - 1.96 * 38.7651, -2.1176 + 1.96 * 38.7651), abs=1e-3)


def test_the_intervals_of_the_limits_cover_the_true_limits_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = [
        [found.lower.low < -1.96 < found.lower.high, found.upper.low < 1.96 < found.upper.high, found.bias.low < 0 < found.bias.high]
        for found in (bland_altman(rng.normal(size=30), np.zeros(30).tolist()) for _ in range(400))
    ]
    assert np.mean(covered, axis=0) == pytest.approx([0.95] * 3, abs=0.03)


@given(NUMBERS)
def test_swapping_the_methods_mirrors_the_limits(pairs):
    first, second = zip(*pairs, strict=True)
    there, back = bland_altman(first, second), bland_altman(second, first)
    assert there.bias.mean == pytest.approx(-back.bias.mean)
    assert (there.lower.mean, there.lower.low) == pytest.approx((-back.upper.mean, -back.upper.high))
    assert torch.allclose(there.means, back.means)


@given(NUMBERS, st.floats(-50, 50))
def test_an_offset_moves_the_bias_and_the_limits_alone(pairs, offset):
    first, second = zip(*pairs, strict=True)
    here, there = bland_altman(first, second), bland_altman([value + offset for value in first], second)
    assert there.sd == pytest.approx(here.sd, abs=1e-6)
    assert there.upper.mean == pytest.approx(here.upper.mean + offset, abs=1e-6)


def test_unknown_pairs_are_dropped_and_counted():
    found = bland_altman([*WRIGHT, math.nan, 3.0], [*MINI, 1.0, math.nan])
    assert found.dropped == 2
    assert found.lower == bland_altman(WRIGHT, MINI).lower
    assert concordance([*WRIGHT, math.nan], [*MINI, 1.0]) == concordance(WRIGHT, MINI)


def test_too_few_pairs_have_no_limits():
    one, none = bland_altman([3.0], [1.0]), bland_altman([math.nan], [1.0])
    assert one.bias.mean == 2
    assert all(math.isnan(number) for number in (*one.bias[1:], one.sd, *one.lower, *one.upper, *none.bias))
    assert none.pairs == 0


def test_the_points_are_means_and_differences():
    found = bland_altman([3.0, 5.0], [1.0, 6.0])
    assert found.means.tolist() == [2, 5.5]
    assert found.differences.tolist() == [2, -1]


def test_concordance_of_the_peak_flow_meters():
    # by hand from the sums of the 17 pairs: 2 s_xy / (s_x^2 + s_y^2 + (450.35 - 452.47)^2), moments over n
    x, y = np.array(WRIGHT), np.array(MINI)
    covariance = np.cov(x, y, bias=True)
    expected = 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (x.mean() - y.mean()) ** 2)
    assert concordance(WRIGHT, MINI) == pytest.approx(expected)
    assert concordance(WRIGHT, MINI) == pytest.approx(0.943, abs=5e-4)


@given(NUMBERS)
def test_concordance_is_correlation_times_a_bias_factor(pairs):
    first, second = (np.array(numbers) for numbers in zip(*pairs, strict=True))
    if min(first.std(), second.std()) < 1e-3:
        return
    ratio, shift = first.std() / second.std(), (first.mean() - second.mean()) / math.sqrt(first.std() * second.std())
    # Lin 1989, eq. 3: C_b = 2 / (v + 1 / v + u^2)
    expected = stats.pearsonr(first, second).statistic * 2 / (ratio + 1 / ratio + shift**2)
    assert concordance(first, second) == pytest.approx(expected, abs=1e-9)


def test_concordance_of_equal_mirrored_and_constant_numbers():
    assert concordance([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]) == pytest.approx(1)
    assert concordance([-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]) == pytest.approx(-1)
    assert concordance([1.0, 1.0], [2.0, 2.0]) == 0
    assert math.isnan(concordance([1.0, 1.0], [1.0, 1.0]))
    assert math.isnan(concordance([], []))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bland_altman([1.0], [1.0, 2.0]), "1 values cannot be compared with 2"),
        (lambda: concordance([math.inf, 1.0], [1.0, 2.0]), "infinite"),
        (lambda: bland_altman([1.0], [1.0], level=95), "level must lie in"),
        (lambda: bland_altman([1.0], [1.0], width_sd=0), "width_sd be positive"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
