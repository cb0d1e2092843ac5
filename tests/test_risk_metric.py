"""Laws of the risk-coverage curve, the area under it, rank correlation and reliability."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.metrics.risk import rank_correlation, reliability, risk_coverage

numbers = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=30)


def made(seed: int, count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=gen), torch.rand(count, generator=gen)


def test_a_curve_worked_by_hand():
    # kept in the order 1, 2, 3, 4 of risk: errors 0, 4, 2, 6 and their running means
    curve = risk_coverage(torch.tensor([3.0, 1.0, 4.0, 2.0]), torch.tensor([2.0, 0.0, 6.0, 4.0]))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.error.tolist() == [0, 2, 2, 3]
    assert curve.oracle.tolist() == [0, 1, 2, 3]
    assert curve.mean == 3
    assert curve.area == 7 / 4
    assert curve.gain == pytest.approx((3 - 7 / 4) / (3 - 6 / 4))


@given(numbers, st.randoms(use_true_random=False))
def test_no_order_keeps_less_error_than_the_errors_own(errors, random):
    risk = torch.tensor([random.random() for _ in errors])
    curve = risk_coverage(risk, torch.tensor(errors, dtype=torch.float64))
    assert (curve.oracle <= curve.error + 1e-9).all()
    assert curve.error[-1] == pytest.approx(sum(errors) / len(errors))


def test_the_oracle_gains_everything_and_its_opposite_loses():
    _, error = made(0)
    assert risk_coverage(error, error).gain == pytest.approx(1)
    assert risk_coverage(-error, error).gain < -0.9


def test_a_constant_risk_is_a_random_order_whose_curve_is_the_mean_at_every_coverage():
    _, error = made(1)
    curve = risk_coverage(torch.ones(400), error)
    assert curve.error.sub(error.double().mean()).abs().max() < 1e-12
    assert curve.gain == pytest.approx(0, abs=1e-12)


def test_random_orders_have_the_mean_for_their_average_area():
    _, error = made(2)
    gains = [risk_coverage(made(seed)[0], error).gain for seed in range(3, 63)]
    assert abs(sum(gains) / len(gains)) < 0.03
    assert max(abs(gain) for gain in gains) > 0.01


def test_ties_are_taken_as_in_random_order_so_that_their_sequence_does_not_matter():
    risk, error = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([9.0, 1.0, 3.0, 0.0])
    there, back = risk_coverage(risk, error), risk_coverage(risk.flip(0), error.flip(0))
    assert torch.equal(there.error, back.error)
    assert there.error.tolist() == [1, 2.5, 3, 3.25]


def test_equal_errors_leave_nothing_to_gain():
    assert math.isnan(risk_coverage(torch.rand(9, generator=torch.Generator().manual_seed(0)), torch.ones(9)).gain)


def test_a_curve_can_be_thinned_and_keeps_its_end():
    risk, error = made(4, 1000)
    curve = risk_coverage(risk, error)
    thin = curve.at(10)
    assert thin.coverage.tolist() == pytest.approx([0.1 * step for step in range(1, 11)])
    assert thin.error[-1] == curve.error[-1]
    assert thin.oracle[4] == curve.oracle[499]
    assert len(risk_coverage(risk[:3], error[:3]).at(50).error) == 3
    with pytest.raises(ValueError, match="points=0"):
        curve.at(0)


def test_rank_correlation_does_not_change_under_a_rising_curve_and_turns_with_a_falling_one():
    risk, error = made(5)
    error = error + risk
    plain = rank_correlation(risk, error)
    assert rank_correlation(risk.exp(), error**3) == pytest.approx(plain)
    assert rank_correlation(-risk, error) == pytest.approx(-plain)
    assert rank_correlation(error, error) == pytest.approx(1)
    assert 0.4 < plain < 0.95
    assert math.isnan(rank_correlation(torch.ones(400), error))


def test_a_calibrated_expectation_is_reliable_in_every_bin_and_a_doubled_one_is_not():
    expected, noise = made(6, 20000)
    error = 10 * expected * 2 * noise  # uniform in 0..2 times what is expected
    bins = reliability(10 * expected, error, bins=5)
    assert (bins.expected / bins.error - 1).abs().max() < 0.05
    assert (reliability(20 * expected, error, bins=5).expected / bins.error - 2).abs().max() < 0.1
    assert bins.expected.diff().min() > 0
    assert bins.pixels.tolist() == [4000] * 5


@pytest.mark.parametrize(
    ("risk", "error", "why"),
    [
        (torch.rand(3), torch.rand(4), "one shape"),
        (torch.rand(0), torch.rand(0), "at least one"),
        (torch.tensor([math.nan]), torch.rand(1), "NaN"),
        (torch.rand(1), torch.tensor([math.inf]), "NaN or infinite"),
    ],
)
def test_what_cannot_be_compared_is_refused(risk, error, why):
    for measure in (risk_coverage, rank_correlation, lambda one, other: reliability(one, other, bins=1)):
        with pytest.raises(ValueError, match=why):
            measure(risk, error)


def test_more_bins_than_pixels_are_refused():
    with pytest.raises(ValueError, match="bins=5"):
        reliability(torch.rand(4), torch.rand(4), bins=5)
