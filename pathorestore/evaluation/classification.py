"""What restoration does to a classifier: the same classifier on several versions of the same images, measured on those that all have."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathorestore.atomic import refuse_existing, write_atomic
from pathorestore.metrics.classification import METRICS, FigureRules, classification_differences, classification_intervals, predicted
from pathorestore.metrics.statistics import Interval
from pathorestore.pipelines.batch import explain
from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS, READ_SUFFIXES, ImageFileError, read_image_file
from pathorestore.version import __version__

# the paper's table 3 and sensitivity, without which nobody sees what a gain in precision cost
TABLE = {"auc": "AUC", **{name: name for name in ("accuracy", "precision", "specificity", "sensitivity")}}
SCORES_NAME, PROBABILITIES_NAME = "scores.json", "probabilities.csv"

Classify = Callable[[Tensor], Tensor]
Heard = Callable[["Failure"], None]
Progress = Callable[[int, int], None]


class Case(NamedTuple):
    """One image to classify. file: its name in the folder of every version. target: number of its class. group: patient or slide."""

    file: str
    target: int
    group: Hashable


class Failure(NamedTuple):
    """An image that could not be scored. reason: one line that names the file."""

    version: str
    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scored:
    """cases: those that every version has. probabilities: n k for each version, in their order. excluded: cases left out for all."""

    cases: tuple[Case, ...]
    probabilities: Mapping[str, Tensor]
    failures: tuple[Failure, ...]
    excluded: int


@dataclass(frozen=True, kw_only=True)
class Rules(FigureRules):
    """How figures are made, and of what. classes: in the order of the outputs. reference: the version that others are compared with."""

    classes: tuple[str, ...]
    reference: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """scores: figures of every version by METRICS. differences: those of the versions but the reference, minus the reference's."""

    rules: Rules
    scored: Scored
    scores: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, Interval]]

    def table(self) -> list[list[str]]:
        """The figures of the paper's table 3, and sensitivity, in percent with their intervals, a row each version."""
        return _rows(self.scores, "images", "")

    def difference_table(self) -> list[list[str]]:
        """Differences to the reference in percentage points with their intervals."""
        return _rows(self.differences, f"minus {self.rules.reference}", "+")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the probabilities as JSON values; what is not defined is null."""
        known = self.rules
        counts = Counter(case.target for case in self.scored.cases)
        return {
            "version": __version__,
            "classes": list(known.classes),
            "positive": known.classes[1] if len(known.classes) == 2 else None,
            "threshold": known.threshold if len(known.classes) == 2 else None,
            "bootstrap": {"level": known.level, "draws": known.draws, "seed": known.seed},
            "images": {name: counts[index] for index, name in enumerate(known.classes)},
            "groups": len({case.group for case in self.scored.cases}),
            "excluded": self.scored.excluded,
            "failures": [failure._asdict() for failure in self.scored.failures],
            "reference": known.reference,
            "scores": {name: _plain(figures) for name, figures in self.scores.items()},
            "differences": {name: _plain(figures) for name, figures in self.differences.items()},
            "notice": "for research; not for primary diagnosis",
        }


def score_versions(
    classify: Classify,
    cases: Sequence[Case],
    versions: Mapping[str, Path],
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_failure: Heard = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Scored:
    """Classify every case in the folder of every version, one image in memory at a time.

    classify: image 1 3 h w in [0, 1] to probabilities 1 k. An image that is missing, damaged or fails is told to `on_failure`; its case is
    left out of all versions, and the rest goes on. Raises ValueError for a folder that is none, and if no case is left.
    """
    for name, folder in versions.items():
        if not folder.is_dir():
            raise ValueError(f"--images {name}={folder}: is no folder; expected the folder that holds this version of the images")
    failures: list[Failure] = []
    kept: list[Case] = []
    found: dict[str, list[Tensor]] = {name: [] for name in versions}
    for number, case in enumerate(cases, start=1):
        outcome = {name: _one(classify, folder, case.file, max_pixels) for name, folder in versions.items()}
        bad = [Failure(name, case.file, one) for name, one in outcome.items() if isinstance(one, str)]
        for failure in bad:
            on_failure(failure)
        failures += bad
        if not bad:
            kept.append(case)
            for name, one in outcome.items():
                found[name].append(one)  # type: ignore[arg-type]
        progress(number, len(cases))
    if not kept:
        raise ImageFileError(f"none of {len(cases)} images could be scored in every version; nothing was written")
    stacked = {name: torch.stack(rows) for name, rows in found.items()}
    return Scored(cases=tuple(kept), probabilities=stacked, failures=tuple(failures), excluded=len(cases) - len(kept))


def compare(scored: Scored, rules: Rules) -> Comparison:
    """Figures of every version and their differences to the reference, on the same images and the same bootstrap draws.

    Raises ValueError if the reference is none of the versions.
    """
    versions = scored.probabilities
    if rules.reference not in versions:
        raise ValueError(f"--reference {rules.reference} is no version; expected one of {', '.join(versions)}")
    target = torch.tensor([case.target for case in scored.cases])
    groups = [case.group for case in scored.cases]
    base = versions[rules.reference]
    differences = {
        name: classification_differences(probabilities, base, target, groups, rules=rules)
        for name, probabilities in versions.items()
        if name != rules.reference
    }
    scores = {name: classification_intervals(probabilities, target, groups, rules=rules) for name, probabilities in versions.items()}
    return Comparison(rules=rules, scored=scored, scores=scores, differences=differences)


def find_image(folder: Path, name: str) -> Path:
    """The file of an image in a folder: by its name, else by its name with another suffix of an image.

    Raises ImageFileError where there is none, or where several differ in the suffix alone.
    """
    path = folder / name
    if path.is_file():
        return path
    bare = path.with_suffix("") if path.suffix.lower() in READ_SUFFIXES else path
    others = [other for suffix in READ_SUFFIXES if (other := bare.with_name(bare.name + suffix)).is_file()]
    if len(others) != 1:
        what = "there is no such image" if not others else f"could be any of {', '.join(other.name for other in others)}"
        raise ImageFileError(f"{path}: {what}; every version needs every image that the labels name, exactly once")
    return others[0]


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Raise ValueError unless results may be written to a folder: free, or its results may be replaced."""
    refuse_existing(folder / SCORES_NAME, folder / PROBABILITIES_NAME, overwrite=overwrite)


