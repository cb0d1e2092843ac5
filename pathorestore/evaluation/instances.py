"""Task by task and metric by metric: does a method beat the best of all others there."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

from pathorestore.evaluation.results import Column, Instance
from pathorestore.evaluation.score_table import ScoreTable, by_image
from pathorestore.metrics.comparison import PairedTest, Verdict, judge, paired_test, student_interval
from pathorestore.metrics.statistics import Interval, group_sums


class _Asked(NamedTuple):
    task: str
    column: Column
    other: str
    mine: list[float]
    theirs: list[float]
    groups: list[Hashable]
    test: PairedTest


def instances_of(table: ScoreTable, columns: Sequence[Column], methods: Sequence[str], reference: str, *, level: float) -> list[Instance]:
    """One for each task and each whole column that says which way is good: the reference against the best other method of that task.

    The best is the one with the best mean over the images that both have. Two-sided Wilcoxon signed-rank tests, over slides or patients
    where ten are known, Holm-adjusted over all instances; a win or a loss takes an adjusted p below `level`.
    """
    tasks = dict.fromkeys(row.task for row in table.rows if row.task)
    judging = [column for column in columns if not column.detail and column.better in ("higher", "lower")]
    others = [name for name in methods if name != reference]
    found = [_against_best(table, task, column, reference, others) for task in tasks for column in judging]
    asked = [one for one in found if one is not None]
    verdicts = judge([one.test for one in asked], level=level)
    return [_instance(one, verdict, reference, table.unit, level) for one, verdict in zip(asked, verdicts, strict=True)]


def _against_best(table: ScoreTable, task: str, column: Column, reference: str, others: Sequence[str]) -> _Asked | None:
    cases = [case for case in table.cases if table.first[case].task == task]
    higher = column.better == "higher"
    mine = table.values(reference, column.key, cases)[0]
    best: _Asked | None = None
    for other in others:
        ours, theirs, groups = by_image(table, mine, table.values(other, column.key, cases)[0], cases)
        test = paired_test(ours, theirs, groups, higher_is_better=higher)
        if test.pairs and (best is None or (test.other_mean - best.test.other_mean) * (1 if higher else -1) > 0):
            best = _Asked(task, column, other, ours, theirs, groups, test)
    return best


def _instance(asked: _Asked, verdict: Verdict, reference: str, unit: str, level: float) -> Instance:
    test, sign = asked.test, 1 if asked.column.better == "higher" else -1
    mean, best = (_interval(values, asked.groups, test) for values in (asked.mine, asked.theirs))
    claimed = verdict.p_holm < level and test.mean != test.other_mean
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
        unit=unit if test.unit == "group" else "image",
        p=test.p,
        p_holm=verdict.p_holm,
        outcome=("win" if test.mean_is_better else "loss") if claimed else "",
        reason=test.reason,
    )


def _interval(values: Sequence[float], groups: Sequence[Hashable], test: PairedTest) -> Interval:
    """Of Student's t, over what was tested."""
    sample = torch.tensor(values, dtype=torch.float64)
    if test.unit == "group":
        totals, counts = group_sums(sample, list(groups))
        sample = totals / counts
    return student_interval(sample)
