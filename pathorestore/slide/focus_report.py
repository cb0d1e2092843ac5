"""What is written about the focus of files: a table, a picture and outlines for each, and one table for all of them."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pathorestore.atomic import write_atomic
from pathorestore.pipelines.batch import (
    EXIT_OUTPUT,
    BatchReport,
    Done,
    Existing,
    FileResult,
    Job,
    PlanError,
    check_folders,
    identity,
    names_folder,
    plan_outputs,
    run_batch,
)
from pathorestore.pipelines.geojson import feature, ring, write_features
from pathorestore.pipelines.raster import OutputFileError
from pathorestore.pipelines.siblings import all_or_as_before
from pathorestore.slide.focus_picture import VERDICT_COLOURS, HeatMap
from pathorestore.slide.focus_qc import FocusFile
from pathorestore.slide.focus_verdict import JUDGED, FocusSummary, TileFocus, shown, summarise, tiles_csv, tiles_of_csv
from pathorestore.slide.room import short

TABLE_NAME = "qc.csv"
_SUFFIXES = (".qc.png", ".qc.geojson", ".qc.csv")
_COLUMNS = (
    "file", "verdict", "tiles", "tissue_tiles", "unreadable_tiles", "median_um", "p90_um", "mean_ctf", "fine_share", "restore_share",
    "rescan_share", "mpp", "mpp_assumed", "every", "fine_ctf", "rescan_um", "model", "weights_sha256", "uncertainty", "error",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JudgedBy:
    """What judged. uncertainty: what is known of its errors, "" of weights that nobody measured."""

    model_id: str
    weights_sha256: str | None
    uncertainty: str = ""


@dataclass(kw_only=True, eq=False)
class QcFiles:
    """The work of `run_batch` that judges a file and writes NAME.qc.csv, .png and .geojson, and what it found, by output.

    The table of tiles is written last, so that where it is the others are. overwrite: replace what is there. A run that leaves tables that
    exist may do so too, since a picture without its table is what a stopped run left.
    """

    folder: Path
    judge: FocusFile
    judged_by: JudgedBy
    overwrite: bool = False
    found: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, job: Job) -> Done:
        """Judge one file. Raises ImageFileError or OSError for what the user can mend."""
        self._check(job)
        focus = self.judge(job.input)
        summary = summarise(focus.tiles, self.judge.thresholds)
        picture = HeatMap(
            focus=focus,
            summary=summary,
            thresholds=self.judge.thresholds,
            title=job.input.name,
            footnote=self.judged_by.uncertainty or f"estimates of {self.judged_by.model_id}, whose errors are not known",
        )
        png, geojson, table = outputs_of(job)
        with all_or_as_before((png, geojson, table)):
            write_atomic(png, picture.png())
            write_features(geojson, features_of(focus.tiles))
            write_atomic(table, tiles_csv(focus.tiles).encode())
        self.found[job.output] = self._entry(summary) | {"mpp": focus.mpp, "mpp_assumed": focus.mpp_assumed, "every": focus.every}
        return Done(megapixels=focus.width_px * focus.height_px / 1e6, notes=(summary.sentence(), *focus.notes))

    def run(
        self,
        jobs: Sequence[Job],
        work: Callable[[Job], Done],
        *,
        existing: Existing = "refuse",
        on_result: Callable[[FileResult], None] = lambda _: None,
    ) -> "QcReport":
        """`run_batch`, then the table of all files; rows of earlier runs stay where this one says nothing of their file."""
        report = run_batch(jobs, work, existing=existing, on_result=on_result)
        for result in report.results:
            if result.status == "skipped":
                self._recall(result.output)
        table = self.folder / TABLE_NAME
        kept = read_table(table)
        rows = {self.name_of(result): self._row(result) for result in report.results if self._tells(result, kept)}
        if rows:
            write_atomic(table, _table_text(kept | rows))
        entries = {str(path): entry for path, entry in self.found.items()}
        return QcReport(results=report.results, planned=report.planned, seconds=report.seconds, interrupted=report.interrupted, qc=entries)

    def _recall(self, table: Path) -> None:
        """What a table of tiles from an earlier run says of its file; nothing if it cannot be read."""
        with suppress(OSError, ValueError):
            self.found[table] = asdict(summarise(tiles_of_csv(table.read_text(encoding="utf-8")), self.judge.thresholds))

    def _tells(self, result: FileResult, kept: Mapping[str, object]) -> bool:
        """Whether the row of a file is this run's to write: an output that is refused or left leaves the row as it was."""
        return not (result.code == EXIT_OUTPUT or (result.status == "skipped" and self.name_of(result) in kept))

    def name_of(self, result: FileResult) -> str:
        """The name of a file in the table: where its outputs are below the folder; what is no text is spelled out."""
        return _as_text(result.output.relative_to(self.folder).as_posix().removesuffix(_SUFFIXES[-1]))

    def _row(self, result: FileResult) -> dict[str, str]:
        """What the table says of a file."""
        entry = self.found.get(result.output, {})
        told = {name: shown(value) if isinstance(value, float) else str(value) for name, value in entry.items() if value is not None}
        return dict.fromkeys(_COLUMNS, "") | {"file": self.name_of(result), "error": result.error} | told

    def _entry(self, summary: FocusSummary) -> dict[str, Any]:
        thresholds, by = self.judge.thresholds, self.judged_by
        return asdict(summary) | {
            "fine_ctf": thresholds.fine_ctf,
            "rescan_um": thresholds.rescan_um,
            "model": by.model_id,
            "weights_sha256": by.weights_sha256,
            "uncertainty": by.uncertainty,
        }

    def _check(self, job: Job) -> None:
        """Refuse to replace what may not be."""
        for path in outputs_of(job):
            if path.is_dir():
                raise OutputFileError(f"{path}: is a folder; expected the path of a file")
            if not self.overwrite and path != job.output and path.exists():
                raise OutputFileError(f"{path}: exists already, without its table; --overwrite and --skip-existing replace it")


