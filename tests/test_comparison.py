"""One method is called better than another only where the images bear it out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pathorestore.metrics.comparison import PairedTest, holm, judge, paired_test, student_interval

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def sample(count, seed=0, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, count))


def a_test(p, *, better=True):
    return PairedTest(
        unit="image",
        pairs=20,
        images=20,
        dropped=0,
        mean=1.0,
        other_mean=0.0,
        median_difference=1.0,
        better=20,
        worse=0,
        equal=0,
        mean_is_better=better,
        p=p,
    )


@pytest.mark.parametrize("count", [10, 30, 80])
def test_p_is_that_of_scipy(count):
    values, others = sample(count), sample(count, 1, 0.5)
    found = paired_test(values, others, higher_is_better=True)
    assert found.p == stats.wilcoxon(values.numpy(), others.numpy(), zero_method="wilcox").pvalue
    assert (found.pairs, found.unit, found.reason) == (count, "image", "")


def test_p_of_ten_wins_is_two_in_two_to_the_tenth():
    # of the 2^10 equally likely signs only all plus and all minus are as extreme
    others = torch.arange(10.0)
    assert paired_test(others + 1 + others / 10, others, higher_is_better=True).p == pytest.approx(2 / 2**10)


def test_p_of_darwins_maize_is_that_of_counting_all_signs():
    # 15 pairs of plants, crossed minus self-fertilised, in eighths of an inch: Fisher, The Design of Experiments (1935), section 17
    differences = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    ranks = stats.rankdata(np.abs(differences))
    smaller = min(ranks[np.array(differences) < 0].sum(), ranks[np.array(differences) > 0].sum())
    assert smaller == 24
    signs = (np.arange(2**15)[:, None] >> np.arange(15)) & 1
    expected = 2 * ((signs * ranks).sum(axis=1) <= smaller).mean()
    assert paired_test(differences, [0.0] * 15, higher_is_better=True).p == pytest.approx(expected)


@given(st.integers(0, 500), st.booleans())
def test_turning_the_comparison_round_turns_the_winner_round(seed, higher_is_better):
    values, others = sample(14, seed).round(decimals=1), sample(14, seed + 1).round(decimals=1)
    there, back = (paired_test(*pair, higher_is_better=higher_is_better) for pair in ((values, others), (others, values)))
    assert there.p == pytest.approx(back.p)
    assert there.median_difference == pytest.approx(-back.median_difference)
    assert (there.better, there.worse, there.equal) == (back.worse, back.better, back.equal)
    assert there.better + there.worse + there.equal == 14
    assert there.mean_is_better != back.mean_is_better or there.mean == there.other_mean


def test_lower_is_better_turns_wins_round_and_not_the_differences():
    low, high = torch.arange(10.0), torch.arange(10.0) + 1
    found = paired_test(low, high, higher_is_better=False)
    assert (found.better, found.worse, found.mean_is_better, found.median_difference) == (10, 0, True, -1)


def test_fewer_than_ten_pairs_allow_no_claim():
    few = paired_test(torch.arange(9.0) + 5, torch.arange(9.0), higher_is_better=True)
    assert math.isnan(few.p)
    assert few.reason == "9 pairs are fewer than 10: no claim"
    assert few.better == 9
    assert not judge([few])[0].win
    assert paired_test([], [], higher_is_better=True).images == 0


def test_unknown_pairs_are_dropped_and_counted_before_the_claim():
    values, others = torch.arange(11.0) + 1, torch.arange(11.0)
    values[3], others[5] = math.nan, math.nan
    found = paired_test(values, others, higher_is_better=True)
    assert (found.pairs, found.dropped, found.images) == (9, 2, 9)
    assert math.isnan(found.p)


def test_methods_that_do_the_same_do_not_differ():
    found = paired_test(torch.arange(12.0), torch.arange(12.0), higher_is_better=True)
    assert (found.p, found.reason, found.equal, found.mean_is_better) == (1, "no pair differs", 12, False)


def test_infinite_values_rank_highest_and_equal_ones_tie():
    values, others = torch.arange(12.0) + 1, torch.arange(12.0)
    values[0] = values[1] = others[0] = math.inf
    found = paired_test(values, others, higher_is_better=True)
    assert (found.better, found.equal, found.median_difference) == (11, 1, 1)
    assert found.p == pytest.approx(stats.wilcoxon([1] * 10 + [99], zero_method="wilcox").pvalue)


def test_images_of_ten_slides_are_averaged_first():
    slides = [index // 5 for index in range(50)]
    values, others = sample(50), sample(50, 1)
    found = paired_test(values, others, slides, higher_is_better=True)
    means, other_means = (numbers.reshape(10, 5).mean(dim=1) for numbers in (values, others))
    assert (found.unit, found.pairs, found.images) == ("group", 10, 50)
    assert found.p == pytest.approx(paired_test(means, other_means, higher_is_better=True).p)
    assert found.median_difference == pytest.approx(float(np.median((means - other_means).numpy())))
    assert found.mean == pytest.approx(means.mean().item())
    assert found.better == (values > others).sum()


def test_images_of_nine_slides_are_tested_themselves_and_it_says_so():
    slides = [index % 9 for index in range(50)]
    found = paired_test(sample(50), sample(50, 1), slides, higher_is_better=True)
    assert (found.unit, found.pairs) == ("image", 50)
    assert found.p == paired_test(sample(50), sample(50, 1), higher_is_better=True).p


def test_a_slide_whose_images_are_all_unknown_is_no_slide():
    values = torch.arange(20.0) + 1
    values[:2] = math.nan
    found = paired_test(values, torch.arange(20.0), [index // 2 for index in range(20)], higher_is_better=True)
    assert (found.unit, found.pairs, found.dropped) == ("image", 18, 2)


def test_averaging_over_slides_keeps_false_alarms_as_rare_as_they_should_be():
    rng = np.random.default_rng(0)
    slides = np.repeat(np.arange(12), 10)
    tests = {"group": 0, "image": 0}
    for _ in range(200):
        differences = rng.normal(size=12)[slides] + 0.1 * rng.normal(size=120)
        for unit, groups in (("group", slides.tolist()), ("image", None)):
            tests[unit] += paired_test(differences, [0.0] * 120, groups, higher_is_better=True).p < 0.05
    assert tests["group"] / 200 < 0.1
    assert tests["image"] / 200 > 0.3


def test_holm_of_a_case_worked_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last is raised to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_a_missing_p_is_no_test_of_the_family():
    assert holm([0.01, math.nan, 0.04])[0] == pytest.approx(0.02)
    assert math.isnan(holm([0.01, math.nan, 0.04])[1])


@given(P_VALUES, st.randoms())
def test_holm_keeps_order_lies_between_p_and_bonferroni_and_ignores_positions(p_values, random):
    adjusted = holm(p_values)
    assert all(p <= a <= min(1, len(p_values) * p) for p, a in zip(p_values, adjusted, strict=True))
    assert all(adjusted[i] <= adjusted[j] for i in range(len(adjusted)) for j in range(len(adjusted)) if p_values[i] <= p_values[j])
    order = list(range(len(p_values)))
    random.shuffle(order)
    assert holm([p_values[index] for index in order]) == [adjusted[index] for index in order]


def test_a_win_needs_the_better_mean_and_an_adjusted_p_below_the_level():
    verdicts = judge([a_test(0.004), a_test(0.004), a_test(0.004, better=False), a_test(math.nan)])
    assert [verdict.win for verdict in verdicts] == [False] * 4
    assert verdicts[0].p_holm == pytest.approx(0.012)
    assert [verdict.win for verdict in judge([a_test(0.004), a_test(0.5)])] == [True, False]
    assert not judge([a_test(0.0001, better=False)])[0].win
    assert not judge([a_test(0.01)])[0].win
    assert judge([a_test(0.01)], level=0.05)[0].win


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.sampled_from([0.8, 0.95]))
def test_the_students_interval_is_that_of_scipy(values, level):
    found = student_interval([*values, math.nan], level=level)
    assert found.mean == pytest.approx(np.mean(values))
    if np.std(values) > 1e-6:
        low, high = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert found[1:] == pytest.approx((low, high))


def test_one_value_has_a_mean_and_no_bounds():
    assert student_interval([2.0]).mean == 2
    assert math.isnan(student_interval([2.0]).low)
    assert math.isnan(student_interval([]).mean)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: paired_test([1.0], [1.0, 2.0], higher_is_better=True), "1 values, 2 others"),
        (lambda: paired_test([1.0], [1.0], ["a", "b"], higher_is_better=True), "2 groups"),
        (lambda: holm([1.5]), "p values must lie"),
        (lambda: judge([], level=1), "level=1 must lie"),
        (lambda: student_interval([1.0], level=95), "level=95"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
