"""The focus of an image or slide as a picture: distance as colour over a gray thumbnail, outlines by verdict, a legend to read it by."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pathorestore.image import to_uint8
from pathorestore.pipelines.contact_sheet import colour_ramp
from pathorestore.pipelines.geojson import Colour
from pathorestore.slide.focus_qc import FocusMap
from pathorestore.slide.focus_verdict import JUDGED, FocusSummary, Thresholds, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

VERDICT_COLOURS: dict[Verdict, Colour] = {
    "fine": (46, 125, 50),
    "restore": (239, 108, 0),
    "rescan": (211, 47, 47),
    "glass": (189, 189, 189),
    "unreadable": (66, 66, 66),
}
RAMP_UM = 5.0
"""Right end of the colours, the same in every picture; the estimator says no more than about 4.5 um."""

_SIDE_PX, _LEAST_SIDE_PX, _MOST_ENLARGED = 1000, 420, 2.5
_MARGIN_PX, _HEADER_PX, _LEGEND_PX, _FOOTER_PX, _GAP_PX = 24, 84, 176, 92, 22
_TITLE_PX, _TEXT_PX, _SMALL_PX = 24, 17, 14
_INK, _FAINT, _PAPER = (24, 24, 24), (110, 110, 110), (255, 255, 255)
_OPACITY = 0.6
_PALEST = 190  # black tissue stays gray, so that the colour on it can be seen
_STEPS = (1, 2, 5)
_LONGEST = 300  # signs that are looked at to fit a line


class _Blocks(NamedTuple):
    """Judged tiles as a grid: distances in um, 0 where none; verdicts as places in VERDICT_COLOURS; borders of what they stand for."""

    distances: NDArray[np.float32]
    codes: NDArray[np.int64]
    rows_px: Sequence[int]
    columns_px: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """What the picture says. title: of any signs and length; footnote: what the figures are worth."""

    focus: FocusMap
    summary: FocusSummary
    thresholds: Thresholds
    title: str
    footnote: str = ""

    def png(self) -> bytes:
        """The picture as PNG."""
        buffer = io.BytesIO()
        self.draw().save(buffer, "PNG", compress_level=2)
        return buffer.getvalue()

    def draw(self) -> "Image":
        """The picture: header, map beside its legend, scale bar and notes."""
        from PIL import Image, ImageDraw

        picture = self._map()
        width = 2 * _MARGIN_PX + max(picture.width, _LEAST_SIDE_PX) + _GAP_PX + _LEGEND_PX
        height = _HEADER_PX + max(picture.height, _LEAST_SIDE_PX) + _FOOTER_PX
        sheet = Image.new("RGB", (width, height), _PAPER)
        pen = ImageDraw.Draw(sheet)
        sheet.paste(picture, (_MARGIN_PX, _HEADER_PX))
        pen.rectangle((_MARGIN_PX - 1, _HEADER_PX - 1, _MARGIN_PX + picture.width, _HEADER_PX + picture.height), outline=(160, 160, 160))
        self._header(pen, width - 2 * _MARGIN_PX)
        left = _MARGIN_PX + max(picture.width, _LEAST_SIDE_PX) + _GAP_PX
        self._legend(sheet, pen, left)
        self._footer(pen, picture, height - _FOOTER_PX)
        return sheet

    def _map(self) -> "Image":
        from PIL import Image

        focus, blocks = self.focus, blocks_of(self.focus)
        scale = min(_SIDE_PX / max(focus.width_px, focus.height_px), _MOST_ENLARGED)
        width, height = (max(1, round(side * scale)) for side in (focus.width_px, focus.height_px))
        ground = np.full((height, width, 3), 235, np.float32)
        if focus.thumbnail is not None:
            resampling = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
            gray = Image.fromarray(focus.thumbnail).convert("L").resize((width, height), resampling)
            ground = np.repeat(_PALEST * (1 - np.asarray(gray, np.float32) / 255)[..., None], 3, axis=2)
            ground = 255 - ground
        down = np.searchsorted(blocks.rows_px, (np.arange(height) + 0.5) / scale, side="right") - 1
        across = np.searchsorted(blocks.columns_px, (np.arange(width) + 0.5) / scale, side="right") - 1
        down, across = np.clip(down, 0, len(blocks.codes) - 1), np.clip(across, 0, blocks.codes.shape[1] - 1)
        codes = blocks.codes[down][:, across]
        colours = to_uint8(colour_ramp(torch.from_numpy(blocks.distances / RAMP_UM)[None, None]))[down][:, across]
        judged = (codes < len(JUDGED))[..., None]
        mixed = np.where(judged, (1 - _OPACITY) * ground + _OPACITY * colours, ground)
        unreadable = codes == list(VERDICT_COLOURS).index("unreadable")
        hatched = (np.add.outer(np.arange(height), np.arange(width)) // 4) % 2 == 0
        mixed[unreadable & hatched] = VERDICT_COLOURS["unreadable"]
        outline = _borders(codes, 3 if min(width, height) > 12 * max(blocks.codes.shape) else 2) & judged[..., 0]
        mixed[outline] = np.array(list(VERDICT_COLOURS.values()), np.float32)[codes[outline]]
        return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))

    def _header(self, pen: "ImageDraw", room_px: int) -> None:
        font, text = _font(_TITLE_PX), _font(_TEXT_PX)
        pen.text((_MARGIN_PX, 14), _fitted(plain_title(self.title), font, room_px), fill=_INK, font=font)
        word = self.summary.verdict
        wide = round(text.getlength(word)) + 20
        pen.rounded_rectangle((_MARGIN_PX, 48, _MARGIN_PX + wide, 74), radius=6, fill=VERDICT_COLOURS[word])
        pen.text((_MARGIN_PX + wide / 2, 61), word, fill=_INK if word == "glass" else _PAPER, font=text, anchor="mm")
        rest = self.summary.sentence().partition(": ")[2]
        pen.text((_MARGIN_PX + wide + 12, 61), _fitted(rest, text, room_px - wide - 12), fill=_INK, font=text, anchor="lm")

    def _legend(self, sheet: "Image", pen: "ImageDraw", left: int) -> None:
        from PIL import Image

        text, small = _font(_TEXT_PX), _font(_SMALL_PX)
        top, bar, wide = _HEADER_PX + 30, 210, 26
        pen.text((left, _HEADER_PX), "estimated |z|, um", fill=_INK, font=text)
        values = torch.linspace(1, 0, bar)[None, None, :, None].expand(1, 1, bar, wide)
        sheet.paste(Image.fromarray(to_uint8(colour_ramp(values))), (left, top))
        for value in range(int(RAMP_UM) + 1):
            y = top + bar - 1 - round(value / RAMP_UM * (bar - 1))
            pen.line((left + wide, y, left + wide + 5, y), fill=_INK)
            if abs(value - self.thresholds.rescan_um) > 0.4:  # the threshold's own label stands there
                pen.text((left + wide + 10, y), f"{value}" if value < RAMP_UM else f">{value}", fill=_INK, font=small, anchor="lm")
        if self.thresholds.rescan_um < RAMP_UM:
            y = top + bar - 1 - round(self.thresholds.rescan_um / RAMP_UM * (bar - 1))
            red = VERDICT_COLOURS["rescan"]
            pen.line((left - 4, y, left + wide + 6, y), fill=red, width=2)
            pen.text((left + wide + 10, y), f"{self.thresholds.rescan_um:g}: rescan", fill=red, font=small, anchor="lm")
        self._verdicts(pen, left, top + bar + 26)

    def _verdicts(self, pen: "ImageDraw", left: int, top: int) -> None:
        text, counted = _font(_TEXT_PX), dict.fromkeys(VERDICT_COLOURS, 0)
        for tile in self.focus.tiles:
            counted[tile.verdict] += 1
        for name, count in counted.items():
            if not count and name == "unreadable":
                continue
            box = (left, top, left + 17, top + 17)
            pen.rectangle(box, outline=VERDICT_COLOURS[name], width=3, fill=None if name in JUDGED else VERDICT_COLOURS[name])
            pen.text((left + 26, top + 9), f"{name}  {count:,}", fill=_INK, font=text, anchor="lm")
            top += 27
        pen.text((left, top + 6), f"tiles; fine: CTF >= {self.thresholds.fine_ctf:g}", fill=_FAINT, font=_font(_SMALL_PX))

    def _footer(self, pen: "ImageDraw", picture: "Image", top: int) -> None:
        text, small = _font(_TEXT_PX), _font(_SMALL_PX)
        um_per_px = self.focus.mpp * self.focus.width_px / picture.width
        bar_um = round_length(um_per_px * picture.width * 0.22)
        length = max(2, round(bar_um / um_per_px))
        pen.rectangle((_MARGIN_PX, top + 16, _MARGIN_PX + length, top + 21), fill=_INK)
        label = f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um:g} um"
        assumed = f" (pixel of {self.focus.mpp:g} um assumed)" if self.focus.mpp_assumed else ""
        pen.text((_MARGIN_PX + length + 10, top + 19), label + assumed, fill=_INK, font=text, anchor="lm")
        sampled = f"one tile of {self.focus.every} x {self.focus.every} judged, the others coloured alike; " if self.focus.every > 1 else ""
        room = max(picture.width, _LEAST_SIDE_PX) + _GAP_PX + _LEGEND_PX
        for index, line in enumerate(_lines(f"{sampled}{self.footnote}", small, room, most=2)):
            pen.text((_MARGIN_PX, top + 38 + 20 * index), line, fill=_FAINT, font=small)


def blocks_of(focus: FocusMap) -> _Blocks:
    """The judged tiles as a grid; of every Nth tile each stands for the N by N around it."""
    every = focus.every
    rows, columns = ((edges, min((every - 1) // 2, len(edges) - 2)) for edges in (focus.rows_px, focus.columns_px))
    counts = [len(range(first, len(edges) - 1, every)) for edges, first in (rows, columns)]
    names = list(VERDICT_COLOURS)
    return _Blocks(
        np.array([tile.defocus_um or 0.0 for tile in focus.tiles], np.float32).reshape(counts),
        np.array([names.index(tile.verdict) for tile in focus.tiles]).reshape(counts),
        *([*edges[:-1:every][:count], edges[-1]] for (edges, _), count in zip((rows, columns), counts, strict=True)),
    )


def plain_title(title: str) -> str:
    """A title on one line in ASCII, since the built-in font has little else; other signs are spelled out."""
    return "".join(sign if " " <= sign <= "~" else sign.encode("unicode_escape").decode() for sign in title)


def round_length(about_um: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is at most `about_um`."""
    power = 10.0 ** math.floor(math.log10(about_um))
    return max(step * power for step in _STEPS if step * power <= about_um * (1 + 1e-9))


