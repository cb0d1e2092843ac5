"""Facts that somebody keeps in a table beside the images, joined to the rows of a manifest by file name."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pathorestore.data.manifest import COLUMNS, FIRST_ROW, NUMBERS, SPLITS, Row, parse_number, read_table

_KEYS = ("path", "file")
_JOINED = tuple(name for name in COLUMNS if name not in ("path", "target", "split"))


class Joined(NamedTuple):
    """A row with the facts about it, and the split that they name, if any."""

    row: Row
    split: str | None


class Joining(NamedTuple):
    """The rows that are kept; how many files have no facts; how many the conditions leave out; how many facts have no file."""

    kept: list[Joined]
    without_facts: int
    left_out: int
    without_file: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A CSV with a column `path` or `file` (names relative to the CSV, or bare names) and columns of the manifest's schema by name.

    patient_column: the column that holds the patient, if it is not called so. where: (column, value) pairs; only files whose facts have
    all these values are kept, capitals aside.
    """

    path: Path
    patient_column: str = ""
    where: tuple[tuple[str, str], ...] = ()

    def join(self, rows: Sequence[Row]) -> Joining:
        """The rows, of absolute paths, with their facts; an image without facts of its own has those of its target.

        Raises OSError, and ValueError naming the file, its row and the column for a table that cannot be used, or that fits no file.
        """
        entries = self._read()
        found = _Index(self.path, entries).match(rows)
        if not any(found):
            example = rows[0].path if rows else "none"
            raise ValueError(
                f"{self.path}: fits none of {len(rows)} files ({example}, ...); expected names relative to the CSV, or bare names"
            )
        known = [(row, entry) for row, entry in zip(rows, found, strict=True) if entry is not None]
        kept = [self._joined(row, entry) for row, entry in known if self._meets(entry)]
        if not self.where:
            told = {id(row): joined for (row, _), joined in zip(known, kept, strict=True)}
            kept = [told.get(id(row), Joined(row, None)) for row in rows]
        used = {entry.number for _, entry in known}
        left_out = len(known) - sum(self._meets(entry) for _, entry in known)
        return Joining(kept, len(rows) - len(known), left_out, len(entries) - len(used))

    def _read(self) -> list["_Entry"]:
        header, table = read_table(self.path)
        key = next((name for name in _KEYS if name in header), None)
        if key is None:
            raise ValueError(
                f"{self.path}, row 1: got columns {', '.join(header)}, expected a column path or file; rename the one of files"
            )
        asked = [("--patient-column", self.patient_column)] if self.patient_column else []
        for option, name in [*asked, *(("--where", column) for column, _ in self.where)]:
            if name not in header:
                raise ValueError(f"{self.path}: has no column {name!r} for {option}; its columns are {', '.join(header)}")
        values = [dict(zip(header, cells, strict=True)) for cells in table]
        return [_Entry(number, cells[key].strip(), cells) for number, cells in enumerate(values, start=FIRST_ROW)]

    def _meets(self, entry: "_Entry") -> bool:
        return all(entry.values[name].strip().casefold() == value.strip().casefold() for name, value in self.where)

    def _joined(self, row: Row, entry: "_Entry") -> Joined:
        told = {name: entry.values[name].strip() for name in _JOINED if entry.values.get(name, "").strip()}
        if self.patient_column:
            told["patient"] = entry.values[self.patient_column].strip()
        split = entry.values.get("split", "").strip() or None
        try:
            if split not in (None, *SPLITS):
                raise ValueError(f"column split: got {split!r}, expected one of {', '.join(SPLITS)}; write one of them or leave it empty")
            known: dict[str, Any] = {name: parse_number(name, text) if name in NUMBERS else text for name, text in told.items()}
            return Joined(replace(row, **known), split)
        except ValueError as error:
            raise ValueError(f"{self.path}, row {entry.number}, {error}") from None


class _Entry(NamedTuple):
    """A row of facts: its number, the name of the file it is about, and all its cells."""

    number: int
    name: str
    values: dict[str, str]


class _Index:
    """Finds the facts about a file: by its place relative to the CSV, else by its bare name where the CSV gives just that."""

    def __init__(self, table: Path, entries: Sequence[_Entry]):
        self.table = table
        self.by_file: dict[str, _Entry] = {}
        self.by_name: dict[str, _Entry] = {}
        for entry in entries:
            first = self.by_file.setdefault(os.path.realpath(table.parent / entry.name), entry)
            if first is not entry:
                raise ValueError(f"{table}, row {entry.number}: names {entry.name!r} again after row {first.number}; delete one of them")
            if Path(entry.name).name == entry.name:
                self.by_name[entry.name] = entry

    def match(self, rows: Sequence[Row]) -> list[_Entry | None]:
        """The facts about each row's image, else about its target, else None. Raises ValueError if a bare name fits several files."""
        fits: dict[int, str] = {}
        return [self._of(row.path, fits) or self._of(row.target, fits) for row in rows]

    def _of(self, name: str, fits: dict[int, str]) -> _Entry | None:
        if not name:
            return None
        entry = self.by_file.get(os.path.realpath(name))
        if entry is None and (entry := self.by_name.get(Path(name).name)):
            first = fits.setdefault(entry.number, name)
            if first != name:
                raise ValueError(
                    f"{self.table}, row {entry.number}: {entry.name!r} fits {first} and {name}; write names relative to the CSV"
                )
        return entry
