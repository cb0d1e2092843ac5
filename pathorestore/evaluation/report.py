"""The report of an evaluation: one HTML file with tables, plots and an image comparer, that opens from the disk and asks for nothing."""

import base64
import html
from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from pathorestore.atomic import refuse_existing, write_atomic
from pathorestore.evaluation import plots, report_tables
from pathorestore.evaluation.report_format import WAYS, counted, escaped, name, number, visible
from pathorestore.evaluation.report_sections import Section, number_sections, plot_sections, record_sections, section_html
from pathorestore.evaluation.results import PictureSet, ScoreRow, Summary
from pathorestore.pipelines.web_page import filled, hashed, script_json
from pathorestore.version import __version__

_MARK = '<meta name="generator" content="pathorestore evaluate">'
_DATES = ("created_utc", "date", "finished_utc", "started_utc")
_CLEAN = "#ffffff"  # pictures that are of no method
_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def write_report(
    path: Path, summary: Summary, rows: Sequence[ScoreRow], pictures: Sequence[PictureSet], *, overwrite: bool = False
) -> None:
    """Write the report to `path`, whole or not at all.

    Raises ValueError if the file exists and is not to be overwritten, or a picture is neither PNG nor JPEG; ImportError with the remedy
    without matplotlib; OSError if a picture cannot be read or the report not be written.
    """
    refuse_existing(path, overwrite=overwrite)
    write_atomic(path, report_html(summary, rows, pictures).encode("utf-8"))


def report_html(summary: Summary, rows: Sequence[ScoreRow], pictures: Sequence[PictureSet]) -> str:
    """The whole page. It runs no script and takes no style that is not named in it by its hash, and opens no address.

    rows: every image under every method, for the distributions and the gains. pictures: cases for the comparer, embedded as they are on
    the disk; none leaves it out. Equal input gives an equal page. Errors: as `write_report`.
    """
    pictures = [one for one in pictures if one.pictures]
    palette = plots.colours(summary)
    style, script = _web("report.css"), _web("report.js")
    numbers, rest = number_sections(summary), [*plot_sections(summary, rows), *record_sections(summary)]
    policy = [
        "default-src 'none'",
        f"script-src {hashed(script)}",
        f"style-src {hashed(style)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    images = [Section("images", "Images", "")] if pictures else []
    parts = {
        "mark": _MARK,
        "policy": html.escape("; ".join(policy), quote=False),
        "style": style,
        "title": escaped(summary.title),
        "notice": f"{escaped(summary.notice)}. Research use only.",
        "facts": _facts(summary),
        "methods": "".join(_method(one, summary, palette) for one in summary.methods),
        "contents": "".join(f'<a href="#{one.anchor}">{one.short or one.heading}</a>' for one in chain(numbers, images, rest)),
        "numbers": "\n".join(section_html(one) for one in numbers),
        "no_images": "" if pictures else "hidden",
        "rest": "\n".join(section_html(one) for one in rest),
        "footer": f"Written by pathorestore {escaped(__version__)}. {escaped(summary.notice)}. This file is complete and asks no network.",
        "data": script_json(page_data(summary, pictures)),
        "script": script,
    }
    return filled(_web("report.html"), parts)


def page_data(summary: Summary, pictures: Sequence[PictureSet]) -> dict[str, Any]:
    """What the page's script works on: the measures, the cases, and what the comparer shows first."""
    first = next((one for one in summary.methods if one != summary.reference), summary.reference)
    return {
        "columns": [[visible(column.label), not column.detail] for column in summary.columns],
        "start": [visible(first), visible(summary.reference)],
        "sets": [_set_data(one, summary) for one in pictures],
    }


def _set_data(one: PictureSet, summary: Summary) -> dict[str, Any]:
    palette, decimals = plots.colours(summary), report_tables.decimals_of(summary)
    measured = [column for column in summary.columns if any(column.key in found for found in one.scores.values())]
    scores = []
    for column in measured:
        unit, way = f", {column.unit}" if column.unit else "", WAYS.get(column.better, ("", ""))[0]
        values = [number(one.scores.get(label, {}).get(column.key), decimals[column.key]) for label in one.pictures]
        scores.append([visible(f"{column.label}{unit} {way}"), *values])
    width, height = _size(one.pictures.get("clean") or next(iter(one.pictures.values())))
    return {
        "name": visible(one.case),
        "why": visible(one.why),
        "degraded_by": visible(one.degraded_by),
        "pixel_um": one.pixel_um,
        "width": width,
        "height": height,
        "pictures": [
            {"label": visible(label), "colour": palette.get(label, _CLEAN), "source": _embedded(path)}
            for label, path in one.pictures.items()
        ],
        "scores": scores,
    }


def _embedded(path: Path) -> str:
    data = path.read_bytes()
    kind = next((kind for start, kind in _KINDS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError(f"{path}: begins with {data[:4]!r}; a picture of a report must be a PNG or JPEG file")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _size(path: Path) -> tuple[int, int]:
    """Width and height; no pixel is decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: is not a readable picture; one of a report must be a PNG or JPEG file") from error


def _facts(summary: Summary) -> str:
    date = next((_date(str(summary.run[key])) for key in _DATES if summary.run.get(key)), "")
    told = [
        f"{counted(summary.cases, 'case')} of {counted(summary.groups, summary.unit)}",
        counted(len(summary.methods), "method"),
        counted(len(summary.columns), "measure"),
    ]
    if summary.failures:
        told.append(f'<a href="#failures">{counted(len(summary.failures), "failure")}</a>')
    return " \u00b7 ".join([*told, *([name(date)] if date else [])])


def _date(text: str) -> str:
    """An ISO 8601 date for readers; other text stays as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment:%Y-%m-%d %H:%M}{' UTC' if moment.utcoffset() == timedelta(0) else ''}"


def _method(one: str, summary: Summary, palette: dict[str, str]) -> str:
    tag = ' <span class="tag">reference</span>' if one == summary.reference else ""
    return f"<li>{report_tables.swatch(palette[one])} {name(one)}{tag}</li>"


def _web(file: str) -> str:
    return files("pathorestore.evaluation").joinpath("web", file).read_text(encoding="utf-8")