@dataclass(frozen=True, kw_only=True)
class QcReport(BatchReport):
    """A batch with what was found of each file, by the path of its table."""

    qc: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self, *, done: str = "judged") -> dict[str, Any]:
        """The report as JSON-able values; `qc` of a file is null where nothing was found this time."""
        told = super().to_dict(done=done)
        for entry in told["files"]:
            entry["qc"] = self.qc.get(entry["output"])
        verdicts = [found["verdict"] for found in self.qc.values()]
        told["summary"]["verdicts"] = {name: verdicts.count(name) for name in (*JUDGED, "glass")}
        return told


def outputs_of(job: Job) -> tuple[Path, Path, Path]:
    """Picture, outlines and table of a job, whose output is the table."""
    name = job.output.name.removesuffix(_SUFFIXES[-1])
    png, geojson, table = (job.output.with_name(f"{name}{suffix}") for suffix in _SUFFIXES)
    return png, geojson, table


def features_of(tiles: Iterable[TileFocus]) -> list[dict[str, Any]]:
    """Tiles as annotations for QuPath, classified by verdict, with their figures as measurements; glass is left out."""
    features = []
    for tile in tiles:
        if tile.verdict == "glass":
            continue
        outline = ring((tile.y_px, tile.x_px), (tile.y_px + tile.height_px, tile.x_px + tile.width_px))
        found = feature(tile.verdict, "Polygon", [outline], VERDICT_COLOURS[tile.verdict])
        figures = {"Defocus um": tile.defocus_um, "CTF": tile.ctf, "Tissue share": tile.tissue_share}
        # an object of numbers by name is what QuPath writes and reads since 0.4
        found["properties"]["measurements"] = {name: round(value, 3) for name, value in figures.items() if value is not None}
        features.append(found)
    return features


def plan_qc(inputs: Sequence[str | Path], folder: str | Path) -> list[Job]:
    """The table of each input in a folder, in which the trees of input folders are mirrored.

    Raises PlanError for a folder named like a file, for outputs that are an input, for a table there that is not one of ours, and as
    `plan_outputs`.
    """
    if not names_folder(folder):
        raise PlanError(
            f"several files are written about each image, so the output must be a folder; try -o {Path(folder).with_suffix('')}/"
        )
    check_folders(Path(folder))
    planned = plan_outputs(inputs, f"{folder}{os.sep}")
    jobs = [Job(job.input, job.output.with_name(f"{short(job.input.name)}{_SUFFIXES[-1]}")) for job in planned]
    read_table(Path(folder) / TABLE_NAME)
    inputs_at = {identity(job.input): job.input for job in jobs if job.input.exists()}
    for path in (path for job in jobs for path in outputs_of(job)):
        if path.exists() and identity(path) in inputs_at:
            raise PlanError(f"{inputs_at[identity(path)]}: would be written to, and inputs are never replaced; name another output folder")
    return jobs


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a table of files, by file; none where there is no table. Raises PlanError for another file of that name."""
    if not path.exists():
        return {}
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        if tuple(header) != _COLUMNS or any(len(row) != len(_COLUMNS) for row in rows):
            raise ValueError
    except (ValueError, csv.Error) as error:
        raise PlanError(f"{path}: is there and is no table of this version of qc; move it, or name another output folder") from error
    return {row[0]: dict(zip(_COLUMNS, row, strict=True)) for row in rows}


def _table_text(rows: dict[str, dict[str, str]]) -> bytes:
    out = io.StringIO()
    table = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows[name] for name in sorted(rows))
    return _as_text(out.getvalue()).encode("utf-8")


def _as_text(name: str) -> str:
    """A file name may hold bytes that are no text, and carriage returns, which tables are not written with."""
    return name.replace("\r", "\\r").encode("utf-8", "backslashreplace").decode("utf-8")
