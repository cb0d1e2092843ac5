"""From rows to what they come to: means with intervals over slides, tests between methods, curves over defocus, agreement, risk."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pathorestore.evaluation.journal import Kind
from pathorestore.evaluation.measures import Agreeing, Features
from pathorestore.evaluation.methods import CLEAN
from pathorestore.evaluation.results import UNKNOWN, Agreement, Bin, Column, Compared, RiskCurve, Score, ScoreRow, Summary
from pathorestore.metrics.agreement import bland_altman
from pathorestore.metrics.comparison import Verdict, judge, paired_test
from pathorestore.metrics.frechet import INDICATIVE_BELOW, frechet_distance
from pathorestore.metrics.risk import rank_correlation, risk_coverage
from pathorestore.metrics.statistics import Interval, bootstrap_interval

Arrays = Callable[[Kind, str], list[Tensor]]
Unit = Literal["image", "slide", "patient"]
Grouping = Literal["auto", "image", "slide", "patient"]
_DRAWS = 2000
_BINS_UM = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, math.inf)
_DISTANCES = 12  # so many distances are told one by one
_CURVE_POINTS = 50
LEVEL = 0.01
"""Of Holm-adjusted p, below which a difference is claimed."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the rows are asked. methods: in order; reference: the one compared with all others. grouping: what images have in common."""

    title: str
    methods: tuple[str, ...]
    reference: str
    columns: tuple[Column, ...]
    agreeing: tuple[Agreeing, ...] = ()
    features: Features | None = None
    grouping: Grouping = "auto"
    left_out: Mapping[str, str] | None = None
    run: Mapping[str, Any] | None = None


def _no_arrays(kind: Kind, method: str) -> list[Tensor]:
    del kind, method
    return []


class _Table:
    """The rows by case and method."""

    def __init__(self, rows: Iterable[ScoreRow], grouping: Grouping):
        self.rows = list(rows)
        self.good = [row for row in self.rows if not row.error]
        self.of = {(row.case, row.method): row for row in self.good}
        self.cases = list(dict.fromkeys(row.case for row in self.rows))
        self.first = {row.case: row for row in reversed(self.rows)}
        self.unit = _unit(self.rows, grouping)

    def group(self, case: str) -> Hashable:
        row = self.first[case]
        return {"image": row.image or row.case, "slide": row.slide, "patient": row.patient}[self.unit]

    def value(self, case: str, method: str, column: str) -> float:
        row = self.of.get((case, method))
        return math.nan if row is None else row.scores.get(column, math.nan)

    def values(self, method: str, column: str, cases: Sequence[str] | None = None) -> tuple[list[float], list[Hashable]]:
        chosen = self.cases if cases is None else cases
        return [self.value(case, method, column) for case in chosen], [self.group(case) for case in chosen]


def summarise(rows: Iterable[ScoreRow], question: Question, arrays: Arrays = _no_arrays) -> Summary:
    """Answer it. arrays: features and risk by kind and method, see `Journal`.

    Raises ValueError for a reference that is no method, and a grouping that the rows do not know.
    """
    if question.reference not in question.methods:
        raise ValueError(f"--reference {question.reference!r} is none of the methods {', '.join(question.methods)}")
    table = _Table(rows, question.grouping)
    shown = [*question.methods, CLEAN] if any(row.method == CLEAN for row in table.good) else list(question.methods)
    return Summary(
        title=question.title,
        methods=question.methods,
        reference=question.reference,
        columns=question.columns,
        cases=len(table.cases),
        unit=table.unit,
        groups=len({table.group(case) for case in table.cases}),
        scores=tuple(
            score for column in question.columns for method in shown if (score := _score(table, column, method, shown[0])) is not None
        ),
        comparisons=tuple(_comparisons(table, question)),
        bins=tuple(_bins(table, question)),
        agreements=tuple(_agreements(table, question)),
        risk=tuple(curve for method in question.methods if (curve := _risk(arrays("risk", method), method)) is not None),
        set_scores=tuple(_set_scores(arrays, question)),
        left_out=dict(question.left_out or {}) | _not_everywhere(table),
        failures=tuple((row.case, row.method, row.error) for row in table.rows if row.error),
        run=dict(question.run or {}),
        level=LEVEL,
    )


def _unit(rows: Sequence[ScoreRow], grouping: Grouping) -> Unit:
    known: dict[Unit, bool] = {"patient": all(row.patient for row in rows), "slide": all(row.slide for row in rows), "image": True}
    if grouping == "auto":
        return next(unit for unit, there in known.items() if there) if rows else "image"
    if not known[grouping]:
        raise ValueError(
            f"--group {grouping}: not every image has a {grouping}; name them in --facts or the manifest, or leave --group out"
        )
    return grouping


def _score(table: _Table, column: Column, method: str, first: str) -> Score | None:
    values, groups = table.values(method, column.key)
    known = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    if not len(known):
        return None
    interval = bootstrap_interval(values, groups, draws=_DRAWS)
    ran = sum((case, method) in table.of for case in table.cases)
    return Score(
        column=column.key,
        method=method,
        interval=interval,
        median=known.quantile(0.5).item(),
        images=len(known),
        without=ran - len(known),
        gain=_gain(table, column, method, first, table.cases),
    )


