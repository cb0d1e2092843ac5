"""How a report writes names and numbers: no user's text becomes markup, no missing number becomes "nan"."""

import html
import math
import re
from collections.abc import Iterable

from pathorestore.evaluation.results import SCALE, Axis, Column
from pathorestore.metrics.statistics import Interval

NOTHING = "\u2013"  # an en dash, for a number that does not exist
WAYS = {"higher": ("\u2191", "higher is better"), "lower": ("\u2193", "lower is better"), "zero": ("\u21920", "nearer to zero is better")}

# what UTF-8, HTML or XML cannot hold, or nobody would see
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def visible(text: object) -> str:
    r"""One line that UTF-8 and XML can hold: control characters, and bytes of file names that are no text, become escapes such as \xff."""
    return _UNSEEN.sub(_escaped, str(text))


def escaped(text: object) -> str:
    """The same as part of HTML, inside an element or a quoted attribute."""
    return html.escape(visible(text))


def name(text: object) -> str:
    """A user's name as an element of its own, so that text from right to left turns nothing around it."""
    return f"<bdi>{escaped(text)}</bdi>"


def number(value: float | None, decimals: int, *, signed: bool = False) -> str:
    """A number with so many decimals, a real minus sign and grouped thousands; an en dash for None and NaN."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "\u221e" if value > 0 else "\u2212\u221e"
    sign = "+" if signed else ""
    tiny = 0 < abs(value) < 10**-decimals / 2 and decimals >= 6
    text = f"{value:{sign}.2e}" if tiny or abs(value) >= 1e9 else f"{value:{sign},.{decimals}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")  # a rounded zero has no sign
    return text.replace(",", "\u202f").replace("-", "\u2212")


def decimals_for(values: Iterable[float], unit: str = "") -> int:
    """Decimals that show four digits of the largest value; decibels have two."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if unit == "dB" or largest == 0:
        return 2
    return min(6, max(0, 3 - math.floor(math.log10(largest))))


def bounds(interval: Interval, decimals: int, *, signed: bool = False) -> str:
    """The interval of a mean in brackets; an en dash where too few groups leave it unknown."""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return NOTHING
    return f"[{number(interval.low, decimals, signed=signed)}, {number(interval.high, decimals, signed=signed)}]"


def p_value(value: float) -> str:
    """Three significant digits, or that it is less than 0.001; an en dash where nothing was tested."""
    if math.isnan(value):
        return NOTHING
    return "<\u00a00.001" if value < 0.001 else f"{value:#.3g}"


def stretch(low: float, high: float) -> str:
    """A value of an axis, or a range of them, without the unit."""
    if low == high:
        return f"{low:g}"
    return f"\u2265 {low:g}" if math.isinf(high) else f"{low:g} \u2013 {high:g}"


def with_unit(axis: Axis, value: str) -> str:
    """A value of an axis as one says it: 1.6 um, x2."""
    return f"\u00d7{value}" if axis == SCALE else f"{value} \u00b5m"


def counted(count: int, unit: str) -> str:
    """Such as "1 image" and "2 images"."""
    return f"{count:,} {unit}{'' if count == 1 else 's'}".replace(",", "\u202f")


def heading(column: Column) -> str:
    """A column's label, unit and which way is good, with its note as a tooltip."""
    sign, meaning = WAYS.get(column.better, ("", "describes, does not judge"))
    unit = f' <span class="unit">{escaped(column.unit)}</span>' if column.unit else ""
    way = f' <span class="way" title="{meaning}">{sign}</span>' if sign else ""
    return f'<span title="{escaped(column.note)}">{name(column.label)}</span>{unit}{way}'


def shortened(text: str, most: int = 30) -> str:
    """Visible text of at most so many signs, the middle left out, for a place of fixed width."""
    shown = visible(text)
    return shown if len(shown) <= most else f"{shown[: most // 2]}\u2026{shown[-(most - most // 2 - 1) :]}"


def _escaped(sign: re.Match[str]) -> str:
    code = ord(sign[0])
    if sign[0] in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[sign[0]]
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte that Python hid in a file's name
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
