"""The risk map as files beside the restored image: numbers as NAME.risk.tiff, a picture to look at as NAME.risk.png."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathorestore.atomic import write_atomic
from pathorestore.functional.color import luminance
from pathorestore.image import to_uint8
from pathorestore.pipelines.batch import BadResult, Job, PlanError
from pathorestore.pipelines.contact_sheet import colour_ramp
from pathorestore.pipelines.image_file import ImageFile, check_target
from pathorestore.pipelines.pillow_file import encode_png
from pathorestore.pipelines.provenance import Provenance
from pathorestore.pipelines.raster import Pixels, Raster
from pathorestore.pipelines.siblings import all_or_as_before
from pathorestore.pipelines.tiff_file import encode_tiff

if TYPE_CHECKING:
    from PIL.Image import Image

OVERLAY_TOP_LEVELS = 20.0  # the same for every image, so that pictures can be compared
_RISK_SUFFIXES = (".risk.tiff", ".risk.png")
STORED_PER_LEVEL = 256  # whole numbers of 16 bits, so that every reader of TIFF knows them
_VEIL = 0.6  # how much of the overlay is the colour, the rest is the picture in gray
_ROWS = 2048  # of a large picture in memory at a time
_LEGEND_PX, _RAMP_PX, _MARGIN_PX, _TEXT_PX, _NARROWEST_PX = 46, 12, 8, 13, 300


def risk_paths(output: Path) -> tuple[Path, Path]:
    """Where the map and the overlay of an output lie."""
    stem = output.with_suffix("").name
    return output.with_name(stem + _RISK_SUFFIXES[0]), output.with_name(stem + _RISK_SUFFIXES[1])


def check_risk_names(jobs: Sequence[Job]) -> None:
    """Raise PlanError if a risk map would have the name of another output, of another's risk map, or of an input."""
    taken = {job.output: job.input for job in jobs}
    inputs = {job.input.absolute() for job in jobs}
    for job in jobs:
        for path in risk_paths(job.output):
            other = taken.setdefault(path, job.input)
            if other != job.input or path.absolute() in inputs:
                what = f"the output of {other}" if other != job.input else "an input"
                raise PlanError(f"the risk map of {job.input} would be {path}, {what}; restore them into different folders")


def check_risk_targets(output: Path, input_path: Path, *, overwrite: bool) -> None:
    """Raise ImageFileError with the remedy unless both files may be written."""
    for path in risk_paths(output):
        check_target(path, input_path, overwrite=overwrite)


@contextmanager
def risk_beside(
    output: Path, risk: Tensor, restored: Tensor, like: ImageFile, provenance: Provenance, *, overwrite: bool = False
) -> Iterator[None]:
    """Write the map and the overlay of an image 1 3 h w, risk 1 1 h w, then do what the block does, which is to write the image itself.

    So whoever finds the image finds them too. If anything fails, both are as they were before, see `all_or_as_before`. Both hold the record
    of the image with another notice. Raises as `write_image_file`.
    """
    told = replace(provenance, parameters={**provenance.parameters, "risk_stored_per_level": STORED_PER_LEVEL})
    paths = risk_paths(output)
    overlay = Raster(pixels=overlay_picture(risk, restored), pixel_um=like.pixel_um)
    numbers = Raster(pixels=risk_pixels(risk), pixel_um=like.pixel_um)
    contents = (encode_tiff(numbers, told)[0], encode_png(overlay, told)[0])
    check_risk_targets(output, like.path, overwrite=overwrite)  # encoding took a while
    with all_or_as_before(paths):
        for path, data in zip(paths, contents, strict=True):
            write_atomic(path, data)
        yield


def risk_pixels(risk: Tensor) -> Pixels:
    """A map 1 1 h w in grey levels as it is stored: h w 1, uint16, in 1/256 of a level, 0 to 255.996.

    Raises BadResult for values that are not finite, which would be stored as no risk at all.
    """
    if not torch.isfinite(risk).all():
        raise BadResult("the risk map holds values that are not finite, so nothing is known of the errors; leave --risk-map out")
    stored = (risk[0, 0, :, :, None].cpu().double() * STORED_PER_LEVEL).round().clamp(0, 2**16 - 1)
    return stored.numpy().astype(np.uint16)


def read_risk(path: Path) -> Tensor:
    """The map 1 1 h w, grey levels, of a NAME.risk.tiff. Raises OSError if it cannot be opened, ValueError if it is something else."""
    import tifffile

    stored = tifffile.imread(path)
    if stored.ndim != 2 or stored.dtype != np.uint16:
        raise ValueError(f"{path} holds {stored.dtype} of shape {stored.shape}; expected uint16 of height x width, as --risk-map writes")
    return torch.from_numpy(stored.astype(np.float32) / STORED_PER_LEVEL)[None, None]


def overlay_picture(risk: Tensor, restored: Tensor) -> NDArray[np.uint8]:
    """The restored image 1 3 h w in gray under the colours of its risk 1 1 h w, with a legend below; uint8 rows x columns x 3.

    Colours run from 0 to 20 grey levels of expected error; more is drawn as 20. A picture narrower than the legend gets a white margin.
    """
    height, width = restored.shape[-2:]
    canvas = np.full((height + _LEGEND_PX, max(width, _NARROWEST_PX), 3), 255, dtype=np.uint8)
    for top in range(0, height, _ROWS):
        part = slice(top, top + _ROWS)
        gray = luminance(restored[..., part, :]).expand(-1, 3, -1, -1)
        coloured = torch.lerp(gray, colour_ramp(risk[..., part, :] / OVERLAY_TOP_LEVELS), _VEIL)
        canvas[top : min(top + _ROWS, height), :width] = to_uint8(coloured)
    canvas[height:] = np.asarray(_legend(canvas.shape[1]))
    return canvas


def _legend(width: int) -> "Image":
    """The colours as they look over mid-gray, with their numbers."""
    from PIL import Image, ImageDraw, ImageFont

    length = min(width, 2 * _NARROWEST_PX) - 2 * _MARGIN_PX
    ramp = colour_ramp(torch.linspace(0, 1, length).expand(1, 1, _RAMP_PX, length))
    legend = Image.new("RGB", (width, _LEGEND_PX), (255, 255, 255))
    legend.paste(Image.fromarray(to_uint8(torch.lerp(torch.full_like(ramp, 0.7), ramp, _VEIL))), (_MARGIN_PX, _MARGIN_PX))
    pen, font = ImageDraw.Draw(legend), ImageFont.load_default(_TEXT_PX)
    below = _MARGIN_PX + _RAMP_PX + 4
    for text, at, anchor in (("0", 0.0, "la"), ("expected error, grey levels", 0.5, "ma"), (f"{OVERLAY_TOP_LEVELS:g}+", 1.0, "ra")):
        pen.text((_MARGIN_PX + at * length, below), text, fill=(20, 20, 20), font=font, anchor=anchor)
    return legend