def _gain(table: _Table, column: Column, method: str, first: str, cases: Sequence[str]) -> Interval:
    """What a method has more than the first, over the cases that have both."""
    if method == first:
        return UNKNOWN
    mine, groups = table.values(method, column.key, cases)
    return _difference(mine, table.values(first, column.key, cases)[0], groups)


def _comparisons(table: _Table, question: Question) -> list[Compared]:
    """The reference against every other method in every whole column that says which way is good; Holm over all of these tests."""
    asked, tests = [], []
    for column in question.columns:
        for other in question.methods:
            if other == question.reference or column.detail or column.better not in ("higher", "lower"):
                continue
            mine, groups = table.values(question.reference, column.key)
            theirs, _ = table.values(other, column.key)
            asked.append((column, other, _difference(mine, theirs, groups)))
            tests.append(paired_test(mine, theirs, groups, higher_is_better=column.better == "higher"))
    return [
        _compared(question.reference, column, other, difference, verdict, table.unit)
        for (column, other, difference), verdict in zip(asked, judge(tests, level=LEVEL), strict=True)
    ]


def _difference(mine: Sequence[float], theirs: Sequence[float], groups: Sequence[Hashable]) -> Interval:
    # two perfect images differ by nothing, though both have an infinite PSNR; a perfect one against another has no mean
    gains = [0.0 if one == other else one - other for one, other in zip(mine, theirs, strict=True)]
    return bootstrap_interval([gain if math.isfinite(gain) else math.nan for gain in gains], groups, draws=_DRAWS)


def _compared(method: str, column: Column, other: str, difference: Interval, verdict: Verdict, unit: Unit) -> Compared:
    test = verdict.test
    lost = verdict.p_holm < LEVEL and not test.mean_is_better and test.mean != test.other_mean
    return Compared(
        column=column.key,
        method=method,
        other=other,
        difference=difference,
        median_difference=test.median_difference,
        n=test.pairs,
        unit=unit if test.unit == "group" else "image",
        p=test.p,
        p_holm=verdict.p_holm,
        images=test.images,
        wins=test.better,
        ties=test.equal,
        verdict="better" if verdict.win else "worse" if lost else "",
        reason=test.reason,
    )


def _bins(table: _Table, question: Question) -> list[Bin]:
    """Every column over the distance from focus: at each distance where there are few, else in bins."""
    known = {case: abs(z) for case in table.cases if (z := table.first[case].z_um) is not None}
    distances = sorted(set(known.values()))
    edges = [(z, z) for z in distances] if len(distances) <= _DISTANCES else list(itertools.pairwise(_BINS_UM))
    found = []
    for low, high in edges:
        inside = [case for case, z in known.items() if z == low or low <= z < high]
        for column in question.columns if inside else ():
            for method in question.methods:
                values, groups = table.values(method, column.key, inside)
                there = sum(not math.isnan(value) for value in values)
                if there:
                    interval = bootstrap_interval(values, groups, draws=_DRAWS)
                    gain = _gain(table, column, method, question.methods[0], inside)
                    one = Bin(column=column.key, method=method, low_um=low, high_um=high, interval=interval, images=there, gain=gain)
                    found.append(one)
    return found


def _agreements(table: _Table, question: Question) -> list[Agreement]:
    found = []
    for quantity in question.agreeing:
        for method in question.methods:
            values, references = (table.values(method, key)[0] for key in (quantity.column, quantity.clean_column))
            agreement = bland_altman(values, references)
            if agreement.pairs < 2:
                continue
            points = tuple(zip(agreement.means.tolist(), agreement.differences.tolist(), strict=True))
            found.append(
                Agreement(
                    quantity=quantity.quantity,
                    label=quantity.label,
                    unit=quantity.unit,
                    method=method,
                    bias=agreement.bias.mean,
                    lower=agreement.lower.mean,
                    upper=agreement.upper.mean,
                    points=points,
                )
            )
    return found


def _risk(points: Sequence[Tensor], method: str) -> RiskCurve | None:
    """Over the sampled pixels of all images together."""
    if not points:
        return None
    said, wrong = torch.cat([one.view(-1, 2) for one in points]).unbind(dim=1)
    whole = risk_coverage(said, wrong)
    curve = whole.at(_CURVE_POINTS)
    return RiskCurve(
        method=method,
        coverage=tuple(curve.coverage.tolist()),
        error=tuple(curve.error.tolist()),
        oracle=tuple(curve.oracle.tolist()),
        mean_error=whole.mean,
        spearman=rank_correlation(said, wrong),
        images=len(points),
    )


def _set_scores(arrays: Arrays, question: Question) -> list[tuple[str, str, float, str]]:
    """The Frechet distance of each method's images to the clean ones."""
    if question.features is None:
        return []
    clean = arrays("features", CLEAN)
    found = []
    for method in question.methods:
        features = arrays("features", method)
        if len(features) < 2 or len(clean) < 2:
            continue
        distance = frechet_distance(torch.stack(features), torch.stack(clean)).item()
        note = f"{len(features)} images" + (", indicative: fewer than 2048" if len(features) < INDICATIVE_BELOW else "")
        found.append((question.features.label, method, distance, note))
    return found


def _not_everywhere(table: _Table) -> dict[str, str]:
    """Metrics that could not be taken of some images, and the first reason."""
    counts = Counter(name for row in table.good for name in row.notes)
    first = {name: note for row in reversed(table.good) for name, note in row.notes.items()}
    return {f"{name}, {count} times": first[name] for name, count in counts.items()}
