"""What an ablation leaves behind: a record for every row, by which a later run goes on, and the table of all rows that are finished."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pathorestore.atomic import write_atomic
from pathorestore.metrics.statistics import Interval, bootstrap_interval, paired_interval
from pathorestore.training.ablation_tables import Figure, Table

Values = Sequence[Sequence[float]]  # images down, distances across

PLAINLY = (
    "Short runs do not decide: this is one seed, and networks of this kind gain late. The intervals tell how much the choice of images "
    "matters, not how much chance in training does. To decide, train each row to its end, with several seeds."
)


@dataclass(frozen=True, kw_only=True)
class RowRecord:
    """One row as it is kept on the disk.

    settings: all that its figures depend on. minutes: the budget its number of steps came from, if any. images: name and group of each.
    seconds: of every training that is over and of measuring, by name. parameters: trained ones. figures: by name, once it is measured.
    """

    name: str
    paper: str
    settings: Mapping[str, Any]
    minutes: float | None = None
    images: Sequence[tuple[str, str]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    parameters: int = 0
    figures: Mapping[str, Values] | None = None


class Ledger:
    """The records of an ablation in a folder, one row a sub-folder, which also holds the row's checkpoints, logs and trained parts."""

    def __init__(self, out: Path, settings: Mapping[str, Any]):
        self.out, self.settings = out, dict(settings)

    def folder(self, name: str) -> Path:
        """Where a row's files lie."""
        return self.out / "rows" / name

    def read(self, name: str) -> RowRecord | None:
        """The record of a row, None for a row that was never begun. Raises ValueError for a damaged one."""
        path = self.folder(name) / "row.json"
        if not path.is_file():
            return None
        try:
            content = _read_unknown(json.loads(path.read_text(encoding="utf-8")))
            return RowRecord(**content | {"images": [tuple(image) for image in content["images"]]})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no record of a row ({error}); delete the folder {path.parent} to train the row again") from None

    def write(self, record: RowRecord) -> None:
        """Keep a record."""
        write_atomic(self.folder(record.name) / "row.json", _json(asdict(record)))

    def check(self, name: str, settings: Mapping[str, Any]) -> RowRecord | None:
        """The record of a row that was begun with these settings, whatever others it has. Raises ValueError where they differ."""
        record = self.read(name)
        if record is None:
            return None
        other = {key: record.settings.get(key) for key, value in settings.items() if record.settings.get(key) != value}
        if other:
            was, now = (", ".join(f"{key}={_short(values[key])}" for key in other) for values in (other, settings))
            raise ValueError(
                f"{self.folder(name)} was made with {was}, this run has {now}: rows of one table are trained and measured alike; name "
                "another --out, or delete that folder to train the row again"
            )
        return record

    def begun(self) -> list[RowRecord]:
        """All records with the ledger's settings, in the order of their names."""
        names = sorted(path.parent.name for path in self.out.glob("rows/*/row.json"))
        records = [record for record in map(self.read, names) if record is not None]
        return [record for record in records if all(record.settings.get(key) == value for key, value in self.settings.items())]


class Line(NamedTuple):
    """A row of the table: each figure's mean, and its mean difference to the reference row; {} where there is none."""

    record: RowRecord
    figures: dict[str, Interval]
    differences: dict[str, Interval]


def lines_of(table: Table, records: Iterable[RowRecord]) -> list[Line]:
    """The finished rows in the table's order, others behind them; intervals over groups of images, differences paired by image."""
    places = {row.name: place for place, row in enumerate(table.rows)}
    finished = sorted((record for record in records if record.figures is not None), key=lambda one: places.get(one.name, len(places)))
    reference = next((record for record in finished if record.name == table.reference), None)
    return [_line(table, record, reference) for record in finished]


def _line(table: Table, record: RowRecord, reference: RowRecord | None) -> Line:
    groups = [group for _, group in record.images]
    own = {figure.name: per_image(record, figure.name) for figure in table.figures}
    figures = {name: bootstrap_interval(values, groups) for name, values in own.items()}
    if reference is None or record is reference:
        return Line(record, figures, {})
    return Line(record, figures, {name: paired_interval(values, per_image(reference, name), groups) for name, values in own.items()})


def per_image(record: RowRecord, figure: str) -> torch.Tensor:
    """A figure of each image, averaged over the distances where it is known; NaN for a figure that the row does not have."""
    values = (record.figures or {}).get(figure)
    if values is None:
        return torch.full((len(record.images),), math.nan, dtype=torch.float64)
    return torch.tensor(values, dtype=torch.float64).nanmean(dim=1)


