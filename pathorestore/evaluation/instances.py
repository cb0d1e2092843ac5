"""Task by task and metric by metric: does a method beat the best of all others there."""

import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import torch

from pathorestore.evaluation.claims import LEVEL, Place, claim
from pathorestore.evaluation.results import Column, Instance
from pathorestore.evaluation.score_table import ScoreTable, by_image
from pathorestore.metrics.comparison import FEWEST, PairedTest, Verdict, judge, paired_test, student_interval
from pathorestore.metrics.statistics import Interval, group_sums, paired_interval

_OUTCOMES: dict[str, Literal["win", "loss", ""]] = {"better": "win", "worse": "loss", "": ""}


class _Asked(NamedTuple):
    task: str
    column: Column
    other: str
    mine: list[float]
    theirs: list[float]
    groups: list[Hashable]
    test: PairedTest


def instances_of(table: ScoreTable, columns: Sequence[Column], methods: Sequence[str], reference: str) -> list[Instance]:
    """One for each task and each whole column that says which way is good: the reference against the best other method of that task.

    The best is the one with the best mean over the images that both have, of those with ten images or as many as any. Images for which
    either number is infinite, such as PSNR of equal ones, are left out. Two-sided Wilcoxon signed-rank tests, over slides or patients where
    ten are known, Holm-adjusted over all instances; claims as everywhere in a report, see `claim`.
    """
    tasks = dict.fromkeys(row.task for row in table.rows if row.task)
    judging = [column for column in columns if not column.detail and column.better in ("higher", "lower")]
    others = [name for name in methods if name != reference]
    found = [_against_best(table, task, column, reference, others) for task in tasks for column in judging]
    asked = [one for one in found if one is not None]
    verdicts = judge([one.test for one in asked], level=LEVEL)
    tests = sum(not math.isnan(one.test.p) for one in asked)
    return [_instance(one, verdict, reference, table, tests) for one, verdict in zip(asked, verdicts, strict=True)]


def _against_best(table: ScoreTable, task: str, column: Column, reference: str, others: Sequence[str]) -> _Asked | None:
    cases = [case for case in table.cases if table.first[case].task == task]
    higher = column.better == "higher"
    mine, found = _finite(table, reference, column, cases), []
    for other in others:
        ours, theirs, groups = by_image(table, mine, _finite(table, other, column, cases), cases)
        test = paired_test(ours, theirs, groups, higher_is_better=higher)
        found.append(_Asked(task, column, other, ours, theirs, groups, test))
    enough = min(FEWEST, max((one.test.images for one in found), default=0))
    known = [one for one in found if one.test.images >= max(1, enough)]
    return max(known, key=lambda one: one.test.other_mean * (1 if higher else -1), default=None)


def _finite(table: ScoreTable, method: str, column: Column, cases: Sequence[str]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in table.values(method, column.key, cases)[0]]


def _instance(asked: _Asked, verdict: Verdict, reference: str, table: ScoreTable, tests: int) -> Instance:
    test, sign = asked.test, 1 if asked.column.better == "higher" else -1
    mean, best = (_interval(values, asked.groups, test) for values in (asked.mine, asked.theirs))
    difference = paired_interval(asked.mine, asked.theirs, asked.groups)
    told, reason = claim(asked.column, difference, verdict, Place(table.unit, len(set(asked.groups)), tests))
    return Instance(
        task=asked.task,
        column=asked.column.key,
        method=reference,
        best=asked.other,
        mean=mean,
        best_mean=best,
        relative_gain=sign * (mean.mean - best.mean) / abs(best.mean) if best.mean else math.nan,
        median_difference=test.median_difference,
        n=test.pairs,
        unit=table.unit if test.unit == "group" else "image",
        p=test.p,
        p_holm=verdict.p_holm,
        outcome=_OUTCOMES[told],
        reason=reason,
    )


def _interval(values: Sequence[float], groups: Sequence[Hashable], test: PairedTest) -> Interval:
    """Of Student's t, over what was tested."""
    sample = torch.tensor(values, dtype=torch.float64)
    if test.unit == "group":
        totals, counts = group_sums(sample, list(groups))
        sample = totals / counts
    return student_interval(sample)
