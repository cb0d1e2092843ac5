"""What can be told of a manifest without opening an image: numbers, repetitions, and what lies on both sides of a split."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from pathorestore.data.defects import Defect, defect, identity, row_number
from pathorestore.data.manifest import SPLITS, Manifest, Row, plain_name

_MPP = (0.02, 20.0)  # from an oil objective with a fine camera to a slide's overview
_FARTHEST_UM = 100.0


def table_defects(manifest: Manifest) -> list[Defect]:
    """The defects of the table itself, in no particular order."""
    values = chain.from_iterable(_values(index, row) for index, row in enumerate(manifest.rows))
    return [*values, *_no_training_rows(manifest), *_repeated(manifest), *_leaks(manifest), *_shared_files(manifest)]


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


def _repeated(manifest: Manifest) -> Iterator[Defect]:
    seen: dict[Path, int] = {}
    for index, row in enumerate(manifest.rows):
        file = identity(manifest, row.path)
        if row.target and identity(manifest, row.target) == file:
            yield defect(
                index, row, "bad value", "target is the image itself; leave target empty for sharp images, or name the clean partner"
            )
        first = seen.setdefault(file, index)
        if first != index:
            yield defect(index, row, "listed twice", f"the same file as in row {row_number(first)}; delete one of them")


def _leaks(manifest: Manifest) -> Iterator[Defect]:
    """Patients in more than one split, and slides that are not told by their patient already."""
    leaking = set()
    for patient, indices in _groups(manifest, lambda row: plain_name(row.patient)).items():
        for index, reason in _across(manifest, indices):
            leaking.add(patient)
            name = manifest.rows[index].patient.strip()
            yield defect(index, manifest.rows[index], "patient leak", f"patient {name!r} {reason}; keep all rows of a patient in one split")
    # slides of two patients may well have the same number, unless it is not said whose they are
    whose_unknown = {plain_name(row.slide) for row in manifest.rows if not row.patient.strip()}

    def slide(row: Row) -> tuple[str, str] | str:
        name = plain_name(row.slide)
        return name and ("" if name in whose_unknown else plain_name(row.patient), name)

    for _, indices in _groups(manifest, slide).items():
        if leaking.isdisjoint(plain_name(manifest.rows[index].patient) for index in indices):
            for index, reason in _across(manifest, indices):
                name = manifest.rows[index].slide.strip()
                yield defect(index, manifest.rows[index], "slide leak", f"slide {name!r} {reason}; keep all rows of a slide in one split")


def _shared_files(manifest: Manifest) -> Iterator[Defect]:
    """Files in more than one split, if one of them uses it as a target; images listed twice are told by `_repeated`."""
    users: dict[Path, list[int]] = defaultdict(list)
    targets = set()
    for index, row in enumerate(manifest.rows):
        users[identity(manifest, row.path)].append(index)
        if row.target:
            target = identity(manifest, row.target)
            targets.add(target)
            users[target].append(index)
    for file in users.keys() & targets:
        for index, reason in _across(manifest, users[file]):
            yield defect(index, manifest.rows[index], "shared file", f"{file.name} {reason}; keep all rows of a target in one split")


def _groups(manifest: Manifest, key: Callable[[Row], object]) -> dict[object, list[int]]:
    """Places of the rows by key; rows whose key is "" belong to none."""
    groups: dict[object, list[int]] = defaultdict(list)
    for index, row in enumerate(manifest.rows):
        if name := key(row):
            groups[name].append(index)
    return groups


def _across(manifest: Manifest, indices: list[int]) -> Iterator[tuple[int, str]]:
    """For each split but the first (in the order train, val, test) that some rows lie in: the first row there, and what is wrong."""
    placed = {split: [index for index in indices if manifest.rows[index].split == split] for split in SPLITS}
    (home, at_home), *others = [(split, there) for split, there in placed.items() if there]
    for split, there in others:
        yield there[0], f"is in split {split} here ({_rows(there)}) and in split {home} ({_rows(at_home)})"


def _rows(indices: list[int]) -> str:
    """The numbers of a few rows, or of the first and how many more."""
    if len(indices) == 1:
        return f"row {row_number(indices[0])}"
    return f"row {row_number(indices[0])} and {len(indices) - 1} more"
