"""`pathorestore data make`: a folder of images becomes the rows of a manifest."""

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pathorestore.data import layouts
from pathorestore.data.facts import Facts, Joined
from pathorestore.data.layouts import LAYOUTS, Note, recognise
from pathorestore.data.manifest import Row
from pathorestore.data.splits import Ratio, folder_split, with_splits
from pathorestore.data.stack_lists import list_files


@dataclass(frozen=True, kw_only=True)
class MakeOptions:
    """How a folder is read. Raises ValueError for an unknown layout, a pattern that is none, and numbers that cannot be meant.

    layout: a key of `LAYOUTS`, or "auto" to recognise it. ratio, seed: of train, val and test, where no folder or fact tells the split.
    patient_regex: its group `patient`, or its first, found in the path relative to the folder, is the patient. facts: a table to join.
    mpp, stain, tissue: of the rows whose facts do not tell. plane_um: distance of the planes of focal stacks.
    """

    layout: str = "auto"
    ratio: Ratio = (8.0, 1.0, 1.0)
    seed: int = 0
    patient_regex: str = ""
    facts: Facts | None = None
    mpp: float | None = None
    stain: str = ""
    tissue: str = ""
    plane_um: float = 0.8

    def __post_init__(self) -> None:
        if self.layout != "auto" and self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r} is unknown; expected auto or one of {', '.join(LAYOUTS)}")
        if self.patient_regex:
            try:
                groups = re.compile(self.patient_regex).groups
            except re.error as error:
                raise ValueError(f"patient_regex {self.patient_regex!r} is no regular expression: {error}") from None
            if not groups:
                raise ValueError(f"patient_regex {self.patient_regex!r} has no group; put what names the patient in parentheses")
            if self.facts and self.facts.patient_column:
                raise ValueError("the patient comes from the path by patient_regex or from the facts by patient_column; give one of them")
        for name, value in (("mpp", self.mpp), ("plane_um", self.plane_um)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be a positive number of micrometres")


def make_manifest(folder: Path, options: MakeOptions, *, note: Note = lambda line: None) -> list[Row]:
    """The rows of the images under a folder, paths absolute, in the order of their names.

    `note` hears, in sentences, what was recognised and what was left out. Splits: facts go before the lists of focal stacks, these before
    folders named train, val or test, and these before the ratio.
    Raises OSError, ImportError and ValueError for folders and facts that make no manifest.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  links stay as the user has set them
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is no folder; name the folder that holds the images")
    layout = options.layout
    if layout == "auto":
        layout = recognise(folder)
        note(f"recognised as {LAYOUTS[layout]}; --layout {layout} says so, or name another")
    listed = layout == "mop" and bool(list_files(folder))
    joined = _with_facts(_rows(folder, layout, options, note), options, note)
    rows = [_completed(one.row, folder, options) for one in joined]
    if options.patient_regex:
        _note_patients(rows, folder, options, note)
    named = [one.split or (one.row.split if listed else folder_split(_relative(one.row, folder))) for one in joined]
    made = with_splits(rows, named, options.ratio, seed=options.seed, folder=folder)
    if len(made) < len(rows):
        lost = Counter(_relative(row, folder).parts[0] for row, split in zip(rows, named, strict=True) if not split)
        places = ", ".join(f"{name} ({count})" for name, count in sorted(lost.items()))
        note(f"left out, since neither a folder named train, val or test nor a fact tells their split: {places}")
    return made


def placed(rows: Sequence[Row], manifest: Path) -> list[Row]:
    """The rows as a manifest at a place names them: relative where it lies above the files, absolute otherwise."""
    above = Path(os.path.abspath(manifest)).parent  # noqa: PTH100

    def name(text: str) -> str:
        return Path(text).relative_to(above).as_posix() if text and Path(text).is_relative_to(above) else text

    return [replace(row, path=name(row.path), target=name(row.target)) for row in rows]


def _rows(folder: Path, layout: str, options: MakeOptions, note: Note) -> list[Row]:
    if layout == "sharp":
        return layouts.sharp_rows(folder, note)
    if layout == "paired":
        return layouts.paired_rows(folder, note)
    if layout == "slides":
        return layouts.slide_rows(folder, note)
    if layout == "mop":
        return layouts.stack_rows(folder, note, plane_um=options.plane_um, mpp=options.mpp)
    return layouts.histech_rows(folder)


def _with_facts(rows: list[Row], options: MakeOptions, note: Note) -> list[Joined]:
    if options.facts is None:
        return [Joined(row, None) for row in rows]
    joining = options.facts.join(rows)
    where = " and ".join(f"{name}={value}" for name, value in options.facts.where)
    if joining.left_out:
        note(f"files left out, for their facts do not say {where}: {joining.left_out}")
    if joining.without_facts:
        fate = f"left out, since nothing says {where}" if where else "kept as they are"
        note(f"files without a row in {options.facts.path}, {fate}: {joining.without_facts}")
    if joining.without_file:
        note(f"rows of {options.facts.path} that fit no file of this folder: {joining.without_file}")
    if not joining.kept:
        raise ValueError(f"{options.facts.path}: no file is left, for none has facts that say {where}; give other --where conditions")
    return joining.kept


def _completed(row: Row, folder: Path, options: MakeOptions) -> Row:
    """The row with the constants where it is silent, and the patient that its path tells."""
    patient = _patient(row, folder, options.patient_regex) or row.patient
    return replace(row, mpp=row.mpp or options.mpp, stain=row.stain or options.stain, tissue=row.tissue or options.tissue, patient=patient)


def _patient(row: Row, folder: Path, pattern: str) -> str:
    found = re.search(pattern, _relative(row, folder).as_posix()) if pattern else None
    if found is None:
        return ""
    return (found["patient"] if "patient" in found.re.groupindex else found[1]) or ""


def _note_patients(rows: Sequence[Row], folder: Path, options: MakeOptions, note: Note) -> None:
    unnamed = [_relative(row, folder).as_posix() for row in rows if not _patient(row, folder, options.patient_regex)]
    if len(unnamed) == len(rows):
        raise ValueError(f"patient_regex {options.patient_regex!r} names no patient in any of {len(rows)} paths, such as {unnamed[0]}")
    if unnamed:
        note(f"the patient is not known of {len(unnamed)} of {len(rows)} files, such as {unnamed[0]}, which the pattern does not fit")


def _relative(row: Row, folder: Path) -> Path:
    return Path(os.path.relpath(row.path, folder))