def write_comparison(folder: Path, comparison: Comparison, facts: Mapping[str, Any]) -> None:
    """Write scores.json and probabilities.csv. facts: what else scores.json should say, such as which weights were used."""
    text = json.dumps(comparison.to_dict() | dict(facts), indent=2, allow_nan=False)
    write_atomic(folder / PROBABILITIES_NAME, probabilities_csv(comparison).encode("utf-8"))
    write_atomic(folder / SCORES_NAME, f"{text}\n".encode())


def probabilities_csv(comparison: Comparison) -> str:
    """One row for each image and version: file, label, version, predicted class, probability of every class. All text is quoted."""
    known, scored = comparison.rules, comparison.scored
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    table.writerow(["file", "label", "version", "predicted", *(f"p_{name}" for name in known.classes)])
    said = {name: predicted(rows, threshold=known.threshold).tolist() for name, rows in scored.probabilities.items()}
    for index, case in enumerate(scored.cases):
        for name, rows in scored.probabilities.items():
            shares = [round(share, 9) for share in rows[index].double().tolist()]
            table.writerow([case.file, known.classes[case.target], name, known.classes[said[name][index]], *shares])
    return out.getvalue()


def _one(classify: Classify, folder: Path, name: str, max_pixels: int) -> Tensor | str:
    """The probabilities k of one image, or the line that says what was the matter with it."""
    try:
        path = find_image(folder, name)
        probabilities = classify(read_image_file(path, max_pixels=max_pixels).image)[0].double()
        if not bool(torch.isfinite(probabilities).all()):
            raise ImageFileError(f"{path}: the classifier gives numbers that are not finite")
        return probabilities
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        line = explain(error)
        return line if name in line or isinstance(error, ImageFileError) else f"{folder / name}: {line}"


def _rows(figures: Mapping[str, Mapping[str, Interval]], corner: str, sign: str) -> list[list[str]]:
    rows = [[name, *(_percent(known[metric], sign) for metric in TABLE)] for name, known in figures.items()]
    return [[corner, *TABLE.values()], *rows]


def _percent(figure: Interval, sign: str) -> str:
    if math.isnan(figure.mean):
        return "n/a"
    percent = Interval(*(100 * number for number in figure))
    return f"{percent.mean:{sign}.2f} [n/a]" if math.isnan(figure.low) else f"{percent:{sign}.2f}"


def _plain(figures: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Figures as JSON has them; it knows no NaN."""
    names = {"value": "mean", "low": "low", "high": "high"}
    values = {metric: {key: float(getattr(figures[metric], name)) for key, name in names.items()} for metric in METRICS}
    return {metric: {key: None if math.isnan(one) else one for key, one in known.items()} for metric, known in values.items()}
