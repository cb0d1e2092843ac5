"""How well tiles are in focus, what that asks for, and the table of it; nothing here reads a file.

The thresholds are those of the estimator that ships with the package, on its own scale; docs/qc.md holds the measurements behind them.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

Verdict = Literal["fine", "restore", "rescan", "glass", "unreadable"]
JUDGED: tuple[Verdict, ...] = ("fine", "restore", "rescan")
"""Verdicts of tiles that count; the others say why a tile does not."""

LEAST_TISSUE = 0.25
"""With less tissue than this in a tile its estimate drifts away from that of a full one (docs/qc.md), so it counts as glass."""

UNCERTAINTY = (
    "estimates; on simulated defocus of 0.8-3.2 um the distance is 0.29 um off with ideal optics and 0.98 um, mostly too small, with "
    "randomised scanners; tiles in focus read 0.3-0.9 um, all beyond 4 um read 3-4.6 um"
)
"""What is known of the errors of the embedded estimator, for its outputs."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where a verdict changes.

    fine_ctf: least estimated contrast transfer of a fine tile. rescan_um: a tile farther from focus than this asks for a new scan.
    rescan_share, restore_share: share of the tissue tiles above which the whole file does. Raises ValueError for what cannot be.
    """

    fine_ctf: float = 0.65
    rescan_um: float = 3.0
    rescan_share: float = 0.1
    restore_share: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.fine_ctf <= 1:
            raise ValueError(
                f"--fine-ctf {self.fine_ctf} must lie above 0 and at most at 1, perfect focus; the default is {type(self).fine_ctf}"
            )
        if not (math.isfinite(self.rescan_um) and self.rescan_um > 0):
            raise ValueError(
                f"--rescan-um {self.rescan_um} must be a positive number of micrometres; the default is {type(self).rescan_um}"
            )
        for name, share in (("rescan_share", self.rescan_share), ("restore_share", self.restore_share)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share} must lie in 0..1, 1 left out")

    def verdict(self, defocus_um: float, ctf: float) -> Verdict:
        """Of a tile with tissue, a distance above or at 0 and a contrast transfer."""
        if defocus_um > self.rescan_um:
            return "rescan"
        return "fine" if ctf >= self.fine_ctf else "restore"


class TileFocus(NamedTuple):
    """A tile in pixels of the largest level; defocus_um and ctf are None where nothing was judged."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    defocus_um: float | None
    ctf: float | None
    tissue_share: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class FocusSummary:
    """A file in one line. tiles: all that were looked at; tissue_tiles: those judged, which the figures are about.

    verdict: "rescan", "restore" or "fine"; "glass" where no tile was judged. p90_um: distance that one judged tile in ten exceeds.
    """

    tiles: int
    tissue_tiles: int
    unreadable_tiles: int
    median_um: float | None
    p90_um: float | None
    mean_ctf: float | None
    fine_share: float
    restore_share: float
    rescan_share: float
    verdict: Verdict

    def sentence(self) -> str:
        """The verdict with its reasons."""
        if self.median_um is None or self.p90_um is None or self.mean_ctf is None:
            return f"{self.verdict}: no tissue to judge in {self.tiles} tiles"
        shares = ", ".join(f"{100 * getattr(self, f'{name}_share'):.0f} % {name}" for name in JUDGED)
        figures = f"|z| median {self.median_um:.2f}, p90 {self.p90_um:.2f} um, CTF {self.mean_ctf:.2f}"
        return f"{self.verdict}: {self.tissue_tiles} tissue tiles, {shares}; {figures}"


def summarise(tiles: Sequence[TileFocus], thresholds: Thresholds) -> FocusSummary:
    """The tiles of a file taken together: rescan before restore before fine, by the shares of the judged tiles."""
    judged = [tile for tile in tiles if tile.verdict in JUDGED]
    distances = sorted(tile.defocus_um for tile in judged if tile.defocus_um is not None)
    transfers = [tile.ctf for tile in judged if tile.ctf is not None]
    shares = {name: sum(tile.verdict == name for tile in judged) / max(1, len(judged)) for name in JUDGED}
    return FocusSummary(
        tiles=len(tiles),
        tissue_tiles=len(judged),
        unreadable_tiles=sum(tile.verdict == "unreadable" for tile in tiles),
        median_um=_quantile(distances, 0.5),
        p90_um=_quantile(distances, 0.9),
        mean_ctf=sum(transfers) / len(transfers) if transfers else None,
        fine_share=shares["fine"],
        restore_share=shares["restore"],
        rescan_share=shares["rescan"],
        verdict=_of_file(shares, thresholds) if judged else "glass",
    )


def _of_file(shares: dict[Verdict, float], thresholds: Thresholds) -> Verdict:
    if shares["rescan"] > thresholds.rescan_share:
        return "rescan"
    return "restore" if shares["rescan"] + shares["restore"] > thresholds.restore_share else "fine"


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Linearly interpolated between the two nearest; None of nothing."""
    if not ordered:
        return None
    position = share * (len(ordered) - 1)
    lower = min(int(position), len(ordered) - 2) if len(ordered) > 1 else 0
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (position - lower)


def edges_px(length_px: int, tile_px: int) -> list[int]:
    """Borders of tiles that part a length: multiples of tile_px; a rest of less than half a tile goes to the last one."""
    count = max(1, (length_px + tile_px // 2) // tile_px)
    return [*(index * tile_px for index in range(count)), length_px]


_COLUMNS = ("x_px", "y_px", "width_px", "height_px", "defocus_um", "ctf", "tissue_share", "verdict")


def tiles_csv(tiles: Iterable[TileFocus]) -> str:
    """A row for each tile; what was not judged is empty."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(_COLUMNS)
    table.writerows([*tile[:4], shown(tile.defocus_um), shown(tile.ctf), shown(tile.tissue_share), tile.verdict] for tile in tiles)
    return out.getvalue()


def tiles_of_csv(text: str) -> list[TileFocus]:
    """Undo `tiles_csv`, to three decimals. Raises ValueError for another table."""
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or tuple(rows[0]) != _COLUMNS:
        raise ValueError(f"is no table of tiles; expected the columns {','.join(_COLUMNS)}")
    return [_tile(row) for row in rows[1:]]


def _tile(row: Sequence[str]) -> TileFocus:
    x, y, width, height = (int(cell) for cell in row[:4])
    defocus, ctf = (float(cell) if cell else None for cell in row[4:6])
    return TileFocus(x, y, width, height, defocus, ctf, float(row[6]), cast(Verdict, row[7]))


def shown(value: float | None) -> str:
    """A figure to three decimals; empty for none."""
    return "" if value is None else f"{value:.3f}"
