"""Manifests and what is wrong with them, as text for a terminal."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pathorestore.data.defects import KINDS, Defect
from pathorestore.data.image_cache import UnreadableImage, image_size
from pathorestore.data.manifest import SPLITS, Manifest, Row, plain_name
from pathorestore.data.slide_files import SLIDE_SUFFIXES, slide_header
from pathorestore.pipelines.report_text import aligned

_MOST_NAMES = 3
_UNKNOWN = "-"


def manifest_table(manifest: Manifest, *, progress: Callable[[int, int], None]) -> str:
    """A line for each split: rows, patients, slides, stains and the range of image sizes, which headers tell.

    progress hears (rows done, rows in all).
    """
    sizes: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for done, row in enumerate(manifest.rows, start=1):
        sizes[row.split] += _size(manifest.resolve(row.path))
        progress(done, len(manifest.rows))
    lines = [["split", "rows", "with target", "patients", "slides", "stains", "smallest", "largest"]]
    for split in SPLITS:
        if rows := manifest.of(split):
            lines.append([split, str(len(rows)), *_contents(rows), *_range(sizes[split])])
    return aligned(lines, right=frozenset({1, 2, 3, 4}))


def defects_table(defects: Sequence[Defect]) -> str:
    """A line for each defect: row, path, kind and reason; then how many there are of each kind."""
    lines = [["row", "path", "kind", "reason"], *([str(one.row), one.path, one.kind, one.reason] for one in defects)]
    counts = Counter(one.kind for one in defects)
    summary = [[str(counts[kind]), kind, meaning] for kind, meaning in KINDS.items() if counts[kind]]
    return f"{aligned(lines, right=frozenset({0}))}\n\n{aligned(summary, right=frozenset({0}))}"


def _contents(rows: Sequence[Row]) -> list[str]:
    patients, slides = ({plain_name(name) for row in rows if (name := getattr(row, column))} for column in ("patient", "slide"))
    stains = Counter(row.stain or _UNKNOWN for row in rows).most_common()
    named = ", ".join(f"{name} ({count})" for name, count in stains[:_MOST_NAMES])
    more = f", {len(stains) - _MOST_NAMES} more" if len(stains) > _MOST_NAMES else ""
    targets = sum(bool(row.target) for row in rows)
    return [str(targets), str(len(patients) or _UNKNOWN), str(len(slides) or _UNKNOWN), named + more]


def _range(sizes: Sequence[tuple[int, int]]) -> list[str]:
    """The smallest and the largest image, by their area."""
    if not sizes:
        return [_UNKNOWN, _UNKNOWN]
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    return [f"{width} x {height}" for height, width in (ordered[0], ordered[-1])]


def _size(path: Path) -> list[tuple[int, int]]:
    """Height and width, or nothing where the file does not tell: that is for the check to say."""
    try:
        return [slide_header(path).size_px if path.suffix.lower() in SLIDE_SUFFIXES else image_size(path)]
    except (UnreadableImage, ImportError, OSError):
        return []
