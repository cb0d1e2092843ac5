"""Lists of labelled planes as Mixture of Prompts keeps them: `path ctf distance`, one plane a line."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pathorestore.data.splits import FOLDERS


class Listed(NamedTuple):
    """What a list says of a plane: CTF value, distance in um, the split that the list is named for ("" if none), and where it says so."""

    ctf: float
    z_um: float
    split: str
    where: str


def list_files(folder: Path) -> list[Path]:
    """The text files of a folder that are named for a split, such as train.txt, val.txt or test_list.txt."""
    return sorted(path for path in folder.glob("*.txt") if path.is_file() and _split(path))


def read_lists(lists: Sequence[Path], planes: Iterable[Path], folder: Path, *, distance_um: float) -> dict[Path, Listed]:
    """What lists say of planes. Paths in them are absolute, relative to `folder`, or end like those of the planes (slide and file name).

    distance_um: micrometres to one unit of the lists' distances. Raises ValueError naming file and line for a line that is none, a plane
    that is not there, and one that is listed twice.
    """
    known = {path: path for path in planes}
    tails: dict[tuple[str, ...], list[Path]] = {}
    for path in known:
        tails.setdefault(path.parts[-2:], []).append(path)
    found: dict[Path, Listed] = {}
    for file in lists:
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            name, ctf, distance = _values(line, where)
            alike = tails.get(Path(name).parts[-2:], [])
            plane = known.get(folder / name) or (alike[0] if len(alike) == 1 else None)
            if plane is None:
                what = "fits several planes, name it from the folder on" if alike else "is no plane; mend the path or delete the line"
                raise ValueError(f"{where}: {name} {what} ({folder})")
            if plane in found:
                raise ValueError(f"{where}: {name} is listed before, in {found[plane].where}; keep one of the lines")
            found[plane] = Listed(ctf, distance * distance_um, _split(file), where)
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is no UTF-8 text (byte {error.start}); expected lines `path ctf distance`, save it as UTF-8") from None


def _values(line: str, where: str) -> tuple[str, float, float]:
    remedy = "expected `path ctf distance`, such as slide1/3_07.jpg 0.62 -0.8"
    words = line.strip().rsplit(maxsplit=2)  # a path may hold spaces
    if len(words) != 3:
        raise ValueError(f"{where}: got {line.strip()!r}, {remedy}")
    try:
        ctf, distance = float(words[1]), float(words[2])
    except ValueError:
        raise ValueError(f"{where}: got {line.strip()!r}, {remedy}") from None
    if not 0 <= ctf <= 1 or not math.isfinite(distance):
        raise ValueError(f"{where}: got ctf {words[1]} and distance {words[2]}, expected a ctf in [0, 1] and a finite distance")
    return words[0], ctf, distance


def _split(file: Path) -> str:
    words = file.stem.casefold().replace("-", "_").replace(".", "_").split("_")
    return next((FOLDERS[word] for word in words if word in FOLDERS), "")
