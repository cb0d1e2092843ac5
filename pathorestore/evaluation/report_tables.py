"""The tables of a report as HTML, from the summary alone."""

import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from pathorestore.evaluation.report_format import (
    NOTHING,
    WAYS,
    bounds,
    counted,
    decimals_for,
    escaped,
    heading,
    name,
    number,
    p_value,
)
from pathorestore.evaluation.results import Column, Compared, Score, Summary

Colours = Mapping[str, str]
MOST_FAILURES = 500  # shown in the page; all of them are counted
_TILE = 112, 18  # px of the little drawing of a difference


def swatch(colour: str) -> str:
    """A method's colour, beside its name."""
    return (
        f'<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" rx="2" fill="{escaped(colour)}"/></svg>'
    )


def decimals_of(summary: Summary) -> dict[str, int]:
    """Decimals of each column, the same for all methods."""
    means: dict[str, list[float]] = {}
    for score in summary.scores:
        means.setdefault(score.column, []).append(score.interval.mean)
    return {column.key: decimals_for(means.get(column.key, ()), column.unit) for column in summary.columns}


def best_methods(summary: Summary) -> dict[str, str]:
    """Column -> the method of the best mean, where the difference is claimed.

    For the reference: against every other method. For another method: against the reference, which is all that it was compared with.
    """
    verdicts = {(one.column, one.other): one.verdict for one in summary.comparisons if one.method == summary.reference}
    best = {}
    for column in summary.columns:
        means = {one.method: one.interval.mean for one in summary.scores if one.column == column.key and one.method in summary.methods}
        means = {method: mean for method, mean in means.items() if not math.isnan(mean)}
        if len(means) < 2 or column.better == "none":
            continue
        merit = {
            method: -abs(mean) if column.better == "zero" else mean * (-1 if column.better == "lower" else 1)
            for method, mean in means.items()
        }
        first = max(merit, key=lambda method: merit[method])
        others = [method for method in means if method != first]
        if first == summary.reference and all(verdicts.get((column.key, other)) == "better" for other in others):
            best[column.key] = first
        if first != summary.reference and verdicts.get((column.key, first)) == "worse":
            best[column.key] = first
    return best


def score_table(summary: Summary, colours: Colours) -> str:
    """Measures down, methods across: mean, interval, and how many images have no number."""
    scores = {(one.column, one.method): one for one in summary.scores}
    best, decimals, methods = best_methods(summary), decimals_of(summary), summary.shown
    tag = ' <span class="tag">reference</span>'
    heads = "".join(f'<th scope="col">{swatch(colours[one])} {name(one)}{tag if one == summary.reference else ""}</th>' for one in methods)
    rows = []
    for index, column in enumerate(summary.columns):
        cells = [_score_cell(scores.get((column.key, one)), decimals[column.key], best=best.get(column.key) == one) for one in methods]
        rows.append(f'<tr data-column="{index}"><th scope="row">{heading(column)}</th>{"".join(cells)}</tr>')
    return f'<table class="scores"><thead><tr><th scope="col">Measure</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _score_cell(score: Score | None, decimals: int, *, best: bool) -> str:
    if score is None:
        return f'<td title="not measured">{NOTHING}</td>'
    mean = number(score.interval.mean, decimals)
    note = f'<small class="without">{counted(score.without, "case")} without it</small>' if score.without else ""
    note += f'<small class="without">{counted(score.perfect, "perfect case")} beside</small>' if score.perfect else ""
    told = f"median {number(score.median, decimals)}; {counted(score.images, 'case')}" + (
        f", {score.without} without it" if score.without else ""
    )
    mark = '<span class="mark" title="best, and the difference is claimed">\u2605</span>' if best else ""
    return (
        f'<td{" class=best" if best else ""} title="{told}">{mark}<b>{mean}</b><small>{bounds(score.interval, decimals)}</small>{note}</td>'
    )


