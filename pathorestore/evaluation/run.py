"""The evaluation itself: every case under every method, measured, kept; one case in memory at a time."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathorestore.evaluation.cases import Case, CaseKey, Cases
from pathorestore.evaluation.journal import Journal, Kind
from pathorestore.evaluation.measures import Features, Measure
from pathorestore.evaluation.methods import CLEAN, Method, Restored, RestoredFiles
from pathorestore.evaluation.pictures import PictureShelf
from pathorestore.evaluation.results import ScoreRow
from pathorestore.pipelines.batch import explain
from pathorestore.pipelines.restorer import Progress, silent

Arrays = dict[Kind, Tensor]
Failed = Callable[[str, str, str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Cases, methods and measures that are brought together.

    patch_px: side of the patches that are measured and averaged over an image; 0 measures whole images (MoP's slide level). features: of an
    encoder, for distances between sets of images.
    """

    cases: Cases
    methods: Sequence[Method]
    measures: Sequence[Measure]
    patch_px: int = 0
    features: Features | None = None

    def run(self, journal: Journal, shelf: PictureShelf, *, progress: Progress = silent, on_failure: Failed = lambda *_: None) -> None:
        """Measure what the journal does not hold yet. A case or file that cannot be used becomes a row that says why."""
        for number, key in enumerate(self.cases.keys, start=1):
            wanted = [name for name in self.names() if not journal.has(key.name, name, stamp=self.stamp(key, name))]
            if wanted:
                for row, arrays in self._rows(key, wanted, shelf):
                    if row.error:
                        on_failure(row.case, row.method, row.error)
                    journal.add(row, arrays, stamp=self.stamp(key, row.method))
            progress(number, len(self.cases.keys))

    def rows(self, journal: Journal) -> list[ScoreRow]:
        """The journal's rows of these cases and methods, in their order, with what is now known of slides and patients."""
        found = {(row.case, row.method): row for row in journal.rows()}
        wanted = ((key, found.get((key.name, name))) for key in self.cases.keys for name in self.names())
        return [replace(row, image=key.field or key.image, slide=key.slide, patient=key.patient) for key, row in wanted if row is not None]

    def stamp(self, key: CaseKey, name: str) -> str:
        """What a row depends on besides the settings: its files as they are now, what is known of them, and the method."""
        method = next((method for method in self.methods if method.name == name), None)
        files = [key.clean, *([key.degraded] if key.degraded else []), *(method.files(key) if isinstance(method, RestoredFiles) else ())]
        known = [key.z_um, key.scale, key.task, key.mpp, None if method is None else method.identity, [state(path) for path in files]]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def draw(self, key: CaseKey, shelf: PictureShelf) -> None:
        """Put a case on the shelf again, without measuring it; what cannot be read stays away."""
        try:
            case = self.cases.load(key)
            self._shelve(key, case, shelf)
        except Exception:  # told when it was measured
            return
        for method in self.methods:
            try:
                shelf.keep(key, method.name, method(case), case.clean)
            except Exception:
                continue

    def _shelve(self, key: CaseKey, case: Case, shelf: PictureShelf) -> None:
        shelf.keep(key, CLEAN, case.clean, case.clean)
        if case.degraded is not None:
            shelf.keep(key, self.cases.degraded_name, case.degraded, case.clean)

    def names(self) -> list[str]:
        """The methods, and the clean image where something is measured without a partner."""
        blind = any(measure.blind for measure in self.measures) or self.features is not None
        return [method.name for method in self.methods] + ([CLEAN] if blind else [])

    def _rows(self, key: CaseKey, wanted: Sequence[str], shelf: PictureShelf) -> Iterator[tuple[ScoreRow, Arrays]]:
        start = ScoreRow(
            case=key.name,
            method="",
            image=key.field or key.image,
            slide=key.slide,
            patient=key.patient,
            z_um=key.z_um,
            scale=key.scale,
            task=key.task,
        )
        try:
            case = self.cases.load(key)
        except Exception as error:  # one bad file ends nothing
            yield from ((replace(start, method=name, error=explain(error)), {}) for name in wanted)
            return
        if shelf.wants(key.name):
            self._shelve(key, case, shelf)
        makers: dict[str, Callable[[Case], Tensor]] = {method.name: method for method in self.methods} | {CLEAN: _clean}
        for name in wanted:
            try:
                image = makers[name](case)
                if not image.isfinite().all():
                    raise ValueError("the method gave values that are not finite")
                row = self._measured(replace(start, method=name), image, case)
                arrays = self._arrays(makers[name], image, case)
            except Exception as error:
                yield replace(start, method=name, error=explain(error)), {}
                continue
            if shelf.wants(key.name):
                shelf.keep(key, name, image, case.clean)
            yield row, arrays

    def _arrays(self, maker: Callable[[Case], Tensor], image: Tensor, case: Case) -> Arrays:
        found: Arrays = {} if self.features is None else {"features": self.features.of(image)[0]}
        if isinstance(maker, Restored) and maker.risk is not None:
            found["risk"] = maker.risk_points(image, case, maker.risk)
        return found

    def _measured(self, row: ScoreRow, image: Tensor, case: Case) -> ScoreRow:
        scores: dict[str, float] = {}
        notes: dict[str, str] = {}
        for measure in self.measures:
            if row.method == CLEAN and not measure.blind:
                continue
            taken: list[Sequence[float]] = []
            for part, place in _parts(image, case, self.patch_px):
                try:
                    taken.append(measure.take(part, place))
                except (ValueError, FileNotFoundError) as error:  # such as an image too small for this metric, or without label map
                    notes[measure.name] = str(error)
            scores |= {column.key: _mean([numbers[at] for numbers in taken]) for at, column in enumerate(measure.columns)}
        return replace(row, scores=scores, notes=notes)


def state(path: Path) -> list[Any]:
    """Name, size and time of a file; of one that is not there its name."""
    try:
        status = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), status.st_size, status.st_mtime_ns]


def _clean(case: Case) -> Tensor:
    return case.clean


def _parts(image: Tensor, case: Case, patch_px: int) -> Iterator[tuple[Tensor, Case]]:
    """The image and its case, whole or in patches; the last ones are moved back into the image."""
    if not patch_px:
        yield image, case
        return
    height, width = image.shape[-2:]
    for top in _starts(height, patch_px):
        for left in _starts(width, patch_px):
            window = (..., slice(top, top + patch_px), slice(left, left + patch_px))
            degraded = None if case.degraded is None else case.degraded[window]
            yield image[window], replace(case, clean=case.clean[window], degraded=degraded)


def _starts(side_px: int, patch_px: int) -> list[int]:
    if side_px <= patch_px:
        return [0]
    starts = list(range(0, side_px - patch_px + 1, patch_px))
    return starts if starts[-1] + patch_px == side_px else [*starts, side_px - patch_px]


def _mean(numbers: Sequence[float]) -> float:
    """The mean of the finite numbers; without any, infinity if there is one (PSNR of equal patches), else NaN."""
    finite = [number for number in numbers if math.isfinite(number)]
    if not finite:
        return max((number for number in numbers if math.isinf(number)), default=math.nan)
    return torch.tensor(finite, dtype=torch.float64).mean().item()
