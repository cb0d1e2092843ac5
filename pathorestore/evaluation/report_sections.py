"""The sections of a report: tables and plots with the words that explain them."""

import base64
from collections.abc import Sequence
from typing import NamedTuple

from pathorestore.evaluation import plots, report_tables
from pathorestore.evaluation.report_format import NOTHING, escaped, name
from pathorestore.evaluation.results import FOCUS, ScoreRow, Summary
from pathorestore.evaluation.tables import win_count


class Section(NamedTuple):
    """anchor: in addresses. heading: plain text. body: HTML below it. short: for the list of contents, where the heading is long."""

    anchor: str
    heading: str
    body: str
    short: str = ""


def section_html(section: Section) -> str:
    """As an element."""
    return f'<section id="{section.anchor}"><h2>{section.heading}</h2>{section.body}</section>'


def number_sections(summary: Summary) -> list[Section]:
    """Scores, and what the reference comes to against the others."""
    sections = [Section("scores", "Scores", _scores(summary))]
    if summary.comparisons:
        sections.append(Section("differences", "Differences", _differences(summary)))
    if summary.instances:
        sections.append(Section("tasks", "Tasks", _tasks(summary)))
    return sections


def _tasks(summary: Summary) -> str:
    return (
        f'<p class="lead">{escaped(win_count(summary))}.</p>'
        f'<div class="wide">{report_tables.instance_table(summary, plots.colours(summary))}</div>'
        '<p class="key">Each task and measure: the reference against the other method of the best mean there. Intervals of 95 % by '
        "Student\u2019s t; gain: of the other\u2019s mean, positive where the reference is better.</p>"
    )


def _scores(summary: Summary) -> str:
    unit = escaped(summary.unit)
    notes = "".join(f"<li>{escaped(note)}</li>" for note in summary.notes)
    return (
        f'<p class="lead">Mean over all cases, and its 95 % bootstrap interval over {unit}s.</p>'
        f"{f'<ul class=notes>{notes}</ul>' if notes else ''}"
        '<details class="columns" hidden><summary>Choose measures</summary><div></div></details>'
        f'<div class="wide">{report_tables.score_table(summary, plots.colours(summary))}</div>'
        '<p class="key">\u2605 best mean, where the difference is claimed: for the reference against every other method, for another '
        "method against the reference. \u2191 higher, \u2193 lower, \u21920 nearer to zero is better. "
        f"{NOTHING} does not exist: a number such as the area of nuclei in an image without any, or an interval over fewer than two "
        f"{unit}s. Perfect cases, of an infinite number, have no part in the mean.</p>"
    )


def _differences(summary: Summary) -> str:
    palette, reference = plots.colours(summary), name(summary.reference)
    return (
        f'<p class="lead">{reference} minus each other method, case by case. A difference is claimed where its test is clear even '
        "when adjusted for all tests of this report.</p>"
        f"{report_tables.glance(summary, palette)}"
        f'<div class="wide">{report_tables.comparison_table(summary, palette)}</div>'
        '<p class="key">Drawn: the difference and its 95 % interval about zero, to the scale of its measure; a full point marks a claim. '
        f"\u201cBetter in\u201d: in how many images {reference} is better, all cases of one averaged.</p>"
    )


def plot_sections(summary: Summary, rows: Sequence[ScoreRow]) -> list[Section]:
    """What there is to draw. Raises ImportError with the remedy without matplotlib."""
    drawn = plots.distributions(summary, rows)
    count = f"The first {len(drawn)} of {len(summary.columns)} measures are drawn. " if len(drawn) < len(summary.columns) else ""
    found = (
        (
            Section(
                "distributions",
                "Every image",
                f"{count}Point: a case. Ring: median; thick line: middle half; thin line: 5 % to 95 %.",
            ),
            drawn,
        ),
        (
            Section(
                "defocus",
                f"By {summary.axis.name}",
                f"Left: means. Right: the gain over {name(summary.methods[0])}, case by case. Vertical lines: "
                f"95 % bootstrap intervals over {escaped(summary.unit)}s.",
                "Focus" if summary.axis == FOCUS else "Scales",
            ),
            plots.degradation_curves(summary),
        ),
        (
            Section(
                "agreement",
                "Agreement of measurements",
                "Bland-Altman plots: a point is a case. Full line: bias; dashed lines: limits of agreement; gray line: zero. Above each "
                "panel: bias [limits].",
                "Agreement",
            ),
            plots.agreements(summary),
        ),
        (
            Section(
                "risk",
                "Risk maps",
                "The nearer to the dashed line, the better a risk map knows where the restored image is wrong; at the dotted line it "
                "knows nothing.",
            ),
            plots.risk_curves(summary),
        ),
    )
    return [section._replace(body=_figures(figures, section.body)) for section, figures in found if figures]


def _figures(found: Sequence[plots.Plot], caption: str) -> str:
    figures = "".join(
        f'<figure data-title="{escaped(one.title)}"><img alt="{escaped(one.alt)}" src="{_source(one.svg)}"></figure>' for one in found
    )
    return f'<div class="figures">{figures}</div><p class="key">{caption}</p>'


def _source(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def record_sections(summary: Summary) -> list[Section]:
    """What belongs to sets of images, what is missing and why, how it was made, what the words mean."""
    palette = plots.colours(summary)
    words = f"{report_tables.legend(summary.columns)}<h3>Statistics</h3>{_statistics(summary)}"
    sections = (
        Section("sets", "Sets of images", report_tables.set_table(summary, palette) if summary.set_scores else "", "Sets"),
        Section("left-out", "Left out", report_tables.left_out_list(summary.left_out) if summary.left_out else ""),
        Section("failures", "Failures", report_tables.failure_list(summary.failures) if summary.failures else ""),
        Section("run", "How it was made", report_tables.run_table(summary.run) if summary.run else "", "Record"),
        Section("definitions", "Definitions", words),
    )
    return [section for section in sections if section.body]


def _statistics(summary: Summary) -> str:
    unit = escaped(summary.unit)
    words = {"Case": "One image as it is restored; degraded in several ways, one for each."}
    words["Interval"] = f"95 % percentile bootstrap: whole {unit}s are drawn with replacement, each with all its cases."
    if summary.comparisons:
        words["p"] = "Two-sided Wilcoxon signed-rank test of the paired differences; p (Holm) is adjusted for all tests of this report."
        words["Verdict"] = (
            f"Better or worse where p (Holm) lies below {summary.level:g}, and the means agree. No claim is no proof of equality."
        )
    if summary.agreements:
        words["Limits of agreement"] = (
            "Bias (the mean of restored minus clean) \u00b1 1.96 standard deviations: 95 % of normal differences."
        )
    if summary.risk:
        words["Risk curve"] = "Pixels are sorted by predicted risk; the mean error of the surest share is drawn over that share."
        words["Spearman"] = "Rank correlation between the predicted and the true local error: 1 is a perfect order, 0 none."
    return f'<dl class="legend">{"".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in words.items())}</dl>'
