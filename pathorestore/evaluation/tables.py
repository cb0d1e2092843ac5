"""The tables of an evaluation: every row as CSV and Parquet, the summary as text for a terminal and as Markdown."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pathorestore.atomic import write_atomic
from pathorestore.evaluation.report_format import counted, p_value, stretch, with_unit
from pathorestore.evaluation.results import Bin, Column, Compared, Instance, Score, ScoreRow, Summary, jsonable
from pathorestore.pipelines.report_text import aligned

SCORES_CSV, SCORES_PARQUET, SUMMARY_JSON, TABLES_MD = "scores.csv", "scores.parquet", "summary.json", "tables.md"
RESULTS_JSONL = "results.jsonl"
_NUMBERS = ("z_um", "scale")
_FACTS = ("case", "image", "slide", "patient", *_NUMBERS, "task", "method", "error")
_DASH, _MOST_FAILURES = "-", 100


def write_tables(folder: Path, rows: Sequence[ScoreRow], summary: Summary) -> tuple[list[Path], tuple[str, ...]]:
    """Write rows and summary into a folder; returns the files, and a sentence for each that could not be written."""
    keys = [column.key for column in summary.columns]
    table = [[*(getattr(row, name) for name in _FACTS), *(row.scores.get(key) for key in keys)] for row in rows]
    header = [*_FACTS, *keys]
    write_atomic(folder / SCORES_CSV, _csv(header, table))
    write_atomic(folder / SUMMARY_JSON, (json.dumps(summary.to_dict(), indent=1) + "\n").encode())
    write_atomic(folder / TABLES_MD, markdown(summary).encode("utf-8", "backslashreplace"))
    written = [folder / name for name in (SCORES_CSV, SUMMARY_JSON, TABLES_MD)]
    if summary.instances:
        lines = [json.dumps(jsonable(asdict(one)), allow_nan=False) + "\n" for one in summary.instances]
        write_atomic(folder / RESULTS_JSONL, "".join(lines).encode())
        written.append(folder / RESULTS_JSONL)
    data = _parquet(header, table)
    if data is None:
        return written, (f'{SCORES_PARQUET} needs pyarrow and is left out; install it with: pip install "pathorestore[parquet]"',)
    write_atomic(folder / SCORES_PARQUET, data)
    return [*written, folder / SCORES_PARQUET], ()


def _csv(header: Sequence[str], table: Sequence[Sequence[object]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    writer.writerow(header)
    for cells in table:
        writer.writerow(["" if cell is None or cell != cell else cell for cell in cells])
    return out.getvalue().encode("utf-8", "backslashreplace")


def _parquet(header: Sequence[str], table: Sequence[Sequence[object]]) -> bytes | None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return None
    texts = set(_FACTS) - set(_NUMBERS)
    columns = {}
    for at, name in enumerate(header):
        values = [row[at] for row in table]
        plain = [str(value).encode("utf-8", "backslashreplace").decode() for value in values] if name in texts else values
        columns[name] = pyarrow.array(plain, type=pyarrow.string() if name in texts else pyarrow.float64())
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


# --- text -----------------------------------------------------------------------------------------------------------------------------


def terminal_text(summary: Summary) -> str:
    """Means by method and column, and what is claimed of the reference."""
    main = [one for one in summary.columns if one.better != "none" and not one.detail]
    rows = [["", *summary.shown]]
    rows += [[_title(column), *(_mean(summary, column, method) for method in summary.shown)] for column in main]
    lines = [
        f"{counted(summary.cases, 'case')}, {counted(summary.groups, summary.unit)}",
        aligned(rows, right=frozenset(range(1, len(rows[0])))),
    ]
    claims = [one for one in summary.comparisons if one.verdict and one.column in {column.key for column in main}]
    for other in dict.fromkeys(one.other for one in claims):
        for verdict in ("better", "worse"):
            names = [_labels(summary)[one.column] for one in claims if one.other == other and one.verdict == verdict]
            if names:
                claim = f"(Wilcoxon, Holm-adjusted p < {summary.level:g})"
                lines.append(f"{summary.reference} is {verdict} than {other} in {'; '.join(names)} {claim}")
    if summary.comparisons and not claims:
        reasons = Counter(one.reason or "no difference is clear enough" for one in summary.comparisons)
        lines.append(f"nothing is claimed: {reasons.most_common(1)[0][0]}")
    if summary.instances:
        lines.append(win_count(summary))
    lines += [f"note: {note}" for note in summary.notes]
    return "\n".join(lines)


def win_count(summary: Summary) -> str:
    """In how many instances of a task and a metric the reference beats the best other method, in a sentence."""
    outcomes = Counter(one.outcome for one in summary.instances)
    instances = counted(len(summary.instances), "instance")
    return (
        f"{summary.reference} beats the best other method in {outcomes['win']} of {instances} of a task and a metric, and loses in "
        f"{outcomes['loss']} (better mean, Wilcoxon, Holm-adjusted p < {summary.level:g})"
    )


def markdown(summary: Summary) -> str:
    """The same for a page: means with intervals, comparisons, and the first columns over what images are degraded by."""
    size = f"{counted(summary.cases, 'case')}, {counted(summary.groups, summary.unit)}; intervals of 95 % over {summary.unit}s."
    parts = [f"# {_cell(summary.title)}", size, *(_cell(note) for note in summary.notes)]
    methods = summary.shown
    parts.append(
        _grid(["", *methods], [[_title(column), *(_interval(summary, column, name) for name in methods)] for column in summary.columns])
    )
    if summary.comparisons:
        header = ["metric", f"{summary.reference} against", "difference", "median", "p", "p, Holm", "wins", "verdict"]
        parts += ["## Comparisons", _grid(header, [_compared(summary, one) for one in summary.comparisons])]
    if summary.instances:
        header = ["task", "metric", "n", summary.reference, "best other", "", "gain", "median", "p", "p, Holm", "outcome"]
        parts += ["## Tasks", f"{_cell(win_count(summary))}. Intervals of 95 % by Student's t."]
        parts.append(_grid(header, [_instance(summary, one) for one in summary.instances]))
    if summary.set_scores:
        sets = [[label, method, f"{value:.4g}", note] for label, method, value, note in summary.set_scores]
        parts += ["## Sets of images", _grid(["distance", "method", "value", "of"], sets)]
    for column in summary.columns:
        by_degradation = _by_degradation(summary, column)
        if by_degradation:
            parts += [f"## {_title(column)} by {summary.axis.name}", by_degradation]
    if summary.left_out:
        parts += ["## Left out", *(f"* {_cell(name)}: {_cell(why)}" for name, why in summary.left_out.items())]
    if summary.failures:
        parts += [f"## Failures: {len(summary.failures)}", _grid(["case", "method", "reason"], summary.failures[:_MOST_FAILURES])]
    return "\n\n".join(parts) + "\n"


def _by_degradation(summary: Summary, column: Column) -> str:
    """Means of the methods at each place of the axis, and what they gain over the first with the interval of that."""
    bins = {(one.low, one.method): one for one in summary.bins if one.column == column.key}
    places = sorted({(one.low, one.high) for one in bins.values()})
    if not places or column.detail or column.better == "none":
        return ""
    overall = {score.method: score for score in summary.scores if score.column == column.key}
    names = [with_unit(summary.axis, stretch(*place)).replace("\u00b5m", "um").replace("\u00d7", "x") for place in places]
    rows = [
        [name, *(_with_gain(column, bins.get((place[0], method))) for method in summary.methods)]
        for name, place in zip(names, places, strict=True)
    ]
    return _grid(
        [summary.axis.symbol, *summary.methods], [*rows, ["all", *(_with_gain(column, overall.get(name)) for name in summary.methods)]]
    )


def _with_gain(column: Column, found: Bin | Score | None) -> str:
    if found is None:
        return _DASH
    mean = _digits(column, found.interval.mean)
    if math.isnan(found.gain.mean):
        return mean
    gain, low, high = (_digits(column, number, sign="+") for number in found.gain)
    return f"{mean} ({gain} [{low}, {high}])"


def _compared(summary: Summary, one: Compared) -> list[str]:
    column = next(column for column in summary.columns if column.key == one.column)
    numbers = [_digits(column, value, sign="+") for value in (one.difference.mean, one.difference.low, one.difference.high)]
    p, p_holm = (p_value(value) for value in (one.p, one.p_holm))
    told = one.verdict or one.reason or "no claim"
    difference = f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
    return [
        _title(column),
        one.other,
        difference,
        _digits(column, one.median_difference, sign="+"),
        p,
        p_holm,
        f"{one.wins}/{one.images}",
        told,
    ]


def _instance(summary: Summary, one: Instance) -> list[str]:
    column = next(column for column in summary.columns if column.key == one.column)
    means = [[_digits(column, value) for value in interval] for interval in (one.mean, one.best_mean)]
    mine, best = (f"{mean} [{low}, {high}]" for mean, low, high in means)
    gain = _DASH if math.isnan(one.relative_gain) else f"{100 * one.relative_gain:+.1f} %"
    median = _digits(column, one.median_difference, sign="+")
    n = counted(one.n, one.unit)
    return [
        one.task,
        _title(column),
        n,
        mine,
        best,
        one.best,
        gain,
        median,
        p_value(one.p),
        p_value(one.p_holm),
        one.outcome or one.reason or "no claim",
    ]


def _mean(summary: Summary, column: Column, method: str) -> str:
    found = [score for score in summary.scores if (score.column, score.method) == (column.key, method)]
    return _digits(column, found[0].interval.mean) if found else _DASH


def _interval(summary: Summary, column: Column, method: str) -> str:
    found = [score for score in summary.scores if (score.column, score.method) == (column.key, method)]
    if not found:
        return _DASH
    mean, low, high = (_digits(column, number) for number in found[0].interval)
    return f"{mean} [{low}, {high}]"


def _digits(column: Column, number: float, *, sign: str = "") -> str:
    if math.isnan(number):
        return _DASH
    if column.unit == "dB":
        return f"{number:{sign}.2f}"
    return f"{number:{sign}.4g}"


def _title(column: Column) -> str:
    return f"{column.label}, {column.unit}" if column.unit else column.label


def _labels(summary: Summary) -> dict[str, str]:
    return {column.key: column.label for column in summary.columns}


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text that is no markup and stays in its cell."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
