"""The evaluation itself: every case under every method, measured, kept; one case in memory at a time."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pathorestore.evaluation.cases import Case, CaseKey, Cases
from pathorestore.evaluation.journal import Journal, Kind
from pathorestore.evaluation.measures import Features, Measure
from pathorestore.evaluation.methods import CLEAN, DEGRADED, Method, Restored
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
    encoder, for distances between sets of images. Raises ValueError for two methods of one name, or one that is called "clean".
    """

    cases: Cases
    methods: Sequence[Method]
    measures: Sequence[Measure]
    patch_px: int = 0
    features: Features | None = None

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or CLEAN in names:
            raise ValueError(
                f"method {(twice or [CLEAN])[0]!r} is {'named twice' if twice else 'the name of the target'}; name it otherwise"
            )
        if not names:
            raise ValueError("nothing to evaluate; name restored images with --restored, or a model with --model")
        if self.patch_px < 0:
            raise ValueError(f"--patch {self.patch_px} must be positive")

    def run(self, journal: Journal, shelf: PictureShelf, *, progress: Progress = silent, on_failure: Failed = lambda *_: None) -> None:
        """Measure what the journal does not hold yet. A case or file that cannot be used becomes a row that says why."""
        for number, key in enumerate(self.cases.keys, start=1):
            wanted = [name for name in self._names() if not journal.has(key.name, name)]
            if wanted:
                for row, arrays in self._rows(key, wanted, shelf):
                    if row.error:
                        on_failure(row.case, row.method, row.error)
                    journal.add(row, arrays)
            progress(number, len(self.cases.keys))

    def draw(self, key: CaseKey, shelf: PictureShelf) -> None:
        """Put a case on the shelf again, without measuring it; what cannot be read stays away."""
        try:
            case = self.cases.load(key)
            self._shelve(case, shelf)
        except Exception:  # told when it was measured
            return
        for method in self.methods:
            try:
                shelf.keep(key.name, method.name, method(case), case.clean)
            except Exception:
                continue

    @staticmethod
    def _shelve(case: Case, shelf: PictureShelf) -> None:
        shelf.keep(case.key.name, CLEAN, case.clean, case.clean)
        if case.degraded is not None:
            shelf.keep(case.key.name, DEGRADED, case.degraded, case.clean)

    def _names(self) -> list[str]:
        """The methods, and the clean image where something is measured without a partner."""
        blind = any(measure.blind for measure in self.measures) or self.features is not None
        return [method.name for method in self.methods] + ([CLEAN] if blind else [])

    def _rows(self, key: CaseKey, wanted: Sequence[str], shelf: PictureShelf) -> Iterator[tuple[ScoreRow, Arrays]]:
        start = ScoreRow(case=key.name, method="", image=key.image, slide=key.slide, patient=key.patient, z_um=key.z_um)
        try:
            case = self.cases.load(key)
        except Exception as error:  # one bad file ends nothing
            yield from ((replace(start, method=name, error=explain(error)), {}) for name in wanted)
            return
        if shelf.wants(key.name):
            self._shelve(case, shelf)
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
                shelf.keep(key.name, name, image, case.clean)
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
                except ValueError as error:  # such as an image too small for this metric
                    notes[measure.name] = str(error)
            scores |= {column.key: _mean([numbers[at] for numbers in taken]) for at, column in enumerate(measure.columns)}
        return replace(row, scores=scores, notes=notes)


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
    """The mean of the numbers that exist, NaN without any."""
    known = [number for number in numbers if not math.isnan(number)]
    return torch.tensor(known, dtype=torch.float64).mean().item() if known else math.nan
