"""How images lie in a folder, and the rows of a manifest that they make."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pathorestore.data.image_cache import UnreadableImage
from pathorestore.data.manifest import Row
from pathorestore.data.slide_files import SLIDE_SUFFIXES, slide_header

Note = Callable[[str], None]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
DEGRADED = frozenset({"degraded", "lq", "input", "inputs", "blurred", "blur", "defocused"})
CLEAN = frozenset({"clean", "gt", "hq", "target", "targets", "sharp"})
_FUSED = re.compile(r"Z_(.+)")  # beside planes named <field>_<two digits>
_HISTECH_LABELS = "3D_anno.csv"
_NAMED = 10

LAYOUTS = {
    "sharp": "sharp images",
    "paired": "degraded and clean images in folders of these names",
    "mop": "focal stacks, fields Z_<field> with planes <field>_<plane>",
    "3dhistech": "patches of the 3DHistech set",
    "slides": "whole slides",
}


def recognise(folder: Path) -> str:
    """The layout of a folder, a key of `LAYOUTS`. Raises FileNotFoundError if it holds neither images nor slides."""
    images = files_under(folder, IMAGE_SUFFIXES)
    roles = {role for path in images if (role := _role(path.relative_to(folder)))}
    if any(path.name == _HISTECH_LABELS for path in files_under(folder, (".csv",))):
        return "3dhistech"
    if _has_stacks(images):
        return "mop"
    if len(roles) == 2:
        return "paired"
    if images:
        return "sharp"
    if files_under(folder, SLIDE_SUFFIXES):
        return "slides"
    raise FileNotFoundError(f"{folder}: holds neither images (PNG, JPEG, TIFF, BMP) nor slides (SVS, NDPI, MRXS, ...); name another folder")


def files_under(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files of a folder and the folders in it that have one of the suffixes, sorted; hidden ones are no images."""
    wanted = frozenset(suffixes)
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (there := os.path.realpath(place)) in seen:  # a link back to where we come from
            folders.clear()
            continue
        seen.add(there)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in wanted]
    return sorted(found)


def sharp_rows(folder: Path, note: Note) -> list[Row]:
    """A row for each image."""
    slides = files_under(folder, SLIDE_SUFFIXES)
    if slides:
        note(f"whole slides left out, which --layout slides lists: {_names(slides, folder)}")
    return [Row(path=str(path)) for path in _some(files_under(folder, IMAGE_SUFFIXES), folder, "images (PNG, JPEG, TIFF, BMP)")]


def slide_rows(folder: Path, note: Note) -> list[Row]:
    """A row for each slide, with the pixel size that its file tells; TIFF files count if OpenSlide takes them for slides.

    Raises ImportError without OpenSlide.
    """
    files = files_under(folder, SLIDE_SUFFIXES)
    tiffs = files_under(folder, (".tif", ".tiff"))
    if tiffs:
        from pathorestore.data.slide_crops import import_openslide

        detect = import_openslide().OpenSlide.detect_format
        files = sorted(files + [path for path in tiffs if detect(path)])
    rows, unreadable, unknown = [], [], []
    for path in _some(files, folder, "whole slides (SVS, NDPI, MRXS, ...)"):
        mpp = None
        try:
            mpp = slide_header(path).mpp
            unknown += [] if mpp else [path]
        except UnreadableImage:
            unreadable.append(path)
        rows.append(Row(path=str(path), slide=path.stem, mpp=mpp))
    if unknown:
        note(f"slides that do not say how large a pixel is, which --mpp does: {_names(unknown, folder)}")
    if unreadable:
        note(f"slides that cannot be read, `pathorestore data check` tells why: {_names(unreadable, folder)}")
    return rows


def paired_rows(folder: Path, note: Note) -> list[Row]:
    """A row for each degraded image that has a clean partner of the same stem, in the same folders but for the one that tells them apart.

    Raises ValueError if two files claim one place in a pair, FileNotFoundError if there are no pairs.
    """
    members: dict[str, dict[tuple[str, ...], Path]] = {"degraded": {}, "clean": {}}
    others = []
    for path in files_under(folder, IMAGE_SUFFIXES):
        role = _role(path.relative_to(folder))
        if not role:
            others.append(path)
            continue
        first = members[role].setdefault(key := _key(path.relative_to(folder)), path)
        if first != path:
            raise ValueError(f"{path} and {first} are both the {role} image of {'/'.join(key)}; move one of them away")
    degraded, clean = members["degraded"], members["clean"]
    for role, other in (("degraded", "clean"), ("clean", "degraded")):
        lonely = [path for key, path in sorted(members[role].items()) if key not in members[other]]
        if lonely:
            note(f"{role} images left out for want of a {other} one of the same stem: {_names(lonely, folder)}")
    if others:
        note(f"images left out that lie in a folder neither of degraded nor of clean ones: {_names(others, folder)}")
    both = sorted(degraded.keys() & clean.keys())
    if not both:
        names = f"{'|'.join(sorted(DEGRADED))} and {'|'.join(sorted(CLEAN))}"
        raise FileNotFoundError(f"{folder}: holds no pairs; expected images of the same stem in folders named {names}")
    return [Row(path=str(degraded[key]), target=str(clean[key])) for key in both]


def stack_rows(folder: Path, note: Note, *, plane_um: float, mpp: float | None) -> list[Row]:
    """A row for each plane of each focal stack. Raises what `mop_rows` does."""
    from pathorestore.data.focal_stack import mop_rows

    rows = mop_rows(folder, plane_um=plane_um, mpp=mpp)
    silent = [Path(row.path) for row in rows if row.z_um is None]
    if silent:
        note(f"planes without labels, which neither lists nor the images tell: {_names(silent, folder)}")
    return rows


def histech_rows(folder: Path) -> list[Row]:
    """A row for each patch of the 3DHistech set. Raises what `focal_stack.histech_rows` does."""
    from pathorestore.data import focal_stack

    return focal_stack.histech_rows(folder)


def _role(relative: Path) -> str:
    """Degraded or clean, by the innermost folder that tells; "" where none does."""
    for part in reversed(relative.parts[:-1]):
        if part.casefold() in DEGRADED | CLEAN:
            return "degraded" if part.casefold() in DEGRADED else "clean"
    return ""


def _key(relative: Path) -> tuple[str, ...]:
    """What partners have in common: the folders but for the one that tells the role, and the stem."""
    folders = list(relative.parts[:-1])
    del folders[max(index for index, part in enumerate(folders) if part.casefold() in DEGRADED | CLEAN)]
    return (*folders, relative.stem)


def _has_stacks(images: Sequence[Path]) -> bool:
    names = {path.with_suffix("") for path in images}
    planes = {(path.parent, match[1]) for path in names if (match := re.fullmatch(r"(.+)_\d+", path.name))}
    return any((path.parent, match[1]) in planes for path in names if (match := _FUSED.fullmatch(path.name)))


def _some(files: list[Path], folder: Path, what: str) -> list[Path]:
    if not files:
        raise FileNotFoundError(f"{folder}: holds no {what}; name another folder or --layout")
    return files


def _names(files: Sequence[Path], folder: Path) -> str:
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(path.relative_to(folder).as_posix() for path in files[:_NAMED]) + more
