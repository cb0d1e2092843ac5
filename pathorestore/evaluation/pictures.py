"""Pictures of some cases, as all methods show them, kept as PNG files until the report takes them in."""

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from pathorestore.atomic import write_atomic
from pathorestore.evaluation.cases import CaseKey
from pathorestore.evaluation.report_format import with_unit
from pathorestore.evaluation.results import FOCUS, SCALE, PictureSet, ScoreRow
from pathorestore.image import to_uint8
from pathorestore.pipelines.contact_sheet import busiest_corner

PICTURES = "pictures"
Stamp = Callable[[CaseKey, str], str]
_SIDE_PX = 384


class PictureShelf:
    """A folder of pictures: of each case the busiest part of the clean image, at most side_px wide. cases: the names that are wanted.

    stamp: what a picture of a case under a label depends on; those of another stamp are not found again.
    """

    def __init__(self, folder: Path, cases: Iterable[str], *, side_px: int = _SIDE_PX, stamp: Stamp = lambda *_: ""):
        self.folder, self.side_px, self._stamp = folder / PICTURES, side_px, stamp
        self._wanted = set(cases)

    def wants(self, case: str) -> bool:
        """Whether pictures of a case are kept."""
        return case in self._wanted

    def keep(self, case: CaseKey, label: str, image: Tensor, clean: Tensor) -> None:
        """Write the picture of a case under a label. image, clean: 1 3 h w of one size."""
        from PIL import Image

        top, left = busiest_corner(clean, self.side_px)
        part = image[..., top : top + self.side_px, left : left + self.side_px]
        out = io.BytesIO()
        Image.fromarray(to_uint8(part)).save(out, "PNG")
        write_atomic(self._path(case, label), out.getvalue())

    def on_it(self, case: CaseKey, labels: Sequence[str]) -> dict[str, Path]:
        """The pictures of a case that are there, by label, in the order of the labels."""
        paths = {label: self._path(case, label) for label in labels}
        return {label: path for label, path in paths.items() if path.is_file()}

    def _path(self, case: CaseKey, label: str) -> Path:
        # names of cases and methods are the user's, and may hold anything
        words = "\0".join((case.name, label, self._stamp(case, label)))
        return self.folder / f"{hashlib.sha256(words.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.png"


def spread(keys: Sequence[CaseKey], count: int) -> list[str]:
    """The names of `count` cases, evenly spread over all."""
    count = min(count, len(keys))
    return [keys[(2 * index + 1) * len(keys) // (2 * count)].name for index in range(count)]


def extremes(rows: Iterable[ScoreRow], *, column: str, method: str, over: str) -> dict[str, str]:
    """The cases in which a method is best and worst against another in a column, with the words for it; none where nothing is known."""
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.method in (method, over) and column in row.scores:
            values.setdefault(row.case, {})[row.method] = row.scores[column]
    gains = {case: both[method] - both[over] for case, both in values.items() if len(both) == 2}
    gains = {case: gain for case, gain in gains.items() if abs(gain) < float("inf")}
    if len(gains) < 2:
        return {}
    low, high = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
    words = f"gain of {method} over {over}"
    return {low: f"smallest {words}: {gains[low]:+.2f} dB", high: f"largest {words}: {gains[high]:+.2f} dB"}


def _degraded_by(key: CaseKey) -> str:
    if key.scale is not None:
        return with_unit(SCALE, f"{key.scale:g}")
    return "" if key.z_um is None else f"z {with_unit(FOCUS, f'{key.z_um:g}')}".replace("-", "\u2212")


def picture_sets(
    shelf: PictureShelf,
    keys: Sequence[CaseKey],
    why: dict[str, str],
    labels: Sequence[str],
    rows: Iterable[ScoreRow],
    columns: Sequence[str],
) -> list[PictureSet]:
    """What the shelf holds of the cases named in `why`, with their scores in some columns."""
    scores: dict[str, dict[str, dict[str, float]]] = {case: {} for case in why}
    for row in rows:
        if row.case in scores:
            scores[row.case][row.method] = {name: row.scores[name] for name in columns if name in row.scores}
    return [
        PictureSet(
            case=key.name, degraded_by=_degraded_by(key), why=why[key.name], pictures=pictures, scores=scores[key.name], pixel_um=key.mpp
        )
        for key in keys
        if key.name in why and len(pictures := shelf.on_it(key, labels)) > 1
    ]
