"""What can be told of a manifest by decoding its images: whether training can read them, their sizes, and whether partners lie together."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathorestore.data.defects import CheckOptions, Defect, defect
from pathorestore.data.fingerprint import Fingerprint, correlation, fingerprint
from pathorestore.data.image_cache import UnreadableImage, read_rgb
from pathorestore.data.manifest import Manifest, Row, plain_name
from pathorestore.data.registration import worst_shift
from pathorestore.data.slide_files import SLIDE_SUFFIXES, slide_header

_NOTHING = Fingerprint(b"", None)
_TIFF = (".tif", ".tiff")
# Measured on simulated pairs of real tissue: at 8 um of defocus, images of 256 px and more agree with their partner by 0.5 and more
_UNRELATED, _LEAST_JUDGED_PX = 0.2, 256
_STAIN_SHIFT_PX = 8.0  # about a third of a nucleus at 40x
_BLACK_GROUND = 64


class Picture(NamedTuple):
    """A file as it was decoded: height and width, gray levels h w (None for slides), fingerprint; or else what is wrong with it."""

    size_px: tuple[int, int] = (0, 0)
    gray: NDArray[np.uint8] | None = None
    scene: Fingerprint = _NOTHING
    kind: str = ""
    problem: str = ""


class Examined(NamedTuple):
    """One row: its place among the manifest's rows, what is wrong with its files, the file that shows its scene, and the scene."""

    place: int
    defects: tuple[Defect, ...]
    file: str
    scene: Fingerprint


def examine(manifest: Manifest, indices: Sequence[int], options: CheckOptions) -> list[Examined]:
    """Decode the files of rows that share their target, which is decoded once, and tell what is wrong with each. Raises nothing."""
    target = manifest.rows[indices[0]].target
    clean = look(manifest.resolve(target)) if target else None
    return [_examine(manifest, index, clean, options) for index in indices]


def look(path: Path) -> Picture:
    """Decode an image file in full, or open a slide. Whatever is wrong with the file is told, not raised."""
    try:
        there = path.exists()
    except OSError as error:  # a name too long, a folder that nobody may enter
        return Picture(kind="missing file", problem=f"{error.strerror}; mend the name, or give access")
    if not there:
        return Picture(kind="missing file", problem="no such file; mend the name, or restore the file")
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return _slide(path)
    picture = _image(path)
    if picture.problem and path.suffix.lower() in _TIFF:
        as_slide = _slide(path)  # too large for memory, or compressed as only slides are
        return picture if as_slide.problem else as_slide
    return picture


def _examine(manifest: Manifest, index: int, clean: Picture | None, options: CheckOptions) -> Examined:
    row = manifest.rows[index]
    image = look(manifest.resolve(row.path))
    members = [(f"image {row.path}", image)] + ([(f"target {row.target}", clean)] if clean else [])
    found = [(picture.kind, f"{name}: {picture.problem}") for name, picture in members if picture.problem]
    sound = [(name, picture) for name, picture in members if not picture.problem]
    for name, picture in sound:
        if min(picture.size_px) < options.crop_px:
            found.append(
                ("wrong size", f"{name} has {_size(picture)}, less than a crop of {options.crop_px} px; leave it out or cut smaller")
            )
    if clean and len(sound) == len(members):
        found += _pair(image, clean, options, stains=_of_two_stains(row))
    defects = tuple(defect(index, row, kind, reason) for kind, reason in found)
    return Examined(index, defects, row.target or row.path, (clean or image).scene)


def _of_two_stains(row: Row) -> bool:
    """Whether image and target show one tissue in two stains: the column target_stain names another one than `stain`."""
    target = dict(row.extra).get("target_stain", "")
    return bool(target.strip()) and plain_name(target) != plain_name(row.stain)


def _dark_on_light(gray: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Fluorescence shows nuclei bright on black, dyes show them dark on white."""
    return (255 - gray if np.median(gray) < _BLACK_GROUND else gray).astype(np.float32)


def _pair(image: Picture, clean: Picture, options: CheckOptions, *, stains: bool) -> list[tuple[str, str]]:
    """stains: partners in two stains are photographed twice, so a little shift is let pass, and they need not look alike."""
    if image.size_px != clean.size_px:
        reason = f"the image has {_size(image)} and its target {_size(clean)}; partners must be cut alike and registered"
        return [("wrong size", reason)]
    if image.gray is None or clean.gray is None:
        return [] if image.gray is clean.gray else [("unreadable", "a slide and an image cannot be partners; cut images from the slide")]
    limit_px = max(options.max_shift_px, _STAIN_SHIFT_PX) if stains else options.max_shift_px
    planes = (clean.gray, image.gray)
    shift = worst_shift(*(_dark_on_light(plane) if stains else plane.astype(np.float32) for plane in planes))
    if shift is not None and shift.surely_exceeds(limit_px):
        where = f"{shift.x_px:+.1f} px right and {shift.y_px:+.1f} px down (standard error {shift.error_px:.2f} px)"
        return [("unregistered", f"the image lies {where} of its target, limit {limit_px:g} px; register the pair anew")]
    if stains:
        return []
    if (shift is None or not shift.certain) and min(image.size_px) >= _LEAST_JUDGED_PX and _unrelated(image.scene, clean.scene):
        return [("unrelated", "image and target show different scenes, or one of them is turned; match them anew")]
    return []


def _unrelated(first: Fingerprint, second: Fingerprint) -> bool:
    return first.block is not None and second.block is not None and correlation(first.block, second.block) < _UNRELATED


def _image(path: Path) -> Picture:
    import cv2

    try:
        if planes := _planes(path):
            return Picture(
                kind="unreadable", problem=f"holds {planes} images of one size and training reads the first; save each to a file"
            )
        pixels = read_rgb(path)
        gray = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
        return Picture((pixels.shape[0], pixels.shape[1]), gray, fingerprint(pixels, gray))
    except UnreadableImage as error:
        return Picture(kind="unreadable", problem=_reason(error, path))
    except Exception as error:  # a check of many files must outlive each of them, whatever a decoder makes of it
        return Picture(kind="unreadable", problem=f"{type(error).__name__}: {error}".removesuffix(": "))


def _slide(path: Path) -> Picture:
    try:
        facts = slide_header(path)
        return Picture(facts.size_px, None, Fingerprint(facts.digest.encode(), None))
    except UnreadableImage as error:
        return Picture(kind="unreadable", problem=_reason(error, path))
    except Exception as error:
        return Picture(kind="unreadable", problem=f"{error or type(error).__name__}")


def _planes(path: Path) -> int:
    """How many images of the size of the first a TIFF holds, if more than one; a pyramid's levels are smaller."""
    if path.suffix.lower() not in _TIFF:
        return 0
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            first = file.pages.first.shape[:2]
            alike = sum(page.shape[:2] == first for page in file.pages)
            return alike if alike > 1 else 0
    except Exception:  # whether the file is one at all, the decoder says better
        return 0


def _reason(error: UnreadableImage, path: Path) -> str:
    """What an UnreadableImage says, without the file that is told beside it and without the remedies for a run under way."""
    return str(error).removeprefix(f"{path}: cannot be read for training: ").rsplit("; ", 1)[0]


def _size(picture: Picture) -> str:
    return f"{picture.size_px[1]} x {picture.size_px[0]} px"
