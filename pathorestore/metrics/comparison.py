"""Whether one method is better than another on the same images: paired rank tests, adjusted for how many are made."""

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pathorestore.metrics.statistics import Interval, group_sums

Numbers = Tensor | Sequence[float]

FEWEST = 10  # pairs below which no claim is made, and groups below which images are not averaged over them


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A method against another on the same images; differences are the method minus the other.

    unit: what was tested, images or the means of their groups. pairs: how many of them. images: how many images they came from. dropped:
    images left out because either value was NaN. mean, other_mean: of the pairs tested. median_difference: of the pairs. better, worse,
    equal: images on which the method is so. mean_is_better: whether `mean` is. p: two-sided, NaN where no claim is made. reason: why p is
    what it is where it is no ordinary p; else empty.
    """

    unit: Literal["image", "group"]
    pairs: int
    images: int
    dropped: int
    mean: float
    other_mean: float
    median_difference: float
    better: int
    worse: int
    equal: int
    mean_is_better: bool
    p: float
    reason: str = ""


class Verdict(NamedTuple):
    """test: as it was made. p_holm: its p, adjusted for all tests of the family. win: better mean and p_holm below the level."""

    test: PairedTest
    p_holm: float
    win: bool


def paired_test(values: Numbers, others: Numbers, groups: Sequence[Hashable] | None = None, *, higher_is_better: bool) -> PairedTest:
    """Two-sided Wilcoxon signed-rank test of values n against others n, both of the same images in the same order.

    groups: what each image belongs to, such as its slide or patient, n. Images of one group are not independent: from 10 groups on, the
    means of the groups are tested; below, the images, and `unit` says so. Pairs without a difference are left out of the ranks
    (zero_method "wilcox"). Fewer than 10 pairs allow no claim. Images with NaN in either are dropped and counted; equal infinite values
    (PSNR of equal images) differ by nothing. Raises ValueError if the lengths differ.
    Source: Wilcoxon, Biometrics Bulletin 1 (1945) 80-83, through scipy.stats.wilcoxon.
    """
    first, second = (torch.as_tensor(numbers, dtype=torch.float64).detach().flatten().cpu() for numbers in (values, others))
    names = list(range(len(first))) if groups is None else list(groups)
    if not len(first) == len(second) == len(names):
        raise ValueError(f"{len(first)} values, {len(second)} others and {len(names)} groups; expected as many, of the same images")
    known = ~(first.isnan() | second.isnan())
    first, second = first[known], second[known]
    names = [name for name, kept in zip(names, known.tolist(), strict=True) if kept]
    by_image = _minus(first, second) * (1 if higher_is_better else -1)
    grouped = groups is not None and len(set(names)) >= FEWEST
    units, other_units = (_group_means(numbers, names) for numbers in (first, second)) if grouped else (first, second)
    differences = _minus(units, other_units)
    p, reason = _signed_rank(differences)
    mean, other_mean = (numbers.mean().item() for numbers in (units, other_units))
    return PairedTest(
        unit="group" if grouped else "image",
        pairs=len(differences),
        images=len(first),
        dropped=int((~known).sum()),
        mean=mean,
        other_mean=other_mean,
        median_difference=statistics.median(differences.tolist()) if len(differences) else math.nan,
        better=int((by_image > 0).sum()),
        worse=int((by_image < 0).sum()),
        equal=int((by_image == 0).sum()),
        mean_is_better=mean > other_mean if higher_is_better else mean < other_mean,
        p=p,
        reason=reason,
    )


def judge(tests: Sequence[PairedTest], *, level: float = 0.01) -> list[Verdict]:
    """Verdicts on a family of tests, in their order: a win has the better mean and a Holm-adjusted p below `level`."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie in (0, 1), e.g. 0.01")
    adjusted = holm([test.p for test in tests])
    return [Verdict(test, p, test.mean_is_better and p < level) for test, p in zip(tests, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p, in the order of p_values: the k-th smallest of m times m - k + 1, at least as large as those below it, at most 1.

    NaN stays NaN and is no test of the family. Raises ValueError for other values outside 0..1.
    Source: Holm, Scand. J. Statist. 6 (1979) 65-70.
    """
    if any(not 0 <= p <= 1 for p in p_values if not math.isnan(p)):
        raise ValueError(f"p values must lie in [0, 1] or be NaN; got {list(p_values)}")
    adjusted, largest = [math.nan] * len(p_values), 0.0
    order = sorted((index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def student_interval(values: Numbers, *, level: float = 0.95) -> Interval:
    """The mean of values n and its interval of probability `level` from Student's t; NaN values are left out, bounds NaN below two."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie in (0, 1), e.g. 0.95")
    sample = torch.as_tensor(values, dtype=torch.float64).flatten()
    sample = sample[~sample.isnan()]
    mean = sample.mean().item() if len(sample) else math.nan
    if len(sample) < 2:
        return Interval(mean, math.nan, math.nan)
    from scipy.stats import t as student

    error = float(student.ppf((1 + level) / 2, len(sample) - 1)) * sample.std().item() / math.sqrt(len(sample))
    return Interval(mean, mean - error, mean + error)


def _minus(first: Tensor, second: Tensor) -> Tensor:
    """The differences, 0 where they are equal, infinite or not."""
    return torch.where(first == second, 0.0, first - second)


def _group_means(values: Tensor, names: list[Hashable]) -> Tensor:
    totals, counts = group_sums(values, names)
    return totals / counts


def _signed_rank(differences: Tensor) -> tuple[float, str]:
    if len(differences) < FEWEST:
        return math.nan, f"{len(differences)} pairs are fewer than {FEWEST}: no claim"
    if not differences.any():
        return 1.0, "no pair differs"
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences.numpy(), zero_method="wilcox", alternative="two-sided").pvalue), ""
