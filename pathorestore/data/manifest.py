"""The manifest: one table, CSV or Parquet, that says what is trained on, what belongs together and what must be kept apart."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathorestore.atomic import write_atomic

COLUMNS = ("path", "slide", "patient", "tissue", "stain", "mpp", "z_um", "ctf", "target", "split")
NUMBERS = ("mpp", "z_um", "ctf")
SPLITS = ("train", "val", "test")
FIRST_ROW = 2  # rows are counted as a spreadsheet counts them, and the header is row 1

_PARQUET_REMEDY = 'Parquet manifests need pyarrow; pip install "pathorestore[parquet]", or save the table as .csv'


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image or slide of a manifest. Raises ValueError for an empty path, an unknown split and numbers that are not finite.

    path, target: relative to the manifest's folder, or absolute. target: the clean partner; "" where the image itself is sharp, or a slide.
    mpp: side of a pixel in um. z_um: signed distance to best focus. ctf: value in [0, 1]. None and "" say that nobody knows.
    extra: further columns as (name, text), kept on a round trip.
    """

    path: str
    slide: str = ""
    patient: str = ""
    tissue: str = ""
    stain: str = ""
    mpp: float | None = None
    z_um: float | None = None
    ctf: float | None = None
    target: str = ""
    split: str = "train"
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError(f"column path: got {self.path!r}, expected the name of an image file or slide; fill it in or delete the row")
        if self.split not in SPLITS:
            raise ValueError(f"column split: got {self.split!r}, expected one of {', '.join(SPLITS)}; write one of them")
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"column {name}: got {value}, expected a finite number; leave the cell empty if it is not known")


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest file; row i of `rows` is row i + 2 of the spreadsheet."""

    path: Path
    rows: tuple[Row, ...]

    def resolve(self, name: str) -> Path:
        """Where a `path` or `target` of this manifest lies: absolute names as they are, others below the manifest's folder."""
        return self.path.parent / name

    def of(self, split: str) -> tuple[Row, ...]:
        """The rows of a split, in their order. Raises ValueError for an unknown split."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; expected one of {', '.join(SPLITS)}")
        return tuple(row for row in self.rows if row.split == split)


def read_manifest(path: Path) -> Manifest:
    """Read a .csv (UTF-8, with or without a byte order mark) or .parquet manifest. All columns but `path` may be absent.

    Raises FileNotFoundError, ImportError where Parquet cannot be read, and ValueError naming file, row (as a spreadsheet counts, the
    header is row 1), column, what was got, what was expected and what to do.
    """
    if not path.is_file():
        what = "is a folder; name the manifest file in it" if path.is_dir() else "no such file; `pathorestore data make FOLDER` writes one"
        raise FileNotFoundError(f"{path}: {what}")
    check_name(path)
    header, table = read_table(path, column="path") if path.suffix.lower() == ".csv" else _read_parquet(path)
    _check_header(path, header)
    if not table:
        raise ValueError(f"{path}: got a header without rows, expected at least one row; `pathorestore data make FOLDER` fills one")
    return Manifest(path, tuple(_row(path, number, header, cells) for number, cells in enumerate(table, start=FIRST_ROW)))


def write_manifest(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as .csv or .parquet, whole or not at all: the columns of the schema, then the further ones in the order first met.

    Raises ValueError for another suffix, for no rows, and for a further column that has the name of one of the schema.
    """
    check_name(path)
    if not rows:
        raise ValueError(f"{path}: got no rows to write, expected at least one; a manifest without rows trains nothing")
    further = tuple(dict.fromkeys(name for row in rows for name, _ in row.extra))
    clash = sorted(set(further) & set(COLUMNS))
    if clash:
        raise ValueError(f"{path}: further columns {', '.join(clash)} have names of the schema; rename them")
    try:
        data = (_csv_bytes if path.suffix.lower() == ".csv" else _parquet_bytes)(rows, further)
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: the name {error.object!r} is no text, which a table cannot hold; rename the file") from None
    write_atomic(path, data)


