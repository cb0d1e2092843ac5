"""Whether two ways of measuring agree, not merely correlate: limits of agreement and the concordance coefficient."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathorestore.metrics.statistics import Interval

Numbers = Tensor | Sequence[float]


class Agreement(NamedTuple):
    """Differences `values - references`, their bias and the limits between which most of them lie, each with its confidence interval.

    bias: mean difference. sd: standard deviation of the differences (n - 1). lower, upper: bias -/+ 1.96 sd. means, differences: the points
    of the plot, n. dropped: pairs that were left out because either number was NaN. Fewer than two pairs leave all but the bias NaN.
    """

    bias: Interval
    sd: float
    lower: Interval
    upper: Interval
    means: Tensor
    differences: Tensor
    dropped: int

    @property
    def pairs(self) -> int:
        """How many pairs were compared."""
        return len(self.differences)


def bland_altman(values: Numbers, references: Numbers, *, level: float = 0.95, width_sd: float = 1.96) -> Agreement:
    """Limits of agreement of values n with references n, measured on the same objects in the same order.

    level: of the confidence intervals, from Student's t with n - 1 degrees of freedom; the standard error of a limit is
    sd sqrt(1 / n + width_sd^2 / (2 (n - 1))). width_sd: half the width of the limits in sd; Bland & Altman (1986) wrote 2.
    Raises ValueError if the lengths differ, a number is infinite, or level lies outside (0, 1).
    Source: Bland & Altman, Lancet 327 (1986) 307-310; Stat. Methods Med. Res. 8 (1999) 135-160, section 2.
    """
    first, second, dropped = _paired(values, references)
    if not 0 < level < 1 or width_sd <= 0:
        raise ValueError(f"level must lie in (0, 1) and width_sd be positive; got level={level} and width_sd={width_sd}")
    differences, means = first - second, (first + second) / 2
    count = len(differences)
    bias = differences.mean().item() if count else math.nan
    if count < 2:
        unknown = Interval(math.nan, math.nan, math.nan)
        return Agreement(Interval(bias, math.nan, math.nan), math.nan, unknown, unknown, means, differences, dropped)
    from scipy.stats import t as student

    sd = differences.std().item()
    quantile = float(student.ppf((1 + level) / 2, count - 1))
    error = quantile * sd / math.sqrt(count)
    limit_error = quantile * sd * math.sqrt(1 / count + width_sd**2 / (2 * (count - 1)))
    lower, upper = (_around(bias + side * width_sd * sd, limit_error) for side in (-1, 1))
    return Agreement(_around(bias, error), sd, lower, upper, means, differences, dropped)


def concordance(values: Numbers, references: Numbers) -> float:
    """Lin's concordance correlation coefficient, -1..1: 2 s_xy / (s_x^2 + s_y^2 + (mean_x - mean_y)^2), with moments over n.

    1 means equal numbers; a shift or another scale lowers it, unlike Pearson's. Pairs with NaN are left out; NaN without a pair, or if all
    numbers are the same. Raises ValueError if the lengths differ or a number is infinite. Source: Lin, Biometrics 45 (1989) 255-268.
    """
    first, second, _ = _paired(values, references)
    if not len(first):
        return math.nan
    shift = first.mean() - second.mean()
    x, y = first - first.mean(), second - second.mean()
    spread = ((x * x).mean() + (y * y).mean() + shift * shift).item()
    return 2 * (x * y).mean().item() / spread if spread > 0 else math.nan


def _around(centre: float, error: float) -> Interval:
    return Interval(centre, centre - error, centre + error)


def _paired(values: Numbers, references: Numbers) -> tuple[Tensor, Tensor, int]:
    """Both as float64 without the pairs that hold NaN, and how many those were."""
    first, second = (torch.as_tensor(numbers, dtype=torch.float64).detach().flatten().cpu() for numbers in (values, references))
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be compared with {len(second)} references; expected both of the same objects")
    if first.isinf().any() or second.isinf().any():
        raise ValueError("values or references hold infinite numbers; expected finite ones, or NaN for those to leave out")
    known = ~(first.isnan() | second.isnan())
    return first[known], second[known], int((~known).sum())
