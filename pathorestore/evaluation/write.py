"""An evaluation from its first row to its last file: measured, summed up, drawn, written."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathorestore.evaluation.journal import JOURNAL, Journal
from pathorestore.evaluation.methods import CLEAN
from pathorestore.evaluation.pictures import PICTURES, PictureShelf, extremes, picture_sets, spread
from pathorestore.evaluation.plan import Plan
from pathorestore.evaluation.results import PictureSet, ScoreRow, Summary
from pathorestore.evaluation.run import Evaluation, Failed
from pathorestore.evaluation.summarise import summarise
from pathorestore.evaluation.tables import write_tables
from pathorestore.pipelines.batch import PlanError
from pathorestore.pipelines.restorer import Progress

REPORT = "report.html"
_SCORE = "psnr_db"
_COMPARER_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of an evaluation. notes: a sentence for each file that could not be written."""

    summary: Summary
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def open_folder(folder: Path, plan: Plan, *, overwrite: bool) -> Journal:
    """The journal of an evaluation in a folder that is empty, new, or holds the same evaluation.

    Raises PlanError for a folder that holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise PlanError(f"{folder}: is a file, and an evaluation is a folder; name another with -o")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).is_file():
        raise PlanError(f"{folder}: holds files of something else; name a new folder with -o")
    around = [place for place in plan.inputs if folder.resolve().is_relative_to(place.resolve())]
    if around:
        raise PlanError(f"{folder}: lies in {around[0]}, whose images are judged; name a folder outside with -o")
    journal = Journal(folder, plan.settings, fresh=overwrite)
    if overwrite:
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
    return journal


def write_all(
    folder: Path,
    plan: Plan,
    evaluation: Evaluation,
    journal: Journal,
    *,
    facts: Callable[[], dict[str, Any]],
    progress: Progress,
    on_failure: Failed,
) -> Written:
    """Measure what is left to measure, then write tables, summary and report."""
    shelf = PictureShelf(folder, spread(plan.cases.keys, plan.options.pictures), stamp=evaluation.stamp)
    evaluation.run(journal, shelf, progress=progress, on_failure=on_failure)
    rows = evaluation.rows(journal)
    question = plan.question(evaluation, title=plan.options.title or folder.resolve().name, run=facts())
    summary = summarise(rows, question, journal.arrays)
    files, notes = write_tables(folder, rows, summary)
    try:
        from pathorestore.evaluation.report import write_report

        sets = _pictures(plan, evaluation, rows, shelf, summary) if plan.options.pictures else []
        write_report(folder / REPORT, summary, rows, sets, overwrite=True)
    except ImportError as error:
        return Written(summary=summary, files=tuple(files), notes=(*notes, f"{REPORT} is left out: {error}"))
    return Written(summary=summary, files=(*files, folder / REPORT), notes=notes)


def _pictures(plan: Plan, evaluation: Evaluation, rows: Sequence[ScoreRow], shelf: PictureShelf, summary: Summary) -> list[PictureSet]:
    """The chosen cases, and those in which the reference gains most and least, which only now are known."""
    keys = plan.cases.keys
    names = [method.name for method in evaluation.methods]
    why = {key.name: "one of an even spread" for key in keys if shelf.wants(key.name)}
    why |= extremes(rows, column=_SCORE, method=summary.reference, over=names[0]) if summary.reference != names[0] else {}
    labels = list(dict.fromkeys([plan.cases.degraded_name, *names, CLEAN]))
    for key in keys:
        if key.name in why and len(shelf.on_it(key, [*names, CLEAN])) < len(names) + 1:
            evaluation.draw(key, shelf)
    columns = [column.key for column in summary.columns if column.better != "none"][:_COMPARER_COLUMNS]
    return picture_sets(shelf, keys, why, labels, rows, columns)
