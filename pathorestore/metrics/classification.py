"""How well a classifier tells images apart: AUC, accuracy, precision, specificity, sensitivity, F1, with intervals over patients or slides.

Of two classes the second is the positive one, and all figures are about it. Of more, AUC (one against the rest), precision, specificity,
sensitivity and F1 are means over the classes, and accuracy is the share of right answers. A figure that is not defined, such as the
precision of a classifier that never says yes or the AUC of images of one class, is NaN and never zero.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathorestore._torchvision import ensure_torchvision
from pathorestore.metrics.statistics import Interval

METRICS = ("auc", "accuracy", "precision", "specificity", "sensitivity", "f1")

_AT_ONCE = 1 << 22  # weights of images that are in memory at a time
_MOST_UNDEFINED = 0.1  # share of the draws: an interval of those left would be one of other samples


@dataclass(frozen=True, kw_only=True)
class FigureRules:
    """How figures and their intervals are made. threshold: of two classes, the second is predicted above it.

    level: probability of an interval. draws, seed: of its bootstrap. The functions that take it say what they refuse.
    """

    threshold: float = 0.5
    level: float = 0.95
    draws: int = 2000
    seed: int = 0


_USUAL = FigureRules()


def classification_scores(probabilities: Tensor, target: Tensor, *, threshold: float = 0.5) -> dict[str, float]:
    """The figures of METRICS in [0, 1] for probabilities n k of k classes and the true classes n, 0 .. k - 1.

    threshold: of two classes, the second is predicted above it; of more, the likeliest class is, the first of equals.
    Raises ValueError for shapes that do not fit, for numbers outside [0, 1] and for classes outside 0 .. k - 1.
    Source: Fawcett, Pattern Recognit. Lett. 27 (2006) 861-874; counting is torchmetrics'.
    """
    likely, truth = _checked(probabilities, target, threshold)
    ensure_torchvision()
    from torchmetrics.functional.classification import binary_stat_scores, multiclass_stat_scores

    if likely.shape[1] == 2:
        counts = binary_stat_scores(likely[:, 1], truth, threshold=threshold)[None]
    else:
        counts = multiclass_stat_scores(likely, truth, num_classes=likely.shape[1], average=None)
    tp, fp, tn, fn = counts[:, :4].double().unbind(dim=1)
    figures = {"auc": _area(likely, truth), **{name: float(value) for name, value in _ratios(tp, fp, tn, fn).items()}}
    return {name: figures[name] for name in METRICS}


def classification_intervals(
    probabilities: Tensor,
    target: Tensor,
    groups: Sequence[Hashable] | None = None,
    *,
    rules: FigureRules = _USUAL,
) -> dict[str, Interval]:
    """The figures of `classification_scores`, each with its percentile bootstrap interval; n/a bounds are NaN.

    groups: what each image belongs to, n; whole groups are drawn with replacement, the same ones as in `bootstrap_interval` for a seed.
    None takes every image for a group of its own. Draws in which a figure is not defined are left out of its interval; if they are more
    than a tenth, or if there are fewer than two groups, the bounds are NaN.
    Raises ValueError as `classification_scores` and `bootstrap_interval` do.
    """
    likely, truth = _checked(probabilities, target, rules.threshold)
    score = _weighted(likely, truth, rules.threshold)
    figures = classification_scores(likely, truth, threshold=rules.threshold)
    drawn = _resampled(score, _owners(groups, len(truth)), level=rules.level, draws=rules.draws, seed=rules.seed)
    return {name: Interval(figures[name], *_bounds(drawn[name], rules.level)) for name in METRICS}


def classification_differences(
    probabilities: Tensor,
    others: Tensor,
    target: Tensor,
    groups: Sequence[Hashable] | None = None,
    *,
    rules: FigureRules = _USUAL,
) -> dict[str, Interval]:
    """The figures of `probabilities` minus those of `others`, of the same images in the same order, both resampled alike.

    Intervals as in `classification_intervals`. Raises ValueError as it does, and if the two are of different shapes.
    """
    if probabilities.shape != others.shape:
        raise ValueError(
            f"{tuple(probabilities.shape)} probabilities cannot be paired with {tuple(others.shape)}; expected the same images"
        )
    (first, truth), (second, _) = (_checked(one, target, rules.threshold) for one in (probabilities, others))
    scores = tuple(_weighted(likely, truth, rules.threshold) for likely in (first, second))
    one, two = (classification_scores(likely, truth, threshold=rules.threshold) for likely in (first, second))

    def differ(weights: Tensor) -> dict[str, Tensor]:
        minuend, subtrahend = (score(weights) for score in scores)
        return {name: minuend[name] - subtrahend[name] for name in METRICS}

    drawn = _resampled(differ, _owners(groups, len(truth)), level=rules.level, draws=rules.draws, seed=rules.seed)
    return {name: Interval(one[name] - two[name], *_bounds(drawn[name], rules.level)) for name in METRICS}


def predicted(probabilities: Tensor, *, threshold: float = 0.5) -> Tensor:
    """The class that is predicted for each image, n."""
    return (probabilities[:, 1] > threshold).long() if probabilities.shape[1] == 2 else probabilities.argmax(dim=1)


def _checked(probabilities: Tensor, target: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or target.shape != probabilities.shape[:1] or not len(target):
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} and target {tuple(target.shape)} do not fit; expected n k and n, for k classes, "
            "at least two, and one image or more"
        )
    if not 0 < threshold < 1 or (threshold != 0.5 and probabilities.shape[1] > 2):
        raise ValueError(f"threshold={threshold} must lie in (0, 1), and stay 0.5 for more than two classes, where the likeliest is taken")
    likely, truth = probabilities.detach().cpu().double(), target.detach().cpu().long()
    if not bool(((likely >= 0) & (likely <= 1)).all()):  # NaN is neither
        raise ValueError("probabilities hold values that are NaN or outside [0, 1]; expected those of a softmax")
    if int(truth.min()) < 0 or int(truth.max()) >= likely.shape[1]:
        raise ValueError(f"target spans {int(truth.min())} .. {int(truth.max())}; expected classes 0 .. {likely.shape[1] - 1}")
    return likely, truth


def _area(likely: Tensor, truth: Tensor) -> float:
    """The area under the ROC curve, NaN where a class has no image."""
    from torchmetrics.functional.classification import binary_auroc, multiclass_auroc

    classes = likely.shape[1]
    if int(torch.bincount(truth, minlength=classes).min()) == 0:
        return math.nan
    return float(binary_auroc(likely[:, 1], truth) if classes == 2 else multiclass_auroc(likely, truth, num_classes=classes))


def _ratios(tp: Tensor, fp: Tensor, tn: Tensor, fn: Tensor) -> dict[str, Tensor]:
    """All figures but AUC from counts ... k, of the positive class or of each class; 0 / 0 is NaN, which a mean over classes keeps."""
    images = (tp + fp + tn + fn)[..., 0]
    # of two classes only the positive one is counted, and its true negatives are right answers too
    right = (tp + tn)[..., 0] if tp.shape[-1] == 1 else tp.sum(dim=-1)
    figures = {"precision": tp / (tp + fp), "specificity": tn / (tn + fp), "sensitivity": tp / (tp + fn), "f1": 2 * tp / (2 * tp + fp + fn)}
    return {"accuracy": right / images, **{name: value.mean(dim=-1) for name, value in figures.items()}}


def _weighted(likely: Tensor, truth: Tensor, threshold: float) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function from how often each image was drawn, draws n, to the figures of each draw.

    Counting every image as often as it was drawn is the same as repeating it, for all draws at once.
    """
    columns = [1] if likely.shape[1] == 2 else list(range(likely.shape[1]))
    is_class = torch.stack([truth == column for column in columns], dim=1).double()
    said = torch.stack([predicted(likely, threshold=threshold) == column for column in columns], dim=1).double()
    kinds = (said * is_class, said * (1 - is_class), (1 - said) * (1 - is_class), (1 - said) * is_class)
    # equal probabilities get one rank
    buckets = [torch.searchsorted(likely[:, column].sort().values, likely[:, column].contiguous()) for column in columns]

    def score(weights: Tensor) -> dict[str, Tensor]:
        areas = [_weighted_area(weights, bucket, is_class[:, index]) for index, bucket in enumerate(buckets)]
        return {"auc": torch.stack(areas, dim=1).mean(dim=1), **_ratios(*(weights @ kind for kind in kinds))}

    return score