def glance(summary: Summary, colours: Colours) -> str:
    """For each other method: in how many measures the reference is claimed to be better or worse."""
    rows = []
    for other in (one for one in summary.methods if one != summary.reference):
        verdicts = [one.verdict for one in summary.comparisons if one.other == other]
        counts = [verdicts.count("better"), verdicts.count("worse"), verdicts.count("")]
        cells = "".join(f'<td class="{kind}">{count}</td>' for kind, count in zip(("better", "worse", "open"), counts, strict=True))
        rows.append(f'<tr><th scope="row">{swatch(colours[other])} {name(other)}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{text}</th>' for text in (f"{name(summary.reference)} against", "better", "worse", "no claim"))
    return f'<table class="glance"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def comparison_table(summary: Summary, colours: Colours) -> str:
    """The reference against each other method, measure by measure."""
    columns = {column.key: (index, column) for index, column in enumerate(summary.columns)}
    decimals = decimals_of(summary)
    heads = ("Measure", "against", "verdict", "mean difference", "", "median", "p", "p (Holm)", "tested", "better in")
    bodies = []
    for key, group in groupby(sorted(summary.comparisons, key=lambda one: columns[one.column][0]), key=lambda one: one.column):
        index, column = columns[key]
        pairs = list(group)
        # a difference may need more digits than what it is a difference of
        smallest = min((abs(one.difference.mean) for one in pairs if one.difference.mean), default=math.nan)
        digits = min(decimals[key] + 2, max(decimals[key], decimals_for([smallest]) - 2))
        reach = max((abs(x) for one in pairs for x in one.difference if math.isfinite(x)), default=0.0)
        first = f'<th scope="rowgroup" rowspan="{len(pairs)}">{heading(column)}</th>'
        rows = [_comparison_cells(one, digits, reach, colours.get(one.other, "#000000")) for one in pairs]
        bodies.append(f'<tbody data-column="{index}"><tr>{first}{"</tr><tr>".join(rows)}</tr></tbody>')
    head = "".join(f'<th scope="col">{text}</th>' if text else '<td class="drawn"></td>' for text in heads)
    return f'<table class="compared"><thead><tr>{head}</tr></thead>{"".join(bodies)}</table>'


def _comparison_cells(one: Compared, digits: int, reach: float, colour: str) -> str:
    ties, images = f", {counted(one.ties, 'tie')}" if one.ties else "", one.images or one.n
    wins = f"{one.wins} of {counted(images, 'image')}{ties}" if images else NOTHING
    verdict = {"better": "\u25b2 better", "worse": "\u25bc worse", "": "no claim"}[one.verdict]
    reason = f"<small>{escaped(one.reason)}</small>" if one.reason else ""
    cells = (
        f'<th scope="row">{swatch(colour)} {name(one.other)}</th>',
        f'<td class="verdict {one.verdict or "open"}"><b>{verdict}</b>{reason}</td>',
        f"<td><b>{number(one.difference.mean, digits, signed=True)}</b> <small>{bounds(one.difference, digits, signed=True)}</small></td>",
        f'<td class="drawn">{_drawn(one, reach, colour)}</td>',
        f"<td>{number(one.median_difference, digits, signed=True)}</td>",
        f"<td>{p_value(one.p)}</td>",
        f"<td>{p_value(one.p_holm)}</td>",
        f"<td>{escaped(counted(one.n, one.unit))}</td>",
        f"<td>{escaped(wins)}</td>",
    )
    return "".join(cells)


def instance_table(summary: Summary, colours: Colours) -> str:
    """Each task and measure: the reference against the best other method."""
    columns, decimals = {column.key: column for column in summary.columns}, decimals_of(summary)
    heads = ("Task", "Measure", name(summary.reference), "best other", "gain", "median difference", "p", "p (Holm)", "tested", "outcome")
    rows = []
    for one in summary.instances:
        column, digits = columns[one.column], decimals[one.column]
        unit, way = f", {escaped(column.unit)}" if column.unit else "", WAYS.get(column.better, ("", ""))[0]
        gain = NOTHING if math.isnan(one.relative_gain) else f"{number(100 * one.relative_gain, 1, signed=True)}\u00a0%"
        outcome = {"win": "\u25b2 win", "loss": "\u25bc loss", "": "no claim"}[one.outcome]
        kind = {"win": "better", "loss": "worse", "": "open"}[one.outcome]
        cells = [
            f"{number(one.mean.mean, digits)} <small>{bounds(one.mean, digits)}</small>",
            f"{swatch(colours[one.best])} {name(one.best)} {number(one.best_mean.mean, digits)} "
            f"<small>{bounds(one.best_mean, digits)}</small>",
            gain,
            number(one.median_difference, digits, signed=True),
            p_value(one.p),
            p_value(one.p_holm),
            counted(one.n, one.unit),
        ]
        reason = f"<small>{escaped(one.reason)}</small>" if one.reason else ""
        head = f'<th scope="row">{name(one.task)}</th><td>{escaped(column.label)}{unit} {way}</td>'
        rows.append(f'<tr>{head}{"".join(f"<td>{cell}</td>" for cell in cells)}<td class="{kind}">{outcome}{reason}</td></tr>')
    header = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _drawn(one: Compared, reach: float, colour: str) -> str:
    """The difference and its interval about zero, to the scale of its measure; a full point for a claim."""
    width, height = _TILE
    mean, low, high = one.difference
    if not math.isfinite(mean) or reach == 0:
        return ""
    x, y = {value: round(width / 2 + 0.46 * width * value / reach, 1) for value in (mean, low, high) if math.isfinite(value)}, height / 2
    line = f'<path d="M{x[low]} {y}H{x[high]}" stroke="{colour}" stroke-width="9" opacity="0.4"/>' if low in x and high in x else ""
    dot = f'<circle cx="{x[mean]}" cy="{y}" r="3" fill="{colour if one.verdict else "#ffffff"}" stroke="{colour}" stroke-width="1.5"/>'
    zero = f'<path d="M{width / 2} 0V{height}" stroke="#9aa1aa" stroke-dasharray="2 2"/>'
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">{zero}{line}{dot}</svg>'


