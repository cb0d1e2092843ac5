"""What an evaluation finds: the scores of every image under every method, and what they come to. Plain values, for JSON and the report."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pathorestore.metrics.statistics import Interval
from pathorestore.pipelines.provenance import RESTORED_NOTICE

UNKNOWN = Interval(math.nan, math.nan, math.nan)
Better = Literal["higher", "lower", "zero", "none"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number that is taken of every image.

    key: its name in tables. label, unit: for readers. better: which way is good; "zero" is a signed difference that should vanish, "none"
    describes and does not judge. detail: a part of another column, which is told in tables, and neither drawn nor tested. note: a sentence
    about what it is.
    """

    key: str
    label: str
    unit: str = ""
    better: Better = "higher"
    detail: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One image under one method. case: its name, the same for all methods. slide, patient: "" if not known. z_um: distance from focus.

    scale: how many times the image was made smaller. task: what methods were asked to do, "" where all do one thing.
    image: the file that the case was made of; several cases are of one image where
    degradations are simulated. scores: by column key; NaN where a number does not exist, such as nuclei in an image without any. notes: why
    a metric gave nothing here, by its name. error: why there are no scores, empty if there are.
    """

    case: str
    method: str
    image: str = ""
    slide: str = ""
    patient: str = ""
    z_um: float | None = None
    scale: float | None = None
    task: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A column of one method: mean with its bootstrap interval over groups, median over cases, cases with and without the number.

    perfect: cases of an infinite one (PSNR of equal images), which have no part in the mean. gain: the same minus the first method's, over
    the cases that have both; NaN of the first method itself.
    """

    column: str
    method: str
    interval: Interval
    median: float
    images: int
    without: int
    perfect: int = 0
    gain: Interval = UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Compared:
    """`method` against `other` in one column, image by image.

    difference: mean of method - other with its bootstrap interval. n: what was tested, `unit` says whether images, slides or patients.
    p, p_holm: two-sided Wilcoxon signed-rank test, alone and adjusted for all tests of the report; NaN where n is too small. wins, ties: of
    so many images, all cases of one averaged: where the method is better, and where both are equal. verdict: "better", "worse" or "" for
    no claim. reason: why there is none.
    """

    column: str
    method: str
    other: str
    difference: Interval
    median_difference: float
    n: int
    unit: str
    p: float
    p_holm: float
    images: int = 0
    wins: int
    ties: int
    verdict: Literal["better", "worse", ""]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """`method` against the best other one in one column of one task.

    mean, best_mean: over the images, slides or patients (`unit`, n) that both have, with intervals of 95 % by Student's t. relative_gain:
    of the best one's mean, positive where the method is better. p, p_holm: two-sided Wilcoxon signed-rank test, alone and adjusted for all
    instances; NaN where n is too small, for a `reason`. outcome: "win" or "loss" where the adjusted p is below the level.
    """

    task: str
    column: str
    method: str
    best: str
    mean: Interval
    best_mean: Interval
    relative_gain: float
    median_difference: float
    n: int
    unit: str
    p: float
    p_holm: float
    outcome: Literal["win", "loss", ""]
    reason: str = ""


@dataclass(frozen=True)
class Axis:
    """What images are degraded by, against which scores are shown: a field of `ScoreRow`, its name, symbol and unit."""

    field: str
    name: str
    symbol: str
    unit: str


FOCUS = Axis("z_um", "distance from focus", "z", "um")
SCALE = Axis("scale", "scale", "scale", "")


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Mean of a column over the images of one method that lie in [low, high) on the summary's `axis`, or there if both are one.

    gain: as of `Score`.
    """

    column: str
    method: str
    low: float
    high: float
    interval: Interval
    images: int
    gain: Interval = UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Bland-Altman agreement of a quantity measured on restored and on clean images. points: (mean, restored - clean) of every image."""

    quantity: str
    label: str
    unit: str
    method: str
    bias: float
    lower: float
    upper: float
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class RiskCurve:
    """How well a method's risk map tells where it errs: error that remains when only the surest share of all pixels is kept.

    coverage, error, oracle: same length; oracle: sorted by the true error. spearman: between predicted and true local error.
    """

    method: str
    coverage: tuple[float, ...]
    error: tuple[float, ...]
    oracle: tuple[float, ...]
    mean_error: float
    spearman: float
    images: int


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """One image as all methods show it, for the comparer. pictures: label -> PNG or JPEG file, "clean" among them. why: it was chosen.

    degraded_by: how far, with its unit; "" if not known.
    """

    case: str
    degraded_by: str
    why: str
    pictures: dict[str, Path]
    scores: dict[str, dict[str, float]]
    pixel_um: float | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that a report says.

    methods: names in the order given; reference: the one that is compared with all others. unit: "image", "slide" or "patient", over which
    intervals are drawn. left_out: metric -> why it could not be computed. failures: (image, method, reason). set_scores: (label, method,
    value, note) of numbers that belong to a set of images, such as the Frechet distance. level: below which an adjusted p makes a claim.
    run: facts of the run, for the record; created_utc among them. notes: sentences that a reader must know before the numbers.
    axis: what the bins are of. notice: what a viewer of the pictures must know. instances: of methods that were asked to do several tasks.
    """

    title: str
    methods: tuple[str, ...]
    reference: str
    columns: tuple[Column, ...]
    cases: int
    unit: str
    groups: int
    scores: tuple[Score, ...]
    comparisons: tuple[Compared, ...]
    instances: tuple[Instance, ...] = ()
    bins: tuple[Bin, ...]
    agreements: tuple[Agreement, ...]
    risk: tuple[RiskCurve, ...]
    set_scores: tuple[tuple[str, str, float, str], ...]
    left_out: dict[str, str]
    failures: tuple[tuple[str, str, str], ...]
    run: dict[str, Any]
    level: float = 0.01
    notes: tuple[str, ...] = ()
    axis: Axis = FOCUS
    notice: str = RESTORED_NOTICE

    @property
    def shown(self) -> tuple[str, ...]:
        """The methods, and what else was scored: the clean images, where a score needs no partner."""
        return tuple(dict.fromkeys((*self.methods, *(score.method for score in self.scores))))

    def to_dict(self) -> dict[str, Any]:
        """As values of JSON: intervals become mean, low, high; what is not finite becomes null."""
        plain: dict[str, Any] = jsonable(asdict(self))
        return plain


def jsonable(value: Any) -> Any:
    """The same with names for the parts of intervals, lists for tuples, and None for numbers that JSON does not have."""
    if isinstance(value, Interval):
        return {name: jsonable(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
