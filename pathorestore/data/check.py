"""`pathorestore data check`: is a manifest fit to be trained on? And a stamp, so that a run need not ask again."""

import hashlib
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import Any

from pathorestore.atomic import write_atomic
from pathorestore.data.defects import KINDS, defect, identity, row_number
from pathorestore.data.defects import CheckOptions as CheckOptions
from pathorestore.data.defects import Defect as Defect
from pathorestore.data.fingerprint import lookalikes
from pathorestore.data.manifest import SPLITS, Manifest, read_manifest
from pathorestore.data.picture_rules import Examined, examine
from pathorestore.data.table_rules import table_defects

Progress = Callable[[int, int], None]

_RULES = 1  # counts up when the rules change, so that older stamps say nothing
_AT_ONCE, _MOST_WORKERS, _TOLD = 64, 8, 10


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""
    del done, total


def check_manifest(manifest: Manifest, options: CheckOptions, *, progress: Progress = silent) -> list[Defect]:
    """Everything wrong with a manifest and its files, by row; every image is decoded. Damaged files are told, not raised.

    progress hears (rows done, rows in all).
    """
    by_target: dict[object, list[int]] = defaultdict(list)
    for index, row in enumerate(manifest.rows):
        by_target[row.target or index].append(index)
    examined: list[Examined] = []
    with _without_warnings():
        for rows in _each(list(by_target.values()), lambda group: examine(manifest, group, options), options.workers or _processors()):
            examined += rows
            progress(len(examined), len(manifest.rows))
    found = table_defects(manifest) + [one for row in examined for one in row.defects]
    if options.duplicates:
        found += _duplicates(manifest, examined)
    return sorted(found, key=lambda one: (one.row, list(KINDS).index(one.kind)))


def check_and_stamp(manifest: Manifest, options: CheckOptions, *, progress: Progress = silent) -> list[Defect]:
    """Check anew, and if nothing is wrong leave a stamp beside the manifest, where that can be written."""
    before = _state(manifest)  # a file that changes while it is checked must not be vouched for
    defects = check_manifest(manifest, options, progress=progress)
    if not defects:
        with suppress(OSError):
            stamp = {"rules": _RULES, "crop_px": options.crop_px, "max_shift_px": options.max_shift_px, "duplicates": options.duplicates}
            write_atomic(stamp_path(manifest.path), (json.dumps(stamp | before, indent=1) + "\n").encode())
    return defects


def check_or_reuse(manifest: Manifest, options: CheckOptions, *, progress: Progress = silent) -> list[Defect]:
    """What is wrong with a manifest; nothing is decoded if a stamp says that it has passed and no file has changed since.

    The stamp `<name>.checked.json` holds the manifest's SHA-256, what was looked for, and size and time of change of every file. It serves
    if all are what they were, and if what was looked for then was no less than what is looked for now.
    """
    return [] if _stamped(manifest, options) else check_and_stamp(manifest, options, progress=progress)


def require_checked(manifest: Manifest | Path, options: CheckOptions, *, progress: Progress = silent) -> None:
    """Raise ValueError, naming the first defects and the command that lists all, unless a manifest passes; what `fit` asks first."""
    manifest = read_manifest(manifest) if isinstance(manifest, Path) else manifest
    defects = check_or_reuse(manifest, options, progress=progress)
    if defects:
        told = "; ".join(f"row {one.row} ({one.path}): {one.kind}: {one.reason}" for one in defects[:_TOLD])
        more = f"; and {len(defects) - _TOLD} more" if len(defects) > _TOLD else ""
        count = "a defect" if len(defects) == 1 else f"{len(defects)} defects"
        raise ValueError(f"{manifest.path} has {count}: {told}{more}; `pathorestore data check {manifest.path}` lists all, mend them first")


def stamp_path(manifest: Path) -> Path:
    """Where the stamp of a manifest lies."""
    return manifest.with_name(f"{manifest.name}.checked.json")


def _duplicates(manifest: Manifest, examined: Sequence[Examined]) -> Iterator[Defect]:
    """One picture in two splits: the row of the later split (in the order train, val, test) is named."""
    scenes: dict[str, dict[Path, Examined]] = {split: {} for split in SPLITS}
    for one in sorted(examined, key=lambda one: one.place):
        if one.scene.digest:
            scenes[manifest.rows[one.place].split].setdefault(identity(manifest, one.file), one)
    told: set[int] = set()
    for known_split, later_split in combinations(SPLITS, 2):
        known = list(scenes[known_split].values())
        # a file that is in both splits is told as such
        later = [one for file, one in scenes[later_split].items() if file not in scenes[known_split]]
        for first, second, likeness in _pairs(known, later):
            if second.place not in told:
                told.add(second.place)
                row = manifest.rows[first.place]
                reason = f"shows what row {row_number(first.place)} ({row.path}) of split {known_split} shows ({likeness})"
                yield defect(second.place, manifest.rows[second.place], "duplicate", f"{reason}; keep both in one split, or one of them")


def _pairs(known: Sequence[Examined], later: Sequence[Examined]) -> Iterator[tuple[Examined, Examined, str]]:
    same = {one.scene.digest: one for one in known}
    for two in later:
        if two.scene.digest in same:
            yield same[two.scene.digest], two, "the same pixels"
    first, second = ([(one, one.scene.block) for one in side if one.scene.block is not None] for side in (known, later))
    for found in sorted(lookalikes([block for _, block in first], [block for _, block in second]), key=lambda found: -found.correlation):
        yield first[found.first][0], second[found.second][0], f"correlation {found.correlation:.3f}"


def _stamped(manifest: Manifest, options: CheckOptions) -> bool:
    try:
        stamp: dict[str, Any] = json.loads(stamp_path(manifest.path).read_bytes())
        now = _state(manifest)
        asked = CheckOptions(crop_px=stamp["crop_px"], max_shift_px=stamp["max_shift_px"], duplicates=stamp["duplicates"])
        return stamp["rules"] == _RULES and asked.covers(options) and all(stamp[name] == value for name, value in now.items())
    except (OSError, ValueError, TypeError, KeyError):  # none, or none of ours
        return False


def _state(manifest: Manifest) -> dict[str, Any]:
    """What the stamp must find unchanged: the manifest, and size in bytes and time of change in ns of every file that it names."""
    names = {name for row in manifest.rows for name in (row.path, row.target) if name}
    return {
        "manifest_sha256": hashlib.sha256(manifest.path.read_bytes()).hexdigest(),
        "files": {name: _size_and_time(manifest.resolve(name)) for name in sorted(names)},
    }


def _size_and_time(path: Path) -> list[int] | None:
    try:
        found = path.stat()
        return [found.st_size, found.st_mtime_ns]
    except (OSError, ValueError):
        return None


def _each(groups: Sequence[list[int]], work: Callable[[list[int]], list[Examined]], workers: int) -> Iterator[list[Examined]]:
    """The work on each group, in order; some at a time, so that an interruption need not wait for the rest."""
    if workers == 1:
        yield from map(work, groups)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        for start in range(0, len(groups), _AT_ONCE):
            yield from pool.map(work, groups[start : start + _AT_ONCE])
    finally:
        pool.shutdown(cancel_futures=True)


def _processors() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_WORKERS)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep decoders from remarking on odd tags and large images, for what matters is told as a defect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
