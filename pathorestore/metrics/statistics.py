"""How sure a mean is: percentile bootstrap over images, or over what images have in common, such as their slide or patient."""

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_AT_ONCE = 1 << 22  # drawn groups that are in memory at a time


class Interval(NamedTuple):
    """A mean and the bounds of its interval; the bounds are NaN where fewer than two groups leave them unknown.

    A format is applied to all three numbers: f"{interval:+.2f}" is "+0.51 [+0.12, +0.93]".
    """

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def bootstrap_interval(
    values: Tensor | Sequence[float], groups: Sequence[Hashable] | None = None, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean of values n, one an image, and its percentile bootstrap interval of probability `level`.

    groups: what each image belongs to, n. Images of one slide are alike, so whole groups are drawn with replacement, with all their images;
    None takes every image for a group of its own. Values that are NaN are left out; without any other all three numbers are NaN.
    Raises ValueError if values and groups differ in length, and for a level outside (0, 1) or fewer than one draw.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13; Davison & Hinkley, Bootstrap Methods (1997), sec. 3.8.
    """
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"level must lie in (0, 1) and draws be at least 1; got level={level} and draws={draws}")
    sample = torch.as_tensor(values, dtype=torch.float64).flatten()
    names = list(range(len(sample))) if groups is None else list(groups)
    if len(names) != len(sample):
        raise ValueError(f"{len(sample)} values came with {len(names)} groups; expected one group for each value")
    known = ~sample.isnan()
    if not known.any():
        return Interval(math.nan, math.nan, math.nan)
    totals, counts = group_sums(sample[known], [name for name, kept in zip(names, known.tolist(), strict=True) if kept])
    mean = (totals.sum() / counts.sum()).item()
    if len(totals) < 2:
        return Interval(mean, math.nan, math.nan)
    tail = (1 - level) / 2
    bounds = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = _resampled_means(totals, counts, draws, seed).quantile(bounds).tolist()
    return Interval(mean, low, high)


def paired_interval(
    values: Tensor | Sequence[float],
    others: Tensor | Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of `values - others`, both n and of the same images in the same order, and its interval as of `bootstrap_interval`.

    Two equal infinite values, such as PSNR of equal images, differ by nothing; images for which either value is NaN, or one alone is
    infinite, are left out. Raises ValueError if the lengths differ.
    """
    first, second = (torch.as_tensor(numbers, dtype=torch.float64).flatten() for numbers in (values, others))
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}; expected both of the same images")
    difference = torch.where(first == second, 0.0, first - second)
    return bootstrap_interval(torch.where(difference.isinf(), torch.nan, difference), groups, level=level, draws=draws, seed=seed)


def group_sums(sample: Tensor, names: list[Hashable]) -> tuple[Tensor, Tensor]:
    """Sum and number of the values of each group, in the order in which the groups first occur."""
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    owner = torch.tensor([order[name] for name in names])
    empty = torch.zeros(len(order), dtype=torch.float64)
    return empty.index_add(0, owner, sample), empty.index_add(0, owner, torch.ones_like(sample))


def _resampled_means(totals: Tensor, counts: Tensor, draws: int, seed: int) -> Tensor:
    """Means of `draws` samples of as many groups as there are, drawn with replacement. Groups of many images weigh more, as in the mean."""
    if draws * len(totals) <= _AT_ONCE:
        times = _drawn(len(totals), draws, seed)
        return (times @ totals) / (times @ counts)
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _AT_ONCE // len(totals))
    means = []
    for start in range(0, draws, rows):
        chosen = torch.randint(len(totals), (min(rows, draws - start), len(totals)), generator=generator)
        means.append(totals[chosen].sum(dim=1) / counts[chosen].sum(dim=1))
    return torch.cat(means)


@lru_cache(maxsize=8)
def _drawn(groups: int, draws: int, seed: int) -> Tensor:
    """How often each group is in each sample, draws x groups; the same for all measures of the same images."""
    chosen = torch.randint(groups, (draws, groups), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(draws, groups, dtype=torch.float64).scatter_add_(
        1, chosen, torch.ones(1, 1, dtype=torch.float64).expand(draws, groups)
    )