def check_name(path: Path) -> None:
    """Raises ValueError unless a manifest may have this name."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"{path}: got suffix {path.suffix!r}, expected .csv or .parquet; name the manifest so")


def plain_name(name: str) -> str:
    """A name by which to tell patients and slides apart: a space or a capital more makes nobody another person."""
    return " ".join(name.split()).casefold()


def parse_number(name: str, text: str) -> float | None:
    """The number in a cell of column `name`, None for an empty one. Raises ValueError telling column, what was got and what to do."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        remedy = "write a point, not a comma" if "," in text else "leave the cell empty if it is not known"
        raise ValueError(f"column {name}: got {text!r}, expected a number such as 0.25; {remedy}") from None


def read_table(path: Path, *, column: str = "") -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file (UTF-8, with or without a byte order mark) as text, all rows as long as the header.

    column: that is asked for where the file is empty; it is not looked for. Raises ValueError naming file and row.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.reader(stream, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text (byte {error.start}); save it as CSV UTF-8, as spreadsheets call it") from None
    except csv.Error as error:
        raise ValueError(f"{path}: is no CSV table ({error}); expected cells parted by commas, save it as CSV UTF-8") from None
    while lines and not any(cell.strip() for cell in lines[-1]):
        lines.pop()  # spreadsheets leave empty rows at the end
    if not lines:
        named = f" with a column `{column}`" if column else ""
        raise ValueError(f"{path}: is empty; expected a header row{named} and one row for each image")
    header, *table = lines
    for number, cells in enumerate(table, start=FIRST_ROW):
        if len(cells) != len(header):
            got = f"{len(cells)} cells" if any(cell.strip() for cell in cells) else "an empty row"
            raise ValueError(f"{path}, row {number}: got {got}, expected {len(header)} cells as in the header; mend or delete the row")
    return [name.strip() for name in header], table


def _check_header(path: Path, header: list[str]) -> None:
    if "path" not in header:
        hint = "part the cells by commas" if any(mark in "".join(header) for mark in ";\t") else "add it or rename the one that holds files"
        raise ValueError(f"{path}, row 1: column path is missing, got columns {', '.join(map(repr, header))}; {hint}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}, row 1: got column {twice[0]!r} more than once, expected each once; delete or rename one")


def _row(path: Path, number: int, header: list[str], cells: Iterable[str]) -> Row:
    values = dict(zip(header, cells, strict=True))
    try:
        known: dict[str, Any] = {name: values[name] for name in COLUMNS if name in values}
        known |= {name: parse_number(name, known[name]) for name in NUMBERS if name in known}
        known |= {"split": known["split"].strip()} if "split" in known else {}
        return Row(**known, extra=tuple((name, text) for name, text in values.items() if name not in COLUMNS))
    except ValueError as error:
        raise ValueError(f"{path}, row {number}, {error}") from None


def _cells(row: Row, further: Sequence[str]) -> list[str]:
    known = ["" if value is None else str(value) for value in (getattr(row, name) for name in COLUMNS)]
    extra = dict(row.extra)
    return known + [extra.get(name, "") for name in further]


def _csv_bytes(rows: Sequence[Row], further: Sequence[str]) -> bytes:
    out = io.StringIO()
    plain, quoted = csv.writer(out, lineterminator="\n"), csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow([*COLUMNS, *further])
    for row in rows:
        cells = _cells(row, further)
        # the writer quotes what ends its own lines, but a reader takes a carriage return for the end of one too
        (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)
    return out.getvalue().encode("utf-8")


def _read_parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path}: {_PARQUET_REMEDY}") from error
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: is no Parquet table ({' '.join(str(error).split())}); write it anew or save it as .csv") from None
    columns = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return list(table.column_names), [list(cells) for cells in zip(*columns, strict=True)]


def _parquet_bytes(rows: Sequence[Row], further: Sequence[str]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(_PARQUET_REMEDY) from error
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    columns |= {name: [dict(row.extra).get(name, "") for row in rows] for name in further}
    kinds = [(name, pyarrow.float64() if name in NUMBERS else pyarrow.string()) for name in columns]
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns, schema=pyarrow.schema(kinds)), out)
    return out.getvalue()
