"""What can be wrong with a manifest, and what to look for."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pathorestore.data.manifest import FIRST_ROW, Manifest, Row


class Defect(NamedTuple):
    """One thing wrong with a manifest: the row as a spreadsheet counts (the header is row 1), its path, one of `KINDS`, and the reason."""

    row: int
    path: str
    kind: str
    reason: str


KINDS = {
    "no training rows": "nothing to learn from",
    "bad value": "a number that cannot be meant, or a row that contradicts itself",
    "listed twice": "the same file in two rows",
    "missing file": "no such file",
    "unreadable": "training cannot decode it",
    "wrong size": "smaller than a crop, or not the size of its partner",
    "patient leak": "one patient in two splits",
    "slide leak": "one slide in two splits",
    "shared file": "one file in two splits",
    "duplicate": "one picture in two splits, under two names",
    "unregistered": "degraded and clean image lie beside each other",
    "unrelated": "degraded and clean image show different scenes",
}


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What to look for. Raises ValueError for a negative crop or limit.

    crop_px: images smaller than this are defects; 0 allows any. max_shift_px: how far the members of a pair may lie apart; inf allows any.
    duplicates: whether to look for one picture in two splits. workers: threads that decode; 0 takes one for each processor, at most 8.
    """

    crop_px: int = 0
    max_shift_px: float = 1.0
    duplicates: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        if self.crop_px < 0 or self.workers < 0:
            raise ValueError(f"crop_px={self.crop_px} and workers={self.workers} must not be negative; 0 takes the default")
        if math.isnan(self.max_shift_px) or self.max_shift_px < 0:
            raise ValueError(f"max_shift_px={self.max_shift_px} must be a number of pixels, 0 or more; inf allows any shift")

    def covers(self, other: "CheckOptions") -> bool:
        """Whether what passes with these options passes with the others too."""
        return self.crop_px >= other.crop_px and self.max_shift_px <= other.max_shift_px and self.duplicates >= other.duplicates


def row_number(index: int) -> int:
    """The number of a row, as a spreadsheet counts, by its place among the manifest's rows."""
    return FIRST_ROW + index


def defect(index: int, row: Row, kind: str, reason: str) -> Defect:
    """A defect of the row at a place among the manifest's rows."""
    return Defect(row_number(index), row.path, kind, reason)


def identity(manifest: Manifest, name: str) -> Path:
    """What tells whether two names mean one file: the path without links and detours; of a name that leads nowhere, the path as it is."""
    path = manifest.resolve(name)
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file can have
        return path.absolute()
