"""The rows of an evaluation by case and method, and what images have in common."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

from pathorestore.evaluation.results import FOCUS, SCALE, ScoreRow

Unit = Literal["image", "slide", "patient"]
Grouping = Literal["auto", "image", "slide", "patient"]


class ScoreTable:
    """The rows by case and method; rows with an error have no scores.

    of: the good rows by case and method. cases: in order. first: some row of each case. unit: what intervals are drawn over; axis: what
    images are degraded by.
    """

    def __init__(self, rows: Iterable[ScoreRow], grouping: Grouping):
        self.rows = list(rows)
        self.good = [row for row in self.rows if not row.error]
        self.of = {(row.case, row.method): row for row in self.good}
        self.cases = list(dict.fromkeys(row.case for row in self.rows))
        self.first = {row.case: row for row in reversed(self.rows)}
        self.unit = unit_of(self.rows, grouping)
        self.axis = SCALE if any(row.scale is not None for row in self.rows) else FOCUS

    def group(self, case: str) -> Hashable:
        """The image, slide or patient that a case is of."""
        row = self.first[case]
        return {"image": row.image or row.case, "slide": row.slide, "patient": row.patient}[self.unit]

    def value(self, case: str, method: str, column: str) -> float:
        """A score; NaN where there is none."""
        row = self.of.get((case, method))
        return math.nan if row is None else row.scores.get(column, math.nan)

    def values(self, method: str, column: str, cases: Sequence[str] | None = None) -> tuple[list[float], list[Hashable]]:
        """The scores of some cases, all unless given, and their groups."""
        chosen = self.cases if cases is None else cases
        return [self.value(case, method, column) for case in chosen], [self.group(case) for case in chosen]


def by_image(
    table: ScoreTable, mine: Sequence[float], theirs: Sequence[float], cases: Sequence[str] | None = None
) -> tuple[list[float], list[float], list[Hashable]]:
    """Means of both over the cases of each image, and its group: one image at four distances is one image. cases: all unless given."""
    held: dict[str, list[str]] = defaultdict(list)
    chosen = table.cases if cases is None else cases
    first, second = (dict(zip(chosen, values, strict=True)) for values in (mine, theirs))
    for case in chosen:
        if not (math.isnan(first[case]) or math.isnan(second[case])):
            held[table.first[case].image or case].append(case)
    means = [[sum(values[case] for case in one) / len(one) for one in held.values()] for values in (first, second)]
    return means[0], means[1], [table.group(one[0]) for one in held.values()]


def unit_of(rows: Sequence[ScoreRow], grouping: Grouping) -> Unit:
    """What intervals are drawn over. Raises ValueError for a grouping that the rows do not know."""
    known: dict[Unit, bool] = {"patient": all(row.patient for row in rows), "slide": all(row.slide for row in rows), "image": True}
    if grouping == "auto":
        return next(unit for unit, there in known.items() if there) if rows else "image"
    if not known[grouping]:
        raise ValueError(
            f"--group {grouping}: not every image has a {grouping}; name them in --facts or the manifest, or leave --group out"
        )
    return grouping
