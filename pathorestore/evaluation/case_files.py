"""Which files belong together in an evaluation: folders by name, manifests by their rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pathorestore.data.manifest import Row, parse_number, read_manifest, read_table
from pathorestore.data.sharp_crops import image_files
from pathorestore.evaluation.cases import CaseKey
from pathorestore.pipelines.batch import PlanError


def files_of_folder(clean: Path, degraded: Path | None = None, facts: Mapping[str, Row] | None = None) -> list[CaseKey]:
    """A key for each clean image of a folder and below, with its degraded partner of the same name; a suffix may differ.

    facts: what is known of images, by name. Raises PlanError if a folder holds no image, two clean images differ in their suffix only,
    or no clean image has a degraded partner.
    """
    names = named_files(clean)
    partners = named_files(degraded) if degraded else {}
    if degraded and not set(names) & set(partners):
        example, other = next(iter(names)), next(iter(partners))
        raise PlanError(f"{degraded}: no file has the name of one in {clean} ({other} here, {example} there); name partners alike")
    known = facts or {}
    if known and not set(known) & set(names):
        raise PlanError(f"the facts name none of the {len(names)} images of {clean}; expected their names, such as {next(iter(names))}")
    keys = [CaseKey(name=path.relative_to(clean).as_posix(), image=name, clean=path) for name, path in names.items()]
    return [_informed(replace(key, degraded=partners.get(key.image)), known.get(key.image)) for key in keys]


def files_of_manifest(path: Path, split: str) -> list[CaseKey]:
    """A key for each image of a manifest's split: rows with a target are pairs, the others sharp images.

    Raises PlanError if the split is empty, or has rows of both kinds.
    """
    manifest = read_manifest(path)
    rows = [row for row in manifest.rows if row.split == split]
    if not rows:
        others = ", ".join(sorted({row.split for row in manifest.rows}))
        raise PlanError(f"{path}: has no rows of split {split!r}, only {others}; name another with --split")
    paired = [bool(row.target) for row in rows]
    if any(paired) and not all(paired):
        raise PlanError(f"{path}: some rows of split {split!r} have a target and some have none; evaluate them one after the other")
    twice = sorted(path for path, times in Counter(row.path for row in rows).items() if times > 1)
    if twice:
        raise PlanError(f"{path}: {twice[0]!r} stands in two rows of split {split!r}; expected each file once, delete one")
    keys = []
    short = _short_names([row.path for row in rows])
    for row in rows:
        own = manifest.resolve(row.path)
        clean, degraded = (manifest.resolve(row.target), own) if row.target else (own, None)
        name, field = short[row.path], _stem(Path(row.target)) if row.target else ""
        keys.append(_informed(CaseKey(name=name, image=_stem(Path(name)), field=field, clean=clean, degraded=degraded), row))
    return keys


def read_facts(path: Path) -> dict[str, Row]:
    """What a CSV with a column `file` (or `path`) and columns slide, patient, mpp and z_um says, by the images' names.

    Raises PlanError for a table without such a column, or an image named twice.
    """
    header, table = read_table(path)
    column = next((name for name in ("file", "path") if name in header), None)
    if column is None or len(set(header)) < len(header):
        what = "column file is missing" if column is None else "a column stands there twice"
        raise PlanError(f"{path}, row 1: {what}, got columns {', '.join(map(repr, header))}; mend the header")
    facts: dict[str, Row] = {}
    for number, cells in enumerate(table, start=2):
        values = dict(zip(header, cells, strict=True))
        name = _stem(Path(values[column]))
        if name in facts:
            raise PlanError(f"{path}, row {number}: {values[column]!r} has been named before; expected each image once, delete one row")
        try:
            mpp, z_um = (parse_number(key, values.get(key, "")) for key in ("mpp", "z_um"))
        except ValueError as error:
            raise PlanError(f"{path}, row {number}, {error}") from None
        if mpp is not None and not 0 < mpp < float("inf"):
            raise PlanError(
                f"{path}, row {number}, column mpp: got {mpp:g}, expected um per pixel such as 0.25; leave it empty if not known"
            )
        facts[name] = Row(path=values[column], slide=values.get("slide", ""), patient=values.get("patient", ""), mpp=mpp, z_um=z_um)
    return facts


def named_files(folder: Path) -> dict[str, Path]:
    """The image files of a folder and below by their names without suffix, `/` between folders; hidden ones left out.

    Raises PlanError if there is none, or two files have one name.
    """
    if not folder.is_dir():
        raise PlanError(f"{folder}: {'is no folder' if folder.exists() else 'no such folder'}; name a folder of images")
    try:
        files = [path for path in image_files(folder) if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    except FileNotFoundError:
        files = []
    if not files:
        raise PlanError(f"{folder}: holds no images; expected PNG, JPEG, TIFF or BMP files in it or below")
    named: dict[str, Path] = {}
    for path in files:
        name = _stem(path.relative_to(folder))
        if name in named:
            raise PlanError(f"{path} and {named[name]} have one name but for the suffix; expected each image once, remove one")
        named[name] = path
    return named


def chosen(keys: Sequence[CaseKey], limit: int | None) -> list[CaseKey]:
    """`limit` of the keys, evenly spread; all of them for None."""
    if limit is None or limit >= len(keys):
        return list(keys)
    if limit < 1:
        raise ValueError(f"--limit {limit} must be at least 1")
    return [keys[index * len(keys) // limit] for index in range(limit)]


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Absolute paths by their last parts, where these tell them apart; others as they are."""
    last = {path: Path(path).name if Path(path).is_absolute() else path for path in paths}
    return last if len({_stem(Path(name)) for name in last.values()}) == len(paths) else {path: path for path in paths}


def _stem(path: Path) -> str:
    """The name of a file without its suffix, `/` between folders; `a.png.png`, as restoring names what cannot be written, counts as `a`."""
    plain = path.with_suffix("")
    return (plain.with_suffix("") if plain.suffix.lower() in (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff") else plain).as_posix()


def _informed(key: CaseKey, row: Row | None) -> CaseKey:
    return key if row is None else replace(key, slide=row.slide, patient=row.patient, mpp=row.mpp, z_um=row.z_um)
