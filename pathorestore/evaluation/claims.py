"""When a difference is claimed, and why one is not."""

import math
from typing import Literal, NamedTuple

from pathorestore.evaluation.report_format import counted
from pathorestore.evaluation.results import Column
from pathorestore.evaluation.score_table import Unit
from pathorestore.metrics.comparison import FEWEST, Verdict
from pathorestore.metrics.statistics import Interval

LEVEL = 0.01
"""Of Holm-adjusted p, below which a difference is claimed."""


class Place(NamedTuple):
    """What a test stands in. unit, groups: of the report; tests: of its family."""

    unit: Unit
    groups: int
    tests: int

    def out_of_reach(self, pairs: int) -> str:
        """Why so few pairs could not make a claim however they fell; empty if they could."""
        smallest = self.tests * 2 / 2**pairs
        few = f"{pairs} pairs in {self.tests} tests can reach an adjusted p of {smallest:.2g} at best"
        return f"{few}; take more images or fewer metrics" if smallest >= LEVEL else ""


def claim(column: Column, difference: Interval, found: Verdict, place: Place) -> tuple[Literal["better", "worse", ""], str]:
    """What is claimed, and why nothing is: the means of what was tested and the difference that is shown must agree."""
    test = found.test
    if test.reason or not found.p_holm < LEVEL or test.mean == test.other_mean:
        return "", test.reason or place.out_of_reach(test.pairs)
    if place.groups < FEWEST and place.unit != "image":
        return "", f"images of {counted(place.groups, place.unit)} are not independent; claims take {FEWEST}"
    shown_better = difference.mean > 0 if column.better == "higher" else difference.mean < 0
    if math.isfinite(difference.mean) and shown_better != test.mean_is_better:
        return "", "the mean over groups and the mean over cases point different ways"
    median_better = test.median_difference > 0 if column.better == "higher" else test.median_difference < 0
    if test.median_difference and median_better != test.mean_is_better:
        return "", "the mean and the median of the differences point different ways: a few images make the mean"
    return "better" if test.mean_is_better else "worse", ""