def set_table(summary: Summary, colours: Colours) -> str:
    """Numbers that belong to a set of images: one row a label, with the notes below."""
    values: dict[str, dict[str, float]] = {}
    notes: dict[str, None] = {}
    for label, method, value, note in summary.set_scores:
        values.setdefault(label, {})[method] = value
        if note:
            notes[f"<li>{name(label)}: {escaped(note)}</li>"] = None
    heads = "".join(f'<th scope="col">{swatch(colours[one])} {name(one)}</th>' for one in summary.methods)
    rows = "".join(
        f'<tr><th scope="row">{name(label)}</th>'
        + "".join(f"<td>{number(found.get(one), decimals_for(found.values()))}</td>" for one in summary.methods)
        + "</tr>"
        for label, found in values.items()
    )
    table = f'<table class="scores"><thead><tr><th scope="col">Distance</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="wide">{table}</div>' + (f'<ul class="notes">{"".join(notes)}</ul>' if notes else "")


def legend(columns: Iterable[Column]) -> str:
    """What every column is."""
    rows = []
    for column in columns:
        sign, meaning = WAYS.get(column.better, ("", "describes, does not judge"))
        unit = f", in {escaped(column.unit)}" if column.unit else ""
        rows.append(f"<dt>{name(column.label)} {sign}</dt><dd>{escaped(column.note) or NOTHING} <span>({meaning}{unit})</span></dd>")
    return f'<dl class="legend">{"".join(rows)}</dl>'


def left_out_list(left_out: Mapping[str, str]) -> str:
    """What could not be computed, and why."""
    return f"<dl>{''.join(f'<dt>{name(metric)}</dt><dd>{escaped(reason)}</dd>' for metric, reason in left_out.items())}</dl>"


def failure_list(failures: tuple[tuple[str, str, str], ...]) -> str:
    """What failed, folded away; the count stands outside."""
    rows = "".join(
        f'<tr><th scope="row">{name(image)}</th><td>{name(method)}</td><td>{escaped(why)}</td></tr>'
        for image, method, why in failures[:MOST_FAILURES]
    )
    more = f"<p>{len(failures) - MOST_FAILURES} more are not shown.</p>" if len(failures) > MOST_FAILURES else ""
    table = f'<table class="plain"><thead><tr><th>Image</th><th>Method</th><th>Reason</th></tr></thead><tbody>{rows}</tbody></table>'
    told = f"{counted(len(failures), 'failure')}: left out of all numbers"
    return f'<details><summary>{told}</summary><div class="wide">{table}</div>{more}</details>'


def run_table(run: Mapping[str, Any]) -> str:
    """The facts of the run, nested ones by dotted names."""
    rows = "".join(f'<tr><th scope="row">{name(key)}</th><td>{name(value)}</td></tr>' for key, value in flat(run))
    return f'<table class="plain facts"><tbody>{rows}</tbody></table>'


def flat(facts: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Name and text of every fact; a mapping in it gives one line for each of its own."""
    lines = []
    for key, value in facts.items():
        label = f"{before}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines += flat(value, f"{label}: ") or [(label, "none")]
        elif isinstance(value, list | tuple):
            lines.append((label, ", ".join(_fact(one) for one in value) or "none"))
        else:
            lines.append((label, _fact(value)))
    return lines


def _fact(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
