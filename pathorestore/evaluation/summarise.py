"""From rows to what they come to: means with intervals over slides, tests between methods, curves over defocus, agreement, risk."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathorestore.evaluation.claims import LEVEL, Place, claim
from pathorestore.evaluation.instances import instances_of
from pathorestore.evaluation.journal import Kind
from pathorestore.evaluation.measures import Agreeing, Features
from pathorestore.evaluation.methods import CLEAN
from pathorestore.evaluation.results import SCALE, UNKNOWN, Agreement, Bin, Column, Compared, RiskCurve, Score, ScoreRow, Summary
from pathorestore.evaluation.score_table import Grouping, ScoreTable, by_image
from pathorestore.metrics.agreement import bland_altman
from pathorestore.metrics.comparison import Verdict, judge, paired_test
from pathorestore.metrics.frechet import INDICATIVE_BELOW, frechet_distance
from pathorestore.metrics.risk import rank_correlation, risk_coverage
from pathorestore.metrics.statistics import Interval, bootstrap_interval, paired_interval
from pathorestore.pipelines.provenance import RESTORED_NOTICE

Arrays = Callable[[Kind, str], Mapping[str, Tensor]]
_DRAWS, _AT_ONCE = 10_000, 1 << 22
_BINS_UM = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, math.inf)
_DISTANCES = 12  # so many distances are told one by one
_CURVE_POINTS = 50


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
    notes: tuple[str, ...] = ()
    notice: str = RESTORED_NOTICE


def _no_arrays(kind: Kind, method: str) -> dict[str, Tensor]:
    del kind, method
    return {}


def summarise(rows: Iterable[ScoreRow], question: Question, arrays: Arrays = _no_arrays) -> Summary:
    """Answer it. arrays: features and risk by kind and method, see `Journal`.

    Raises ValueError for a reference that is no method, and a grouping that the rows do not know.
    """
    if question.reference not in question.methods:
        raise ValueError(f"--reference {question.reference!r} is none of the methods {', '.join(question.methods)}")
    table = ScoreTable(rows, question.grouping)
    shown = [*question.methods, CLEAN] if any(row.method == CLEAN for row in table.good) else list(question.methods)
    return Summary(
        title=question.title,
        methods=question.methods,
        reference=question.reference,
        columns=question.columns,
        cases=len(table.cases),
        unit=table.unit,
        axis=table.axis,
        groups=len({table.group(case) for case in table.cases}),
        scores=tuple(
            score for column in question.columns for method in shown if (score := _score(table, column, method, shown[0])) is not None
        ),
        comparisons=tuple(_comparisons(table, question)),
        instances=tuple(instances_of(table, question.columns, question.methods, question.reference)),
        bins=tuple(_bins(table, question)),
        agreements=tuple(_agreements(table, question)),
        risk=tuple(curve for method in question.methods if (curve := _risk(_of_cases(arrays("risk", method), table), method)) is not None),
        set_scores=tuple(_set_scores(table, arrays, question)),
        left_out=dict(question.left_out or {}) | _not_everywhere(table),
        failures=tuple((row.case, row.method, row.error) for row in table.rows if row.error),
        run=dict(question.run or {}),
        level=LEVEL,
        notes=(*question.notes, *_unequal(table, question)),
        notice=question.notice,
    )


def _score(table: ScoreTable, column: Column, method: str, first: str) -> Score | None:
    values, groups = table.values(method, column.key)
    known = torch.tensor([value for value in values if math.isfinite(value)], dtype=torch.float64)
    perfect = sum(math.isinf(value) for value in values)
    if not len(known) + perfect:
        return None
    only = Interval(math.inf, math.nan, math.nan)
    return Score(
        column=column.key,
        method=method,
        interval=_mean(values, groups) if len(known) else only,
        median=known.quantile(0.5).item() if len(known) else math.inf,
        images=len(known) + perfect,
        without=len(table.cases) - len(known) - perfect,
        perfect=perfect,
        gain=_gain(table, column, method, first, table.cases),
    )


def _gain(table: ScoreTable, column: Column, method: str, first: str, cases: Sequence[str]) -> Interval:
    """What a method has more than the first, over the cases that have both."""
    if method == first:
        return UNKNOWN
    mine, groups = table.values(method, column.key, cases)
    return paired_interval(mine, table.values(first, column.key, cases)[0], groups, draws=_draws(groups))


def _draws(groups: Sequence[Hashable]) -> int:
    """As many as settle the digits that are shown, fewer where there are so many groups that they settle by themselves."""
    return max(1000, min(_DRAWS, _AT_ONCE // max(1, len(set(groups)))))


def _mean(values: Sequence[float], groups: Sequence[Hashable]) -> Interval:
    """Over the finite values."""
    return bootstrap_interval([value if math.isfinite(value) else math.nan for value in values], groups, draws=_draws(groups))


def _comparisons(table: ScoreTable, question: Question) -> list[Compared]:
    """The reference against every other method in every whole column that says which way is good; Holm over all of these tests."""
    asked, tests = [], []
    for column in question.columns:
        for other in question.methods:
            if other == question.reference or column.detail or column.better not in ("higher", "lower"):
                continue
            mine, groups = table.values(question.reference, column.key)
            theirs, _ = table.values(other, column.key)
            asked.append((column, other, paired_interval(mine, theirs, groups, draws=_draws(groups))))
            tests.append(paired_test(*by_image(table, mine, theirs), higher_is_better=column.better == "higher"))
    place = Place(table.unit, len({table.group(case) for case in table.cases}), sum(not math.isnan(test.p) for test in tests))
    return [
        _compared(question.reference, column, other, difference, verdict, place)
        for (column, other, difference), verdict in zip(asked, judge(tests, level=LEVEL), strict=True)
    ]


def _compared(method: str, column: Column, other: str, difference: Interval, verdict: Verdict, place: Place) -> Compared:
    test = verdict.test
    told, reason = claim(column, difference, verdict, place)
    return Compared(
        column=column.key,
        method=method,
        other=other,
        difference=difference,
        median_difference=test.median_difference,
        n=test.pairs,
        unit=place.unit if test.unit == "group" else "image",
        p=test.p,
        p_holm=verdict.p_holm,
        images=test.images,
        wins=test.better,
        ties=test.equal,
        verdict=told,
        reason=reason,
    )


def _bins(table: ScoreTable, question: Question) -> list[Bin]:
    """Every column over what images are degraded by: at each value where there are few, else in bins of the distance from focus."""
    known = {case: abs(at) for case in table.cases if (at := getattr(table.first[case], table.axis.field)) is not None}
    values = sorted(set(known.values()))
    edges = [(at, at) for at in values] if len(values) <= _DISTANCES or table.axis == SCALE else list(itertools.pairwise(_BINS_UM))
    found = []
    for low, high in edges:
        inside = [case for case, at in known.items() if at == low or low <= at < high]
        for column in (one for one in question.columns if inside and not one.detail):
            for method in question.methods:
                values, groups = table.values(method, column.key, inside)
                there = sum(math.isfinite(value) for value in values)
                if there:
                    interval = _mean(values, groups)
                    gain = _gain(table, column, method, question.methods[0], inside)
                    one = Bin(column=column.key, method=method, low=low, high=high, interval=interval, images=there, gain=gain)
                    found.append(one)
    return found


def _agreements(table: ScoreTable, question: Question) -> list[Agreement]:
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


def _of_cases(arrays: Mapping[str, Tensor], table: ScoreTable) -> list[Tensor]:
    """Of the cases that are judged now."""
    return [arrays[case] for case in table.cases if case in arrays]


def _set_scores(table: ScoreTable, arrays: Arrays, question: Question) -> list[tuple[str, str, float, str]]:
    """The Frechet distance of each method's images to the clean ones."""
    if question.features is None:
        return []
    targets = arrays("features", CLEAN)
    found = []
    for method in question.methods:
        own = arrays("features", method)
        both = [case for case in table.cases if case in own and case in targets]
        # an image that stands for several distances is one of the clean set; tasks want another one each
        clean = {(table.first[case].image or case, table.first[case].task): targets[case] for case in both}
        if len(clean) < 2:
            continue
        distance = frechet_distance(torch.stack([own[case] for case in both]), torch.stack(list(clean.values()))).item()
        few = f", indicative: fewer than {INDICATIVE_BELOW}" if len(clean) < INDICATIVE_BELOW else ""
        note = f"{len(both)} cases of {len(clean)} images{few}"
        found.append((question.features.label, method, distance, note))
    return found


def _unequal(table: ScoreTable, question: Question) -> list[str]:
    """A warning where methods were not judged on the same cases: their means then do not compare, their differences do."""
    judged = {method: sum((case, method) in table.of for case in table.cases) for method in question.methods}
    if len(set(judged.values())) < 2:
        return []
    told = ", ".join(f"{method} {count}" for method, count in judged.items())
    return [f"Means are over different cases ({told} of {len(table.cases)}); differences and tests are over those that both methods have."]


def _not_everywhere(table: ScoreTable) -> dict[str, str]:
    """Metrics that could not be taken of some images, and the first reason."""
    counts = Counter(name for row in table.good for name in row.notes)
    first = {name: note for row in reversed(table.good) for name, note in row.notes.items()}
    return {f"{name}, in {count} of {len(table.good)} rows": first[name] for name, count in counts.items()}
