"""Pictures side by side in rows and columns, with labels, captions, a zoomed detail and a scale bar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pathorestore.image import to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

_GAP_PX, _HEADER_PX, _CAPTION_PX, _GUTTER_PX, _TEXT_PX = 8, 36, 28, 116, 20
_INK, _PAPER, _FRAME = (20, 20, 20), (255, 255, 255), (255, 210, 0)

# Anchors of a colour ramp whose lightness rises evenly, so that it also reads in gray.
_RAMP = torch.tensor([[0.07, 0.05, 0.28], [0.24, 0.20, 0.56], [0.13, 0.49, 0.58], [0.42, 0.74, 0.42], [0.99, 0.91, 0.22]])


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture 1 3 h w in [0, 1] and the line below it; detail: whether the zoomed part is drawn in."""

    picture: Tensor
    caption: str = ""
    detail: bool = True


@dataclass(frozen=True, kw_only=True)
class SheetStyle:
    """detail_yx, detail_px: top left corner and side of the part shown larger. zoom: how much. pixel_um, bar_um: for the scale bar."""

    detail_yx: tuple[int, int]
    detail_px: int = 56
    zoom: int = 3
    pixel_um: float
    bar_um: float = 20.0


def draw_sheet(
    rows: Sequence[Sequence[Cell]], row_labels: Sequence[str], column_labels: Sequence[str], style: SheetStyle, *, footer: str = ""
) -> "Image":
    """The sheet as a Pillow image; all pictures must be of one size. Raises ValueError if labels and cells do not match."""
    from PIL import Image, ImageDraw, ImageFont

    if len(rows) != len(row_labels) or any(len(row) != len(column_labels) for row in rows):
        raise ValueError(f"{[len(row) for row in rows]} cells do not fit {len(row_labels)} row and {len(column_labels)} column labels")
    height, width = rows[0][0].picture.shape[-2:]
    step_x, step_y = width + _GAP_PX, height + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (_GUTTER_PX + len(column_labels) * step_x, _HEADER_PX + len(rows) * step_y + _HEADER_PX), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT_PX)
    for column, label in enumerate(column_labels):
        pen.text((_GUTTER_PX + column * step_x + width // 2, _HEADER_PX // 2), label, fill=_INK, font=font, anchor="mm")
    for at, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        top = _HEADER_PX + at * step_y
        pen.text((_GUTTER_PX - _GAP_PX, top + height // 2), label, fill=_INK, font=font, anchor="rm")
        for column, cell in enumerate(row):
            left = _GUTTER_PX + column * step_x
            sheet.paste(_draw_cell(cell, style, bar=column == 0), (left, top))
            pen.text((left + width // 2, top + height + _CAPTION_PX // 2), cell.caption, fill=_INK, font=font, anchor="mm")
    pen.text((_GUTTER_PX, sheet.height - _HEADER_PX // 2), footer, fill=_INK, font=font, anchor="lm")
    return sheet


def colour_ramp(values: Tensor) -> Tensor:
    """Colours b 3 h w for values b 1 h w in [0, 1], dark blue over green to yellow; clipped outside."""
    position = values.clamp(0, 1) * (len(_RAMP) - 1)
    lower = position.long().clamp(max=len(_RAMP) - 2)
    colours = torch.lerp(_RAMP[lower], _RAMP[lower + 1], (position - lower)[..., None])
    return colours[:, 0].permute(0, 3, 1, 2)


def busiest_corner(picture: Tensor, side_px: int) -> tuple[int, int]:
    """Top left corner (y, x) of the square with the most fine structure, in steps of half its side."""
    gray = picture.mean(1, keepdim=True)
    side_px = min(side_px, *gray.shape[-2:])
    stride = max(1, side_px // 2)
    smooth = torch.nn.functional.avg_pool2d(gray, 9, stride=1, padding=4, count_include_pad=False)
    energy = torch.nn.functional.avg_pool2d((gray - smooth) ** 2, side_px, stride)[0, 0]
    at = int(energy.argmax())
    return at // energy.shape[1] * stride, at % energy.shape[1] * stride


def _draw_cell(cell: Cell, style: SheetStyle, *, bar: bool) -> "Image":
    from PIL import Image, ImageDraw

    picture = Image.fromarray(to_uint8(cell.picture))
    pen = ImageDraw.Draw(picture)
    if cell.detail:
        _draw_detail(picture, pen, style)
    if bar:
        _draw_bar(picture, pen, style)
    return picture


def _draw_detail(picture: "Image", pen: "ImageDraw", style: SheetStyle) -> None:
    """The detail, enlarged, in the corner that is farther from where it was taken."""
    from PIL.Image import Resampling

    top, left = style.detail_yx
    box = (left, top, left + style.detail_px, top + style.detail_px)
    side = style.detail_px * style.zoom
    detail = picture.crop(box).resize((side, side), Resampling.BICUBIC)
    at_x = 0 if left + style.detail_px / 2 > picture.width / 2 else picture.width - side
    at_y = 0 if top + style.detail_px / 2 > picture.height / 2 else picture.height - side
    picture.paste(detail, (at_x, at_y))
    pen.rectangle(box, outline=_FRAME, width=2)
    pen.rectangle((at_x, at_y, at_x + side - 1, at_y + side - 1), outline=_FRAME, width=2)


def _draw_bar(picture: "Image", pen: "ImageDraw", style: SheetStyle) -> None:
    """A scale bar on a pale ground, at the bottom, on the side that the detail leaves free."""
    from PIL import ImageFont

    length = round(style.bar_um / style.pixel_um)
    free_right = style.detail_yx[1] + style.detail_px / 2 > picture.width / 2
    left, bottom = (picture.width - length - 20 if free_right else 12), picture.height - 12
    pen.rectangle((left - 6, bottom - 34, left + length + 6, bottom + 6), fill=_PAPER)
    pen.rectangle((left, bottom - 6, left + length - 1, bottom), fill=_INK)
    label = f"{style.bar_um:g} um"  # the built-in font has no Greek
    pen.text((left + length // 2, bottom - 20), label, fill=_INK, font=ImageFont.load_default(18), anchor="mm")
