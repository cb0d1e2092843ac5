"""`pathorestore iqa-build`: what it takes, calls and prints."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.data.iqa import Kind
    from pathorestore.data.manifest import Row
    from pathorestore.data.splits import Ratio

Bar = Callable[[int, int], None]

_REMEDY = "give images of two patients, slides or files at least, and split them anew with --split 9:1:0 --overwrite"


def fill_iqa(command: "ArgumentParser") -> None:
    """Declare the options."""
    command.add_argument("images", type=str, metavar="FOLDER_OR_MANIFEST", help="sharp images: a folder, or a .csv or .parquet manifest")
    command.add_argument("-o", "--output", required=True, type=str, help="the table of blurred patches to write, .csv or .parquet")
    command.add_argument("--kind", choices=("box", "gauss", "both"), default="both", help="which blur; eleven levels of each")
    command.add_argument("--patch", type=int, default=256, help="side of a patch in px")
    command.add_argument("--per-image", type=int, default=4, help="most patches of an image; they do not overlap, and none is blank")
    command.add_argument("--seed", type=int, default=0, help="seed of the choice of patches and of the split")
    split = "train:val:test in groups (patient, else slide, else file); default: the splits that manifest or folders tell, else 8:1:1"
    command.add_argument("--split", type=str, default=None, help=split)
    command.add_argument("--overwrite", action="store_true", help="replace a table that exists")


def run_iqa(arguments: "Namespace", bar: Bar) -> int:
    """Write the table and say what it holds; returns the exit code: 0 all well, 1 some images could not be read."""
    from collections import Counter

    from pathorestore.atomic import refuse_existing
    from pathorestore.data.iqa import KINDS, IqaOptions, iqa_rows
    from pathorestore.data.make import placed
    from pathorestore.data.manifest import SPLITS, check_name, write_manifest
    from pathorestore.data.splits import parse_ratio

    output = Path(arguments.output)
    check_name(output)
    refuse_existing(output, overwrite=arguments.overwrite)
    kinds: tuple[Kind, ...] = KINDS if arguments.kind == "both" else (arguments.kind,)
    ratio = parse_ratio(arguments.split) if arguments.split else None
    options = IqaOptions(kinds=kinds, patch_px=arguments.patch, per_image=arguments.per_image, seed=arguments.seed, ratio=ratio)
    images = Path(arguments.images)
    rows, folder = _images(images, seed=arguments.seed, ratio=ratio)
    damaged: list[str] = []
    made = iqa_rows(rows, options, folder=folder, note=_note, damaged=damaged.append, progress=bar)
    for line in damaged:
        _note(line)
    write_manifest(output, placed(made, output))
    counts = Counter(row.split for row in made)
    shares = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    print(f"table: {output}, {len(made)} rows ({shares}) of {len({dict(row.extra)['patch'] for row in made})} patches")
    empty = [what for split, what in (("train", "training"), ("val", "validation")) if not counts[split]]
    if empty:
        print(f"note: no row is left for {' and '.join(empty)}, without which fit does not start; {_REMEDY}")
    else:
        print(f"next: pathorestore fit --config clip_iqa_{kinds[-1]}_tiny --data.manifest {output}")
    return 1 if damaged else 0


def _note(line: str) -> None:
    print(f"note: {line}", flush=True)


def _images(images: Path, *, seed: int, ratio: "Ratio | None") -> "tuple[list[Row], Path]":
    """Rows with absolute paths, and the folder that names are told from."""
    import os
    from dataclasses import replace

    from pathorestore.data.make import MakeOptions, make_manifest
    from pathorestore.data.manifest import read_manifest

    if images.is_dir():
        options = MakeOptions(layout="sharp", seed=seed, ratio=ratio or (8.0, 1.0, 1.0))
        return make_manifest(images, options), Path(os.path.abspath(images))  # noqa: PTH100  links stay as the user has set them
    manifest = read_manifest(images)
    rows = [replace(row, path=os.path.abspath(manifest.resolve(row.path))) for row in manifest.rows]  # noqa: PTH100
    return rows, Path(os.path.abspath(images.parent))  # noqa: PTH100
