"""A first look: a real histology image defocused by our optics, restored, measured beside an unsharp mask, and drawn."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pathorestore.atomic import write_atomic
from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.degradations.optical import degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.image import from_uint8
from pathorestore.metrics.fidelity import psnr, ssim
from pathorestore.pipelines.contact_sheet import Cell, SheetStyle, busiest_corner, colour_ramp, draw_sheet
from pathorestore.pipelines.restorer import Progress, Restorer, silent

DEMO_Z_UM = (0.8, 1.6, 2.4, 3.2)
ASSUMED_PIXEL_UM = 0.25
DEMO_SIDE_PX = 384
PIXEL_NOTE = f"The pixel size of the picture is not known; optics and scale bar assume {ASSUMED_PIXEL_UM} um."
_MARGIN_PX = 64
_FOCUS_MAP_TOP_UM, _LEGEND_PX = 4.0, 14
_UNSHARP_SIGMAS_PX = (1.0, 1.5, 2.0, 3.0)
_UNSHARP_AMOUNTS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class DemoParts:
    """What the demo shows: both restorers, and the focus map b 1 h w in um of an image b 3 h w."""

    coarse: Restorer
    two_stage: Restorer
    focus_map_um: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Agreement with the clean image: PSNR in dB and SSIM."""

    psnr_db: float
    ssim: float


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoRow:
    """One focus position: true and estimated defocus, images 1 3 h w by name, and their scores."""

    z_um: float
    estimated_um: float
    images: dict[str, Tensor]
    scores: dict[str, Score]
    focus_map_um: Tensor


METHODS = ("degraded", "unsharp mask", "coarse", "two-stage")


def demo_image() -> Tensor:
    """The immunohistochemistry image of scikit-image, 1 3 512 512: colon, DAB and haematoxylin.

    Raises ImportError with the remedy if scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError('the demo needs scikit-image for its picture; install it with: pip install "pathorestore[demo]"') from error
    return from_uint8(data.immunohistochemistry())


def run_demo(
    parts: DemoParts, sharp: Tensor, *, z_um: Sequence[float] = DEMO_Z_UM, seed: int = 0, progress: Progress = silent
) -> list[DemoRow]:
    """Defocus an image 1 3 h w at each position, restore it both ways and measure; 64 px at each edge are given up to the optics.

    The unsharp mask is tuned at each position on the clean image itself, the best it can do. progress: called with (done, total) positions.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for done, z in enumerate(z_um, start=1):
        rows.append(_row(parts, sharp, z, generator, seed))
        progress(done, len(z_um))
    return rows


def score(image: Tensor, clean: Tensor) -> Score:
    """PSNR and SSIM of an image 1 3 h w, see `metrics.fidelity`."""
    return Score(psnr_db=float(psnr(image, clean)), ssim=float(ssim(image, clean)))


def best_unsharp(degraded: Tensor, clean: Tensor) -> Tensor:
    """The unsharp mask of the degraded image with the highest PSNR, over a grid of widths and amounts."""
    tries = [
        (degraded + amount * (degraded - gaussian_blur(degraded, sigma_px=sigma))).clamp(0, 1)
        for sigma in _UNSHARP_SIGMAS_PX
        for amount in _UNSHARP_AMOUNTS
    ]
    return min(tries, key=lambda image: float((image - clean).square().mean()))


def write_picture(path: Path, rows: Sequence[DemoRow]) -> None:
    """Draw all rows (degraded, coarse, two-stage, clean, focus map) with their scores into one PNG."""
    clean = rows[0].images["clean"]
    style = SheetStyle(detail_yx=busiest_corner(clean, SheetStyle.detail_px), pixel_um=ASSUMED_PIXEL_UM)
    columns = ["degraded", "coarse", "two-stage", "clean"]
    cells = [[*(_cell(row, name) for name in columns), _map_cell(row)] for row in rows]
    labels = [f"z = {row.z_um:g} um" for row in rows]
    sheet = draw_sheet(cells, labels, [*columns, f"estimated defocus, 0 to {_FOCUS_MAP_TOP_UM:g} um"], style, footer=PIXEL_NOTE)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    write_atomic(path, out.getvalue())


def _row(parts: DemoParts, sharp: Tensor, z_um: float, generator: torch.Generator, seed: int) -> DemoRow:
    pair = degrade(sharp, torch.tensor([z_um]), setting=Setting.ideal(), generator=generator, margin_px=_MARGIN_PX)
    with torch.no_grad():
        focus = parts.focus_map_um(pair.degraded).cpu()
    images = {
        "degraded": pair.degraded,
        "unsharp mask": best_unsharp(pair.degraded, pair.clean),
        "coarse": parts.coarse.restore(pair.degraded, seed=seed).cpu(),
        "two-stage": parts.two_stage.restore(pair.degraded, seed=seed).cpu(),
    }
    scores = {name: score(image, pair.clean) for name, image in images.items()}
    images["clean"] = pair.clean
    return DemoRow(z_um=z_um, estimated_um=float(focus.mean()), images=images, scores=scores, focus_map_um=focus)


def _cell(row: DemoRow, name: str) -> Cell:
    measured = row.scores.get(name)
    caption = f"{measured.psnr_db:.2f} dB, SSIM {measured.ssim:.3f}" if measured else ""
    return Cell(picture=row.images[name], caption=caption)


def _map_cell(row: DemoRow) -> Cell:
    """The focus map at the size of the picture, in colour, with the scale of colours along its lower edge."""
    height, width = row.images["clean"].shape[-2:]
    values = torch.nn.functional.interpolate(row.focus_map_um, size=(height, width), mode="bilinear", align_corners=False)
    values = values / _FOCUS_MAP_TOP_UM
    values[..., -_LEGEND_PX:, :] = torch.linspace(0, 1, width)
    return Cell(picture=colour_ramp(values), caption=f"mean {row.estimated_um:.2f} um", detail=False)