def _borders(codes: NDArray[np.int64], width_px: int) -> NDArray[np.bool_]:
    """Pixels at most so far from one of another code, or from the edge."""
    grown = np.pad(codes, width_px, constant_values=-1)
    height, width = codes.shape
    found = np.zeros(codes.shape, bool)
    for step in range(1, width_px + 1):
        for down, across in ((step, 0), (-step, 0), (0, step), (0, -step)):
            found |= grown[width_px + down : width_px + down + height, width_px + across : width_px + across + width] != codes
    return found


def _font(size_px: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size_px)


def _fitted(text: str, font: "FreeTypeFont | ImageFont", room_px: float) -> str:
    """The text, its middle left out if it is longer than the room."""
    if len(text) <= _LONGEST and font.getlength(text) <= room_px:
        return text
    keep = min(len(text), _LONGEST) // 2
    while keep > 1 and font.getlength(f"{text[:keep]} ... {text[-keep:]}") > room_px:
        keep -= 1
    return f"{text[:keep]} ... {text[-keep:]}"


def _lines(text: str, font: "FreeTypeFont | ImageFont", room_px: float, *, most: int) -> list[str]:
    """Words broken into lines of the room's width; what is left over closes the last one, shortened."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= room_px or not lines[-1] or len(lines) == most:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_fitted(line, font, room_px) for line in lines]
