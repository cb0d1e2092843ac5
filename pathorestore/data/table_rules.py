"""What can be told of a manifest without opening an image: numbers, repetitions, and what lies on both sides of a split."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from pathorestore.data.defects import Defect, defect, identity, row_number
from pathorestore.data.manifest import SPLITS, Manifest, Row, plain_name

_MPP = (0.02, 20.0)  # from an oil objective with a fine camera to a slide's overview
_FARTHEST_UM = 100.0
_TOLD = 10


class Belonging(Protocol):
    """What a row of any table says of whom it shows and where it is used; "" where it does not say."""

    @property
    def patient(self) -> str: ...

    @property
    def slide(self) -> str: ...

    @property
    def split(self) -> str: ...


R = TypeVar("R", bound=Belonging)


class Torn(NamedTuple):
    """A patient or slide in two splits. place: of the first row of the later split. kind: "patient" or "slide". reason: a sentence."""

    place: int
    kind: str
    reason: str


def table_defects(manifest: Manifest) -> list[Defect]:
    """The defects of the table itself, in no particular order."""
    values = chain.from_iterable(_values(index, row) for index, row in enumerate(manifest.rows))
    twice = (defect(two, manifest.rows[two], "listed twice", reason) for two, reason in _twice(manifest, _all(manifest), across=False))
    return [*values, *_no_training_rows(manifest), *_own_targets(manifest), *twice, *leaks(manifest)]


def leaks(manifest: Manifest, *, taken: Callable[[Row], bool] = lambda row: True) -> list[Defect]:
    """Everything on both sides of a split that can be told without opening an image: patients, slides, files of any name.

    taken: which rows count; the others are not used. Names count as `plain_name` has them; a patient and a slide of one name are no clash,
    nor are slides of one name and two patients. A slide with its patient in one row and without in another is one slide.
    """
    rows = {index: row for index, row in _all(manifest).items() if taken(row)}
    groups = (defect(one.place, rows[one.place], f"{one.kind} leak", one.reason) for one in torn(rows))
    twice = (defect(two, rows[two], "listed twice", reason) for two, reason in _twice(manifest, rows, across=True))
    return [*groups, *twice, *_shared_files(manifest, rows)]


def torn(rows: Mapping[int, R]) -> Iterator[Torn]:
    """Patients in more than one split, and slides that are not told by their patient already. rows: by place in their table."""
    leaking = set()
    for patient, places in _groups(rows, lambda row: plain_name(row.patient)).items():
        for place, reason in _across(rows, places):
            leaking.add(patient)
            name = rows[place].patient.strip()
            yield Torn(place, "patient", f"patient {name!r} {reason}; keep all rows of a patient in one split")
    # slides of two patients may well have the same number, unless it is not said whose they are
    whose_unknown = {plain_name(row.slide) for row in rows.values() if not row.patient.strip()}

    def slide(row: R) -> tuple[str, str] | str:
        name = plain_name(row.slide)
        return name and ("" if name in whose_unknown else plain_name(row.patient), name)

    for _, places in _groups(rows, slide).items():
        if leaking.isdisjoint(plain_name(rows[place].patient) for place in places):
            for place, reason in _across(rows, places):
                name = rows[place].slide.strip()
                yield Torn(place, "slide", f"slide {name!r} {reason}; keep all rows of a slide in one split")


def listed(path: Path, what: str, faults: Sequence[str]) -> str:
    """The first faults of a table in one line."""
    more = f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
    return f"{path}: {what}: {'; '.join(faults[:_TOLD])}{more}"


def listed_defects(path: Path, what: str, defects: Sequence[Defect]) -> str:
    """The first defects of a table in one line, in the order of its rows."""
    return listed(path, what, [f"row {one.row} ({one.path}): {one.kind}: {one.reason}" for one in sorted(defects)])


def _values(index: int, row: Row) -> Iterator[Defect]:
    if row.mpp is not None and not _MPP[0] <= row.mpp <= _MPP[1]:
        reason = f"mpp {row.mpp:g} is no pixel size of a microscope image; expected micrometres in {_MPP[0]:g}..{_MPP[1]:g}, such as 0.25"
        yield defect(index, row, "bad value", reason)
    if row.z_um is not None and abs(row.z_um) > _FARTHEST_UM:
        reason = f"z_um {row.z_um:g} is farther from focus than {_FARTHEST_UM:g} um; expected micrometres, not nanometres or planes"
        yield defect(index, row, "bad value", reason)
    if row.ctf is not None and not 0 <= row.ctf <= 1:
        yield defect(index, row, "bad value", f"ctf {row.ctf:g} must lie in 0..1, where 1 is in focus")


def _no_training_rows(manifest: Manifest) -> Iterator[Defect]:
    if not manifest.of("train"):
        yield Defect(1, str(manifest.path), "no training rows", "no row has split train; give it to some")


def _own_targets(manifest: Manifest) -> Iterator[Defect]:
    for index, row in enumerate(manifest.rows):
        if row.target and identity(manifest, row.target) == identity(manifest, row.path):
            yield defect(
                index, row, "bad value", "target is the image itself; leave target empty for sharp images, or name the clean partner"
            )


def _twice(manifest: Manifest, rows: Mapping[int, Row], *, across: bool) -> Iterator[tuple[int, str]]:
    """Later place of images listed more than once, and what is wrong: those of two splits, or those of one.

    In one split an image may be listed once for each stain that it has a partner in.
    """
    seen: dict[tuple[Path, str], int] = {}
    for index, row in rows.items():
        partner = "" if across else plain_name(dict(row.extra).get("target_stain", ""))
        first = seen.setdefault((identity(manifest, row.path), partner), index)
        if first != index and (rows[first].split != row.split) is across:
            yield index, f"the same file as in row {row_number(first)}; delete one of them"


def _shared_files(manifest: Manifest, rows: Mapping[int, Row]) -> Iterator[Defect]:
    """Files in more than one split, if one of them uses it as a target; images listed twice are told by `_twice`."""
    users: dict[Path, list[int]] = defaultdict(list)
    targets = set()
    for index, row in rows.items():
        users[identity(manifest, row.path)].append(index)
        if row.target:
            target = identity(manifest, row.target)
            targets.add(target)
            users[target].append(index)
    for file in users.keys() & targets:
        for index, reason in _across(rows, users[file]):
            yield defect(index, rows[index], "shared file", f"{file.name} {reason}; keep all rows of a target in one split")


def _all(manifest: Manifest) -> dict[int, Row]:
    return dict(enumerate(manifest.rows))


def _groups(rows: Mapping[int, R], key: Callable[[R], object]) -> dict[object, list[int]]:
    """Places of the rows by key; rows whose key is "" belong to none."""
    groups: dict[object, list[int]] = defaultdict(list)
    for index, row in rows.items():
        if name := key(row):
            groups[name].append(index)
    return groups


def _across(rows: Mapping[int, R], places: Sequence[int]) -> Iterator[tuple[int, str]]:
    """For each split but the first (in the order train, val, test, none) that some rows lie in: the first row there, and what is wrong."""
    placed = {split: [place for place in places if rows[place].split == split] for split in (*SPLITS, "")}
    (home, at_home), *others = [(split, there) for split, there in placed.items() if there]
    for split, there in others:
        yield there[0], f"is in {_named(split)} here ({_rows(there)}) and in {_named(home)} ({_rows(at_home)})"


def _named(split: str) -> str:
    return f"split {split}" if split else "no split"


def _rows(indices: list[int]) -> str:
    """The numbers of a few rows, or of the first and how many more."""
    if len(indices) == 1:
        return f"row {row_number(indices[0])}"
    return f"row {row_number(indices[0])} and {len(indices) - 1} more"
