"""`pathorestore data make` and `data check`: what they take, call and print."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Bar = Callable[[int, int], None]


def fill_data(command: "ArgumentParser") -> None:
    """Declare both verbs and their options."""
    from jsonargparse import ArgumentParser

    verbs = command.add_subcommands(required=True, dest="verb", help="what to do")
    for name, (fill, summary) in _FILLERS.items():
        verb = ArgumentParser(description=summary, exit_on_error=False, allow_abbrev=False)
        fill(verb)
        verb.add_argument("--verbose", action="store_true", help="print the traceback of an error that nobody foresaw")
        verbs.add_subcommand(name, verb, help=summary)


def run_data(arguments: "Namespace", bar: Bar) -> int:
    """Run a verb and return its exit code: 0 all well, 1 the manifest has defects."""
    return _VERBS[arguments.verb](arguments[arguments.verb], bar)


def _make(arguments: "Namespace", bar: Bar) -> int:
    from pathorestore.data.facts import Facts
    from pathorestore.data.make import MakeOptions, make_manifest, placed
    from pathorestore.data.manifest import Manifest, check_name, write_manifest
    from pathorestore.data.splits import parse_ratio
    from pathorestore.pipelines.manifest_text import manifest_table

    manifest = Path(arguments.output)
    check_name(manifest)
    if manifest.exists() and not arguments.overwrite:
        raise ValueError(f"{manifest}: exists already; --overwrite replaces it")
    if not arguments.facts and (arguments.where or arguments.patient_column):
        raise ValueError("--where and --patient-column belong to a table of facts; name it with --facts")
    facts = None
    if arguments.facts:
        where = tuple(_condition(text) for text in arguments.where or ())
        facts = Facts(path=Path(arguments.facts), patient_column=arguments.patient_column or "", where=where)
    options = MakeOptions(
        layout=arguments.layout,
        ratio=parse_ratio(arguments.split),
        seed=arguments.seed,
        patient_regex=arguments.patient_regex or "",
        facts=facts,
        mpp=arguments.mpp,
        stain=arguments.stain or "",
        tissue=arguments.tissue or "",
        plane_um=arguments.plane_um,
    )
    rows = placed(make_manifest(Path(arguments.folder), options, note=lambda line: print(f"note: {line}")), manifest)
    write_manifest(manifest, rows)
    print(manifest_table(Manifest(manifest, tuple(rows)), progress=bar))
    print(f"manifest: {manifest}, {len(rows)} rows")
    print(f"next: pathorestore data check {manifest}, then pathorestore fit --config NAME --data.manifest {manifest}")
    return 0


def _check(arguments: "Namespace", bar: Bar) -> int:
    from pathorestore.data.check import CheckOptions, check_and_stamp
    from pathorestore.data.manifest import read_manifest
    from pathorestore.pipelines.manifest_text import defects_table

    options = CheckOptions(
        crop_px=arguments.crop,
        max_shift_px=arguments.max_shift_px,
        duplicates=not arguments.no_duplicates,
        workers=arguments.workers,
    )
    manifest = read_manifest(Path(arguments.manifest))
    defects = check_and_stamp(manifest, options, progress=bar)
    if arguments.json:
        told = {"manifest": str(manifest.path), "rows": len(manifest.rows), "defects": [one._asdict() for one in defects]}
        print(json.dumps(told, indent=2))
    elif defects:
        print(defects_table(defects))
    line = f"{manifest.path}: {len(manifest.rows)} rows, {len(defects) or 'no'} defect{'' if len(defects) == 1 else 's'}"
    print(line, file=sys.stderr if arguments.json else sys.stdout)
    return 1 if defects else 0


_VERBS: dict[str, Callable[["Namespace", Bar], int]] = {"make": _make, "check": _check}


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise ValueError(f"--where {text!r} is no condition; expected COLUMN=VALUE, such as non_commercial=no")
    return name.strip(), value.strip()


def _fill_make(verb: "ArgumentParser") -> None:
    layouts = ("auto", "sharp", "paired", "mop", "3dhistech", "slides")
    verb.add_argument("folder", type=str, metavar="FOLDER", help="folder of images, image pairs, focal stacks or slides")
    verb.add_argument("-o", "--output", required=True, type=str, help="the manifest to write, .csv or .parquet")
    verb.add_argument("--layout", choices=layouts, default="auto", help="how the images lie in the folder; auto recognises it and says so")
    verb.add_argument("--split", type=str, default="8:1:1", help="train:val:test in patients, unless folders or facts tell the splits")
    verb.add_argument("--seed", type=int, default=0, help="seed of the split")
    pattern = "pattern in paths; its first group, or the group `patient`, names the patient"
    verb.add_argument("--patient-regex", type=str, default=None, help=pattern)
    verb.add_argument("--facts", type=str, default=None, help="CSV with a column path or file and columns of the manifest, to be joined")
    verb.add_argument("--patient-column", type=str, default=None, help="column of the facts that holds the patient")
    verb.add_argument("--where", action="append", type=str, default=None, metavar="COLUMN=VALUE", help="keep only files with these facts")
    verb.add_argument("--mpp", type=float, default=None, help="side of a pixel in um, where nothing else tells")
    verb.add_argument("--stain", type=str, default=None, help="stain, where the facts do not tell")
    verb.add_argument("--tissue", type=str, default=None, help="tissue, where the facts do not tell")
    verb.add_argument("--plane-um", type=float, default=0.8, help="distance of the planes of focal stacks in um")
    verb.add_argument("--overwrite", action="store_true", help="replace a manifest that exists")


def _fill_check(verb: "ArgumentParser") -> None:
    verb.add_argument("manifest", type=str, metavar="MANIFEST", help="a .csv or .parquet manifest")
    verb.add_argument("--crop", type=int, default=0, help="side of the crops in px; smaller images are defects")
    verb.add_argument("--max-shift-px", type=float, default=1.0, help="how far degraded and clean image may lie apart")
    verb.add_argument("--no-duplicates", action="store_true", help="do not look for one picture in two splits")
    verb.add_argument("--workers", type=int, default=0, help="threads that decode; 0 takes one for each processor")
    verb.add_argument("--json", action="store_true", help="print the defects as JSON on stdout, all else on stderr")


_FILLERS: dict[str, tuple[Callable[["ArgumentParser"], None], str]] = {
    "make": (_fill_make, "write a manifest of a folder of images"),
    "check": (_fill_check, "find what is wrong with a manifest and its files"),
}
