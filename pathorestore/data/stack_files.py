"""The files of focal stacks: which planes belong to one field, in which order, and which image is its fused target."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathorestore.data.layouts import IMAGE_SUFFIXES

DEFAULT_PATTERN = "{fov}_{plane}"
TARGET_PREFIX = "Z_"
_NUMBER = r"(?<![\d.])[+-]?\d+(?:\.\d+)?"
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class StackFiles:
    """One field of view. folder: where its planes lie. numbers: of the planes, as their names write them, in rising order."""

    folder: Path
    fov: str
    planes: tuple[Path, ...]
    numbers: tuple[str, ...]
    target: Path | None = None


def plane_pattern(pattern: str) -> re.Pattern[str]:
    """The expression for stems such as "{fov}_{plane}" or "{fov}_z{plane}um"; {plane} is a number, with sign and decimals if need be.

    Raises ValueError unless the pattern holds {plane} once, {fov} at most once, and no other field.
    """
    parts = re.split(r"(\{[^{}]*\})", pattern)
    fields = parts[1::2]
    rest = "".join(parts[::2])
    if fields.count("{plane}") != 1 or fields.count("{fov}") > 1 or set(fields) - {"{plane}", "{fov}"} or set("{}/") & set(rest):
        raise ValueError(
            f"pattern {pattern!r} is none; expected a file name without its suffix in which {{plane}} stands for the number of the plane "
            f"and {{fov}}, if there is one, for the field, such as {DEFAULT_PATTERN} or {{fov}}_z{{plane}}um"
        )
    groups = {"{fov}": "(?P<fov>.+)", "{plane}": f"(?P<plane>{_NUMBER})"}
    return re.compile("".join(groups[part] if index % 2 else re.escape(part) for index, part in enumerate(parts)))


def find_stacks(folder: Path, pattern: str = DEFAULT_PATTERN) -> list[StackFiles]:
    """The stacks in a folder and the folders in it, hidden ones left out, sorted; a pattern without {fov} takes each folder for one.

    `Z_<fov>` beside the planes is the fused target. Raises ValueError for a pattern that is none and for two files of one plane,
    NotADirectoryError for no folder, FileNotFoundError if no name fits.
    """
    expression = plane_pattern(pattern)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is no folder; name the folder that holds the planes")
    stacks, others = [], []
    for place, names in _images(folder):
        fields: dict[str, list[Path]] = {}
        for path in names:
            match = None if path.stem.startswith(TARGET_PREFIX) else expression.fullmatch(path.stem)
            if match:
                fields.setdefault(match["fov"] if "{fov}" in pattern else place.resolve().name, []).append(path)
            else:
                others.append(path)
        targets = {path.stem: path for path in names}
        stacks += [_stack(place, fov, planes, expression, targets.get(TARGET_PREFIX + fov)) for fov, planes in sorted(fields.items())]
    if not stacks:
        found = f"it holds {_some_of(others)}" if others else "it holds no images (PNG, JPEG, TIFF, BMP)"
        raise FileNotFoundError(f"{folder}: no name of an image fits the pattern {pattern}: {found}; give the pattern of the planes' names")
    return stacks


def _images(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder with the image files in it."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield (
            Path(place),
            sorted(Path(place, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES),
        )


def _stack(place: Path, fov: str, planes: Sequence[Path], expression: re.Pattern[str], target: Path | None) -> StackFiles:
    numbered: dict[float, tuple[Path, str]] = {}
    for path in planes:
        match = expression.fullmatch(path.stem)
        assert match is not None
        other = numbered.setdefault(float(match["plane"]), (path, match["plane"]))[0]
        if other != path:
            raise ValueError(f"{path} and {other.name} are both plane {match['plane']} of {fov}; move one of them away")
    order = [numbered[number] for number in sorted(numbered)]
    return StackFiles(
        folder=place, fov=fov, planes=tuple(path for path, _ in order), numbers=tuple(number for _, number in order), target=target
    )


def _some_of(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(path.name for path in files[:_NAMED]) + more
