"""The plots of a report as SVG, drawn by matplotlib without its global state, in colours that the colour-blind tell apart."""

import io
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathorestore.evaluation.report_format import counted, decimals_for, number, shortened, stretch, with_unit
from pathorestore.evaluation.results import Agreement, Bin, Column, RiskCurve, ScoreRow, Summary
from pathorestore.metrics.statistics import Interval

# Okabe and Ito, Color Universal Design (2008); yellow last, as it is faint on white
OKABE_ITO = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#f0e442")
GRAY = "#8b949e"
MOST_COLUMNS = 12  # of which distributions are drawn
_MARKERS = "osD^vPX*"
_WIDTH_IN = 12.3  # of the page, at its 96 px an inch
_MANY = 300  # points of one method; more are drawn as a bitmap inside the SVG
_GOLDEN = (math.sqrt(5) - 1) / 2
_STYLE = {
    "svg.fonttype": "none",  # text of the reader's own fonts, in any script
    "svg.hashsalt": "pathorestore",  # equal numbers give equal bytes
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": "#9aa1aa",
    "axes.labelcolor": "#30363d",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "xtick.labelcolor": "#30363d",
    "ytick.labelcolor": "#30363d",
    "grid.color": "#e6e9ed",
    "legend.frameon": False,
}


class Plot(NamedTuple):
    """One figure. title: what it is of, for a list. alt: what it shows, in words. svg: the file."""

    title: str
    alt: str
    svg: bytes


def colours(summary: Summary) -> dict[str, str]:
    """Method -> colour, the same everywhere in a report; after eight they begin again. What is no method is gray."""
    palette = {method: OKABE_ITO[index % len(OKABE_ITO)] for index, method in enumerate(summary.methods)}
    return {one: palette.get(one, GRAY) for one in summary.shown}


