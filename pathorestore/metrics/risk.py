"""Whether a risk map knows where the errors are: risk-coverage curves, the area under them, rank correlation, reliability.

A risk map gives each pixel a number; whoever keeps only the pixels that it calls safest wants little error among them. Risk and error are
tensors of one shape, taken pixel by pixel; units are the caller's.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class RiskCoverage(NamedTuple):
    """A risk-coverage curve of n pixels, each field n, float64, for the k = 1 .. n pixels of least risk.

    coverage: k / n. error: mean error of the pixels kept. oracle: the same if they had been sorted by the error itself; no order is lower.
    """

    coverage: Tensor
    error: Tensor
    oracle: Tensor

    @property
    def mean(self) -> float:
        """The mean error of all pixels: what any coverage has when pixels are kept at random."""
        return self.error[-1].item()

    @property
    def area(self) -> float:
        """AURC, the mean of the curve over its coverages. Source: Geifman & El-Yaniv, NeurIPS 2017; Geifman et al., ICLR 2019."""
        return self.error.mean().item()

    @property
    def gain(self) -> float:
        """Where the area lies between a random order (0) and the oracle (1); below 0 is worse than random, NaN if all errors are equal."""
        best = self.oracle.mean().item()
        return (self.mean - self.area) / (self.mean - best) if self.mean > best else math.nan

    def at(self, points: int = 101) -> "RiskCoverage":
        """The curve at so many evenly spaced coverages up to 1, for a plot or a table; at most n. Raises ValueError for fewer than 1."""
        if points < 1:
            raise ValueError(f"points={points} must be at least 1")
        count = len(self.error)
        index = torch.tensor(sorted({-(-step * count // points) - 1 for step in range(1, points + 1)}))
        return RiskCoverage(*(values[index] for values in self))


class Reliability(NamedTuple):
    """Expected and true error by bins of equal count, each field bins, float64, from the lowest expectation to the highest."""

    expected: Tensor
    error: Tensor
    pixels: Tensor


def risk_coverage(risk: Tensor, error: Tensor) -> RiskCoverage:
    """The mean error of the k pixels of least risk, for every k. Equal risks count as kept in random order, so none is favoured.

    Raises ValueError if the shapes differ, nothing is given, or a value is not finite.
    """
    danger, wrong = _flat(risk, error)
    order = danger.argsort()
    new_group = torch.diff(danger[order], prepend=danger[order[:1]]) > 0
    group = new_group.long().cumsum(0)
    total = torch.zeros(len(wrong), dtype=torch.float64).index_add(0, group, wrong[order])
    return RiskCoverage(
        coverage=torch.arange(1, len(wrong) + 1, dtype=torch.float64) / len(wrong),
        error=_running_mean((total / group.bincount(minlength=len(wrong)))[group]),
        oracle=_running_mean(wrong.sort().values),
    )


def rank_correlation(risk: Tensor, error: Tensor) -> float:
    """Spearman's correlation of risk and error in [-1, 1], ties with their mean rank; NaN if either is the same everywhere.

    Raises ValueError as `risk_coverage`.
    """
    from scipy.stats import spearmanr

    danger, wrong = _flat(risk, error)
    if danger.min() == danger.max() or wrong.min() == wrong.max():
        return math.nan
    return float(spearmanr(danger.numpy(), wrong.numpy()).statistic)


def reliability(expected: Tensor, error: Tensor, *, bins: int = 10) -> Reliability:
    """Mean expectation and mean error of `bins` bins of equal count, sorted by expectation: a calibrated map has the two equal.

    Raises ValueError as `risk_coverage`, or if there are fewer pixels than bins.
    """
    said, wrong = _flat(expected, error)
    if not 1 <= bins <= len(said):
        raise ValueError(f"bins={bins} must lie between 1 and the number of pixels, {len(said)}")
    order = said.argsort(stable=True)
    parts = [(said[part], wrong[part]) for part in order.tensor_split(bins)]
    return Reliability(
        expected=torch.stack([one.mean() for one, _ in parts]),
        error=torch.stack([other.mean() for _, other in parts]),
        pixels=torch.tensor([len(one) for one, _ in parts], dtype=torch.float64),
    )


def _running_mean(values: Tensor) -> Tensor:
    return values.cumsum(0) / torch.arange(1, len(values) + 1, dtype=torch.float64)


def _flat(risk: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 vectors on the CPU, checked."""
    if risk.shape != error.shape or risk.numel() == 0:
        raise ValueError(f"risk {tuple(risk.shape)} and error {tuple(error.shape)} must be of one shape with at least one pixel")
    danger, wrong = (values.detach().cpu().double().flatten() for values in (risk, error))
    if not bool(torch.isfinite(danger).all() and torch.isfinite(wrong).all()):
        raise ValueError("risk or error holds NaN or infinite values; expected finite numbers")
    return danger, wrong
