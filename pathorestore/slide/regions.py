"""What was done where on a slide, as GeoJSON that QuPath takes for annotations."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathorestore.pipelines.geojson import Corner, feature, ring, write_features
from pathorestore.slide.events import Event
from pathorestore.slide.work import SlideRun

_RESTORED = (46, 125, 50)
_COLOURS = {"unreadable": (198, 40, 40), "not finite": (239, 108, 0), "single precision": (106, 27, 154)}
_OTHER = (97, 97, 97)


def write_regions(path: Path, run: SlideRun, events: Sequence[Event]) -> None:
    """Write the restored part of a slide and every event as features, in pixels of the output's largest level."""
    features = [feature(run.work.done, "MultiPolygon", list(_restored(run)), _RESTORED)]
    for event in events:
        first, (bottom, right) = run.box(event)
        outline = ring(first, (min(bottom, run.height_px), min(right, run.width_px)))
        features.append(feature(event.kind, "Polygon", [outline], _COLOURS.get(event.kind, _OTHER)))
    write_features(path, features)


def _restored(run: SlideRun) -> Iterator[list[list[list[int]]]]:
    """The active tiles as polygons that do not overlap, holes included: those of the cells."""
    rows, columns, mask = run.cells
    outer: list[tuple[list[Corner], list[list[int]]]] = []
    holes: list[tuple[list[Corner], list[list[int]]]] = []
    for loop in _outlines(mask):
        ring = [[min(columns[x], run.width_px), min(rows[y], run.height_px)] for y, x in [*loop, loop[0]]]
        (outer if _area(loop) > 0 else holes).append((loop, ring))
    for loop, ring in outer:
        yield [ring, *(inner for hole, inner in holes if _inside(hole, loop))]


def _outlines(mask: NDArray[np.bool_]) -> Iterator[list[Corner]]:
    """Closed outlines of the cells that are true, as corners (y, x): clockwise around them on the screen, the other way around holes."""
    grown = np.pad(mask, 1)
    edges: dict[Corner, list[Corner]] = {}
    for y, x in np.argwhere(mask).tolist():
        # an edge for each side without a neighbour, with the cell on its right
        for (down, right), start, end in (
            ((-1, 0), (y, x), (y, x + 1)),
            ((0, 1), (y, x + 1), (y + 1, x + 1)),
            ((1, 0), (y + 1, x + 1), (y + 1, x)),
            ((0, -1), (y + 1, x), (y, x)),
        ):
            if not grown[y + 1 + down, x + 1 + right]:
                edges.setdefault(start, []).append(end)
    while edges:
        loop = [next(iter(edges))]
        while True:
            here, ends = loop[-1], edges[loop[-1]]
            before = loop[-2] if len(loop) > 1 else None
            # where two cells touch at a corner, turn right: they stay apart
            chosen = ends[0] if before is None or len(ends) == 1 else next(end for end in ends if _turn(before, here, end) > 0)
            ends.remove(chosen)
            if not ends:
                del edges[here]
            if chosen in loop:  # back at the beginning, or at a corner where two holes touch, which then are two
                first = loop.index(chosen)
                yield _corners(loop[first:])
                del loop[first + 1 :]
                if first == 0:
                    break
            else:
                loop.append(chosen)


def _corners(loop: list[Corner]) -> list[Corner]:
    """The points of a closed outline at which it turns."""
    return [point for index, point in enumerate(loop) if _turn(loop[index - 1], point, loop[(index + 1) % len(loop)])]


def _turn(before: Corner, here: Corner, after: Corner) -> int:
    """Positive for a turn to the right on the screen, zero for none."""
    return (here[1] - before[1]) * (after[0] - here[0]) - (here[0] - before[0]) * (after[1] - here[1])


def _area(loop: Sequence[Corner]) -> int:
    return sum(a[1] * b[0] - b[1] * a[0] for a, b in zip(loop, [*loop[1:], loop[0]], strict=True))


def _inside(hole: Sequence[Corner], outline: Sequence[Corner]) -> bool:
    """Whether a hole lies inside an outline: a ray from just inside the hole's first corner crosses it an odd number of times."""
    y, x = min(hole)
    y_mid, x_mid = y + 0.5, x + 0.5
    crossings = 0
    for (ay, ax), (by, bx) in zip(outline, [*outline[1:], outline[0]], strict=True):
        crossings += ax == bx and min(ay, by) < y_mid < max(ay, by) and ax > x_mid
    return crossings % 2 == 1