def by_column(summary: Summary, rows: Iterable[ScoreRow]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Column -> method -> the finite scores of its images."""
    methods = summary.shown
    found: dict[str, dict[str, list[float]]] = {column.key: {method: [] for method in methods} for column in summary.columns}
    for row in rows:
        for key, value in row.scores.items():
            if key in found and row.method in found[key] and math.isfinite(value):
                found[key][row.method].append(value)
    return {key: {one: np.array(values) for one, values in of.items() if values or one in summary.methods} for key, of in found.items()}


def distributions(summary: Summary, rows: Iterable[ScoreRow]) -> list[Plot]:
    """Every image's score under every method, for the first columns that have any; points lie wider where there are more."""
    values = by_column(summary, rows)
    drawn = [column for column in summary.columns if not column.detail and any(len(one) for one in values[column.key].values())][
        :MOST_COLUMNS
    ]
    with _drawing():
        return [_distribution(column, values[column.key], colours(summary)) for column in drawn]


def _distribution(column: Column, values: dict[str, NDArray[np.float64]], palette: dict[str, str]) -> Plot:
    figure = _figure(_WIDTH_IN, 0.7 + 0.62 * len(values))
    axes = figure.subplots()
    told = []
    for place, (method, numbers) in enumerate(values.items()):
        if not len(numbers):
            continue
        low, lower, middle, upper, high = np.percentile(numbers, (5, 25, 50, 75, 95))
        axes.scatter(numbers, place - _spread(numbers), s=9, lw=0, alpha=0.55, color=palette[method], rasterized=len(numbers) > _MANY)
        axes.plot((low, high), (place, place), color="#30363d", lw=1.1, solid_capstyle="butt")
        axes.plot((lower, upper), (place, place), color="#30363d", lw=5, solid_capstyle="butt")
        axes.plot(middle, place, "o", ms=4.5, mfc="white", mec="#30363d", mew=1.1)
        digits = decimals_for((middle,), column.unit)
        told.append(f"{method} {number(middle, digits)} ({number(lower, digits)} to {number(upper, digits)})")
    axes.set_yticks(range(len(values)), [shortened(method) for method in values])
    axes.set_ylim(len(values) - 0.7, -0.75)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(_label(column.label, column.unit))
    axes.grid(axis="x")
    return Plot(column.label, f"{column.label}, median and middle half of the images: {'; '.join(told)}", _svg(figure))


def _spread(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Offsets upwards, 0.08 to 0.66: evenly filled, and higher where more points are, so that their outline is a histogram."""
    counts, edges = np.histogram(numbers, bins=min(40, 8 + len(numbers) // 8))
    where = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(counts) - 1)
    return 0.08 + 0.58 * counts[where] / counts.max() * ((np.arange(len(numbers)) * _GOLDEN) % 1)


def degradation_curves(summary: Summary) -> list[Plot]:
    """Mean of each binned column against what images are degraded by, and beside it the gain over the first method, image by image."""
    order = {column.key: column for column in summary.columns if not column.detail}
    keys = [key for key in order if any(one.column == key for one in summary.bins)][:MOST_COLUMNS]
    if not keys:
        return []
    with _drawing():
        return [_degradation_curve(summary, order[key], [one for one in summary.bins if one.column == key]) for key in keys]


def _degradation_curve(summary: Summary, column: Column, bins: list[Bin]) -> Plot:
    edges = sorted({(one.low, one.high) for one in bins})
    found = {(one.method, (one.low, one.high)): one.interval for one in bins}
    figure = _figure(_WIDTH_IN, 4.2)
    left, right = figure.subplots(1, 2)
    first, *others = summary.methods
    gains = {(one.method, (one.low, one.high)): one.gain for one in bins}
    for axes, methods, values in ((left, summary.methods, found), (right, tuple(others), gains)):
        _lines(axes, summary, methods, values, edges)
        axes.set_xticks(_places(edges), [stretch(*edge) for edge in edges])
        axes.set_xlabel(_label(summary.axis.name, summary.axis.unit))
        axes.grid(axis="y")
    left.set_ylabel(_label(column.label, column.unit))
    right.set_ylabel(_label(f"{column.label}, gain over {shortened(first, 20)}", column.unit))
    right.axhline(0, color="#30363d", lw=0.8)
    lines, names = left.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=min(5, len(names)))
    digits = decimals_for((interval.mean for interval in found.values()), column.unit)
    told = "; ".join(
        f"{method} "
        + ", ".join(
            f"{number(found[method, edge].mean, digits)} at {with_unit(summary.axis, stretch(*edge))}"
            for edge in edges
            if (method, edge) in found
        )
        for method in summary.methods
    )
    return Plot(column.label, f"Mean {column.label} against {summary.axis.name}: {told}", _svg(figure))


def _lines(axes: Any, summary: Summary, methods: tuple[str, ...], values: dict[Any, Interval], edges: list[tuple[float, float]]) -> None:
    places = _places(edges)
    apart = min((right - left for left, right in pairwise(places)), default=1.0)
    for index, method in enumerate(methods):
        order = summary.methods.index(method)
        shift = 0.05 * apart * (index - (len(methods) - 1) / 2)  # so that intervals do not hide each other
        known = [(place + shift, *values[method, edge]) for place, edge in zip(places, edges, strict=True) if (method, edge) in values]
        x, mean, low, high = np.array([point for point in known if math.isfinite(point[1])]).reshape(-1, 4).T
        colour, marker = OKABE_ITO[order % len(OKABE_ITO)], _MARKERS[order % len(_MARKERS)]
        axes.plot(x, mean, color=colour, marker=marker, ms=5, lw=1.4, label=shortened(method))
        sure = np.isfinite(low) & np.isfinite(high)
        axes.vlines(x[sure], low[sure], high[sure], color=colour, lw=1.4)


def _places(edges: list[tuple[float, float]]) -> list[float]:
    """Where bins stand: single distances to scale, ranges side by side."""
    return [low if low == high else float(index) for index, (low, high) in enumerate(edges)]


def agreements(summary: Summary) -> list[Plot]:
    """Bland-Altman plots: one figure a quantity, one panel a method, all to the same scale."""
    known = [one for one in summary.agreements if one.points]
    with _drawing():
        return [_agreement(list(group), colours(summary)) for _, group in groupby(_grouped(known), key=lambda one: one.quantity)]


def _grouped(known: list[Agreement]) -> list[Agreement]:
    order = {quantity: index for index, quantity in enumerate(dict.fromkeys(one.quantity for one in known))}
    return sorted(known, key=lambda one: order[one.quantity])


def _agreement(panels: list[Agreement], palette: dict[str, str]) -> Plot:
    label, unit = panels[0].label, panels[0].unit
    figure, grid = _grid(len(panels), across=min(5, len(panels)), height=2.8)
    told = []
    for axes, one in zip(grid, panels, strict=True):
        mean, difference = np.array(one.points, dtype=float).T
        axes.scatter(mean, difference, s=8, lw=0, alpha=0.5, color=palette.get(one.method, "#57606a"), rasterized=len(mean) > _MANY)
        axes.axhline(0, color="#9aa1aa", lw=0.8)
        axes.axhline(one.bias, color="#30363d", lw=1.3)
        for limit in (one.lower, one.upper):
            if math.isfinite(limit):
                axes.axhline(limit, color="#30363d", lw=1, ls="--")
        digits = max(0, decimals_for((one.bias, one.lower, one.upper)) - 1)
        text = (
            f"{number(one.bias, digits, signed=True)} [{number(one.lower, digits, signed=True)}, {number(one.upper, digits, signed=True)}]"
        )
        axes.set_title(f"{shortened(one.method, 24)}\n{text}", loc="left")
        told.append(f"{one.method} bias and limits {text}")
    figure.supxlabel(f"{_label(label, unit)}: mean of restored and clean", fontsize=9)
    figure.supylabel("restored \u2212 clean", fontsize=9)
    return Plot(label, f"Bland-Altman plot of {_label(label, unit)}: {'; '.join(told)}", _svg(figure))


def risk_curves(summary: Summary) -> list[Plot]:
    """Error that remains when only the surest pixels are kept: one panel a method, with the best possible order and no order at all."""
    curves = [one for one in summary.risk if one.coverage]
    if not curves:
        return []
    with _drawing():
        figure, grid = _grid(len(curves), across=min(4, len(curves)), height=3.1)
        for axes, one in zip(grid, curves, strict=True):
            _risk_curve(axes, one, colours(summary).get(one.method, "#0072b2"))
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        told = "; ".join(f"{one.method} Spearman {number(one.spearman, 2)} over {counted(one.images, 'case')}" for one in curves)
        return [Plot("Risk and error", f"Risk-coverage curves: {told}", _svg(figure))]


def _risk_curve(axes: Any, one: RiskCurve, colour: str) -> None:
    axes.plot(one.coverage, one.error, color=colour, lw=2, label="by the risk map")
    axes.plot(one.coverage, one.oracle, color="#30363d", lw=1.1, ls="--", label="by the true error (oracle)")
    axes.axhline(one.mean_error, color="#30363d", lw=1.1, ls=":", label="at random (mean)")
    axes.set_title(f"{shortened(one.method, 28)}\nSpearman {number(one.spearman, 2)}, {counted(one.images, 'case')}", loc="left")
    axes.set_xlabel("share of pixels kept, surest first")
    axes.set_ylabel("their mean error")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.grid()


def _grid(count: int, *, across: int, height: float) -> tuple[Any, list[Any]]:
    """A figure of panels to one scale, `across` in a row, without empty ones."""
    down = -(-count // across)
    figure = _figure(_WIDTH_IN * min(1.0, 0.2 + 0.27 * across), height * down + 0.5)
    panels = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for empty in panels[count:]:
        empty.remove()
    for index, inner in enumerate(panels[:count]):
        inner.tick_params(left=index % across == 0)
    for above in panels[max(0, count - across) : count]:
        above.tick_params(labelbottom=True)
    return figure, panels[:count]


def _label(label: str, unit: str) -> str:
    return shortened(f"{label}, {unit}" if unit else label, 60)


def _figure(width_in: float, height_in: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def _svg(figure: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # a letter that the measuring font lacks; the reader's browser has others
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(file, format="svg", dpi=150, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return file.getvalue()


@contextmanager
def _drawing() -> Iterator[None]:
    """Our settings alone, whatever the user's matplotlibrc says, and what was set before afterwards."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('the plots of a report need matplotlib; pip install "pathorestore[report]"') from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield
