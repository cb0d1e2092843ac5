"""A table of labelled images: which file shows what, of which patient and slide, in which split."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pathorestore.data.manifest import FIRST_ROW, SPLITS, read_table
from pathorestore.data.table_rules import listed, torn

FILE_COLUMNS = ("file", "path", "name")


class LabelRow(NamedTuple):
    """One image of a table of labels. file: relative to a folder of images. number: of its row, as a spreadsheet counts."""

    number: int
    file: str
    label: str
    patient: str = ""
    slide: str = ""
    split: str = ""


def read_labels(path: Path, classes: Sequence[str] = ()) -> list[LabelRow]:
    """Rows of a CSV with the columns file (or path, or name) and label, and maybe patient, slide and split.

    classes: the labels that may occur; empty for any. Raises OSError, and ValueError that tells the first rows at fault: no file or
    label, a label or split that is unknown, a file named twice or outside its folder, a patient or slide in two splits.
    """
    header, table = read_table(path)
    column = next((name for name in FILE_COLUMNS if name in header), None)
    if column is None or "label" not in header or len(set(header)) < len(header):
        raise ValueError(f"{path}, row 1: got columns {', '.join(header)}; expected file and label, maybe patient, slide, split, each once")
    rows = []
    for number, cells in enumerate(table, start=FIRST_ROW):
        values = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        file = values[column] and str(PurePosixPath(values[column]))
        rows.append(LabelRow(number, file, values["label"], *(values.get(name, "") for name in ("patient", "slide", "split"))))
    if not rows:
        raise ValueError(f"{path}: got a header without rows; expected a row for each image")
    faults = [f"row {row.number} ({row.file}): {fault}" for row in rows if (fault := _fault(row, classes))] + _clashes(rows)
    if faults:
        raise ValueError(listed(path, "rows to mend", faults))
    return rows


def _fault(row: LabelRow, classes: Sequence[str]) -> str:
    """What is wrong with a row by itself."""
    if not row.file or not row.label:
        return f"no {'label' if row.file else 'file'}; fill it in or delete the row"
    if PurePosixPath(row.file).is_absolute() or ".." in PurePosixPath(row.file).parts or "\0" in row.file:
        return "is no name below a folder of images; write it relative to that folder, so that every version has it"
    if classes and row.label not in classes:
        return f"label {row.label!r} is unknown; expected one of {', '.join(classes)}"
    if row.split and row.split not in SPLITS:
        return f"split {row.split!r} is unknown; expected one of {', '.join(SPLITS)}"
    return ""


def _clashes(rows: Sequence[LabelRow]) -> list[str]:
    """What is wrong with rows beside others: a file twice, a patient or slide on both sides of a split."""
    faults, files = [], dict[str, int]()
    for row in rows:
        if files.setdefault(row.file, row.number) != row.number:
            faults.append(f"row {row.number} ({row.file}): named already in row {files[row.file]}; delete one of them")
    known = dict(enumerate(rows))
    # a split that is unknown is told already
    return faults + [
        f"row {known[one.place].number} ({known[one.place].file}): {one.reason}"
        for one in torn({place: row for place, row in known.items() if row.split in (*SPLITS, "")})
    ]