def write_table(table: Table, ledger: Ledger, run: Mapping[str, str]) -> Path:
    """Write `KIND.md` and `KIND.json` of all finished rows; returns the former's path. run: facts for the foot of the table, by name."""
    lines = lines_of(table, ledger.begun())
    path = ledger.out / f"{table.kind}.md"
    write_atomic(path, markdown(table, lines, ledger.settings, run).encode("utf-8"))
    rows = [
        {
            "name": line.record.name,
            "figures": {name: interval._asdict() for name, interval in line.figures.items()},
            "differences": {name: interval._asdict() for name, interval in line.differences.items()},
            "paper (not reproduced here)": line.record.paper,
            "parameters": line.record.parameters,
            "seconds": line.record.seconds,
        }
        for line in lines
    ]
    content = {"kind": table.kind, "reference": table.reference, "settings": ledger.settings, "run": dict(run), "rows": rows}
    write_atomic(ledger.out / f"{table.kind}.json", _json(content | {"images": lines[0].record.images if lines else [], "note": PLAINLY}))
    return path


def markdown(table: Table, lines: Sequence[Line], settings: Mapping[str, Any], run: Mapping[str, str]) -> str:
    """The table and what must be known to read it."""
    header = ["row"]
    for figure in table.figures:
        header += [f"{figure.title} ({figure.better} is better)", f"minus {table.reference}"]
    header.append(f"paper (not reproduced here): {table.paper_columns}")
    cells = [[line.record.name, *_cells(table.figures, line), line.record.paper] for line in lines]
    grid = [header, ["---"] * len(header), *cells]
    body = "\n".join("| " + " | ".join(row) + " |" for row in grid)
    return "\n\n".join([f"# {table.title}", body, *_notes(table, lines, settings), *table.notes, f"**{PLAINLY}**", _facts(run)]) + "\n"


def _cells(figures: Sequence[Figure], line: Line) -> list[str]:
    cells = []
    for figure in figures:
        cells += [
            _cell(line.figures.get(figure.name), f".{figure.digits}f"),
            _cell(line.differences.get(figure.name), f"+.{figure.digits}f"),
        ]
    return cells


def _cell(interval: Interval | None, spec: str) -> str:
    if interval is None or math.isnan(interval.mean):
        return "-"
    return f"{interval.mean:{spec}}" if math.isnan(interval.low) else f"{interval:{spec}}"


def _notes(table: Table, lines: Sequence[Line], settings: Mapping[str, Any]) -> list[str]:
    if not lines:
        return ["No row is finished yet."]
    images = lines[0].record.images
    groups = len({group for _, group in images})
    where = ", ".join(f"{z:g}" for z in table.z_um)
    known = (
        "in brackets their 95 % bootstrap intervals, groups drawn whole" if groups > 1 else "no intervals, for which one group is too few"
    )
    notes = [
        f"{len(images)} validation images of {groups} patients (or slides, or images, where no more is known), cut to "
        f"{settings['crop_px']} px around their centre, at 0.25 um per pixel where the manifest knows it, and put out of focus at "
        f"z = {where} um in the simulator's ideal setting. Means over distances and images, {known}; differences are paired by image. "
        "Weights are the exponential average."
    ]
    degraded = per_image(lines[0].record, "degraded_psnr_db").nanmean().item()
    if not math.isnan(degraded):
        notes.append(f"The degraded images themselves: {degraded:.2f} dB.")
    if all(line.record.name != table.reference for line in lines):
        notes.append(f"Differences are missing because the reference row {table.reference} is not finished.")
    return notes


def _facts(run: Mapping[str, str]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in run.items())


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _json(content: Any) -> bytes:
    return (json.dumps(_write_unknown(content), indent=1) + "\n").encode("utf-8")


def _write_unknown(value: Any) -> Any:
    """NaN and infinities as null and text, which JSON knows."""
    if isinstance(value, Mapping):
        return {key: _write_unknown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_write_unknown(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_unknown(content: dict[str, Any]) -> dict[str, Any]:
    """A row's content with NaN for what is null among the figures."""
    figures = content["figures"]
    if figures is None:
        return content
    known = {name: [[math.nan if value is None else value for value in row] for row in rows] for name, rows in figures.items()}
    return content | {"figures": known}
