"""Which rows train, validate and test: by folder, else by group, so that nobody is on both sides."""

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pathorestore.data.manifest import SPLITS, Row, plain_name

FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
Ratio = tuple[float, float, float]


def parse_ratio(text: str) -> Ratio:
    """The shares of train, val and test from text such as "8:1:1". Raises ValueError for anything else, and if all are zero."""
    try:
        train, val, test = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"split {text!r} is no ratio; expected three numbers for train, val and test, such as 8:1:1") from None
    if not all(math.isfinite(share) and share >= 0 for share in (train, val, test)) or train + val + test == 0:
        raise ValueError(f"split {text!r} must hold shares of 0 or more, one of them positive, such as 8:1:1")
    return train, val, test


def folder_split(path: Path) -> str | None:
    """The split that a folder in a relative path is named for, the outermost one; None without such a folder."""
    return next((FOLDERS[part.casefold()] for part in path.parts[:-1] if part.casefold() in FOLDERS), None)


def split_groups(names: Iterable[str], ratio: Ratio, *, seed: int) -> dict[str, str]:
    """Give every group a split in about the ratio, counted in groups.

    The groups are put in the order of a seeded hash of their names and cut in three, so that a group that comes later moves few others. A
    split of non-zero share gets at least one group if there are enough of them, train first.
    """
    order = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest())
    counts = _counts(len(order), ratio)
    splits = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return dict(zip(order, splits, strict=True))


def with_splits(rows: Sequence[Row], named: Sequence[str | None], ratio: Ratio, *, seed: int, folder: Path = Path()) -> list[Row]:
    """The rows whose split is named, with it; if that of no row is, all of them, by patient, else slide, else target, else file.

    folder: what paths are taken from, so that a folder that was moved is split as before.
    """
    if any(named):
        return [replace(row, split=split) for row, split in zip(rows, named, strict=True) if split]
    groups = [_group(row, folder) for row in rows]
    of = split_groups(groups, ratio, seed=seed)
    return [replace(row, split=of[group]) for row, group in zip(rows, groups, strict=True)]


def _group(row: Row, folder: Path) -> str:
    """What must not be torn apart."""
    target, path = (os.path.relpath(name, folder) if name and Path(name).is_absolute() else name for name in (row.target, row.path))
    names = {"patient": plain_name(row.patient), "slide": plain_name(row.slide), "target": target, "path": path}
    return next(f"{kind}:{name}" for kind, name in names.items() if name)


def _counts(groups: int, ratio: Ratio) -> list[int]:
    shares = [groups * share / sum(ratio) for share in ratio]
    counts = [math.floor(share) for share in shares]
    for index in sorted(range(3), key=lambda index: counts[index] - shares[index])[: groups - sum(counts)]:
        counts[index] += 1
    for index in range(3):
        largest = max(range(3), key=lambda other: counts[other])
        # train may take the last group of another split, which then remains empty
        if ratio[index] > 0 and counts[index] == 0 and counts[largest] > (1 if index else 0):
            counts[largest] -= 1
            counts[index] = 1
    return counts