def _weighted_area(weights: Tensor, bucket: Tensor, positive: Tensor) -> Tensor:
    """The share of (positive, negative) pairs in the right order, ties half: Mann-Whitney's U. bucket: rank of each image's probability."""
    empty = weights.new_zeros(len(weights), int(bucket.max()) + 1)
    above, below = (empty.index_add(1, bucket, weights * side) for side in (positive, 1 - positive))
    beaten = below.cumsum(dim=1) - below / 2
    return (above * beaten).sum(dim=1) / (above.sum(dim=1) * below.sum(dim=1))


def _owners(groups: Sequence[Hashable] | None, images: int) -> Tensor:
    """The number of each image's group, counted in the order in which the groups first occur."""
    names: list[Any] = list(range(images)) if groups is None else list(groups)
    if len(names) != images:
        raise ValueError(f"{images} images came with {len(names)} groups; expected one group for each image")
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([order[name] for name in names])


def _resampled(score: Callable[[Tensor], dict[str, Tensor]], owners: Tensor, *, level: float, draws: int, seed: int) -> dict[str, Tensor]:
    """The figures of `draws` samples; none where there are fewer than two groups."""
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"level must lie in (0, 1) and draws be at least 1; got level={level} and draws={draws}")
    if int(owners.max()) < 1:
        return {name: torch.zeros(0, dtype=torch.float64) for name in METRICS}
    found = [score(weights) for weights in _drawn_weights(owners, draws, seed)]
    return {name: torch.cat([one[name] for one in found]) for name in METRICS}


def _drawn_weights(owners: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
    """How often each image is in each sample of as many groups as there are, drawn with replacement."""
    groups = int(owners.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _AT_ONCE // len(owners))
    for start in range(0, draws, rows):
        chosen = torch.randint(groups, (min(rows, draws - start), groups), generator=generator)
        times = torch.zeros(chosen.shape, dtype=torch.float64).scatter_add(1, chosen, torch.ones(chosen.shape, dtype=torch.float64))
        yield times[:, owners]


def _bounds(drawn: Tensor, level: float) -> tuple[float, float]:
    known = drawn[~drawn.isnan()]
    if not len(known) or len(known) < (1 - _MOST_UNDEFINED) * len(drawn):
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = known.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
