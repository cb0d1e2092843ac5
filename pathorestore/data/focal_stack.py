"""Focal stacks as training data: the rows of their planes, with labels read from lists or measured on the stack itself."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pathorestore.data.image_cache import UnreadableImage, image_size, read_rgb
from pathorestore.data.layouts import paired_rows
from pathorestore.data.manifest import Row
from pathorestore.data.splits import folder_split
from pathorestore.data.stack_files import TARGET_PREFIX, StackFiles, find_stacks
from pathorestore.data.stack_lists import Listed, list_files, read_lists
from pathorestore.functional.color import luminance, srgb_to_linear
from pathorestore.functional.optics import Optics, band_mtf, measured_ctf
from pathorestore.image import from_uint8

_ASSUMED_MPP = 0.25
_TILE_PX, _SMALLEST_TILE_PX = 256, 96
_PARTS = 4  # along each side of the field
_IN_FOCUS = 0.9
_HISTECH_LABELS = "3D_anno.csv"

MissingTarget = Literal["error", "best_plane"]
Box = tuple[slice, slice]


class StackLabels(NamedTuple):
    """Labels of the n planes of a stack.

    z_um: n, signed distance to best focus. ctf: n, in [0, 1]. best_plane: index of the sharpest. valid: False where the stack shows too
    little to tell, or ends before its focus; the numbers are then not to be used.
    """

    z_um: Tensor
    ctf: Tensor
    best_plane: int
    valid: bool


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """How stacks become rows.

    plane_um: distance of the planes. mpp: side of a pixel in um, None if unknown; labels are then measured as if it were 0.25.
    numerical_aperture: of the objective. lists: files of lines `path ctf distance`; None takes those in the folder that are named for a
    split. distance_um: micrometres to one unit of the lists' distances; the spacing of the planes if they count planes. missing_target:
    "best_plane" trains towards the sharpest plane where there is no fused target. Raises ValueError for lengths that are not positive.
    """

    plane_um: float = 0.8
    mpp: float | None = None
    numerical_aperture: float = 0.75
    lists: tuple[Path, ...] | None = None
    distance_um: float = 1.0
    missing_target: MissingTarget = "error"

    def __post_init__(self) -> None:
        if not self.plane_um > 0 or not self.distance_um > 0 or not (self.mpp is None or self.mpp > 0):
            raise ValueError(f"plane_um={self.plane_um}, distance_um={self.distance_um} and mpp={self.mpp} must be positive micrometres")
        if self.missing_target not in ("error", "best_plane"):
            raise ValueError(f"missing_target={self.missing_target!r} is unknown; expected 'error' or 'best_plane'")

    @property
    def optics(self) -> Optics:
        """The objective that CTF values refer to."""
        return Optics(numerical_aperture=self.numerical_aperture, pixel_um=self.mpp or _ASSUMED_MPP)


def mop_rows(folder: Path, *, plane_um: float = 0.8, mpp: float | None = None, options: StackOptions | None = None) -> list[Row]:
    """A row for each plane of the stacks under a folder of the layout of Mixture of Prompts, paths absolute.

    One folder for each slide; in it `<fov>_<plane>` for the planes and `Z_<fov>` for the fused target; as many planes as there are. Labels
    come from list files (`read_lists`) and, for planes that no list names, from the stack (`stack_labels`); planes whose labels cannot be
    measured have none. A list's name tells the split, and tells it for the rest of the field, or else of the slide. `extra` holds field
    and number of the plane. `options` replaces the other arguments.
    Raises OSError and ValueError for folders, lists and files that make no stacks, FileNotFoundError where a fused target is missing.
    """
    options = options or StackOptions(plane_um=plane_um, mpp=mpp)
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  links stay as the user has set them
    stacks = find_stacks(folder)
    if options.missing_target == "error":
        _check_targets(folder, stacks)
    lists = list_files(folder) if options.lists is None else options.lists
    listed = read_lists(lists, (path for stack in stacks for path in stack.planes), folder, distance_um=options.distance_um)
    return [replace(row, slide=_slide(stack, folder)) for stack in stacks for row in _rows(stack, listed, options)]


def histech_rows(folder: Path) -> list[Row]:
    """A row for each patch of the 3DHistech set, paths absolute: images of equal name in folders of degraded and of clean ones.

    The authors' split is told by folders named train, val or test. The classes in `3D_anno.csv` (columns name and label), anywhere under
    the folder, go into `extra` as `label`. Raises OSError for no pairs, ValueError naming file and line for labels that fit no patch.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100
    rows = [replace(row, split=folder_split(Path(row.path).relative_to(folder)) or "train") for row in paired_rows(folder, lambda _: None)]
    # a name may occur in several splits; the labels are those of the test set
    places = {Path(row.path).stem: index for index, row in sorted(enumerate(rows), key=lambda item: item[1].split == "test")}
    for file in sorted(folder.rglob(_HISTECH_LABELS)):
        for line, name, label in _labels(file):
            if Path(name).stem not in places:
                raise ValueError(f"{file}, line {line}: {name} names no patch under {folder}; mend the name or delete the line")
            index = places[Path(name).stem]
            rows[index] = replace(rows[index], extra=(("label", label),))
    return rows


def stack_labels(planes: Tensor, target: Tensor | None, optics: Optics, plane_um: float) -> StackLabels:
    """Labels of the planes n 3 h w of one field, against its sharp target 1 3 h w or, without one, against the stack itself.

    The CTF value of a plane is the mean of `measured_ctf` over up to 16 tiles of at most 256 px, spread over the field, but for blank ones
    and those that no plane shows out of focus; and no larger than the optics allow at the distance of the sharpest plane from focus. The
    focus of a tile lies at the vertex of a parabola through the largest value and its neighbours, that of the field at their mean.
    Raises ValueError for fewer than two planes and another size of the target.
    """
    if len(planes) < 2 or (target is not None and target.shape[-2:] != planes.shape[-2:]):
        given = None if target is None else tuple(target.shape)
        raise ValueError(f"planes {tuple(planes.shape)} and target {given} do not fit; expected at least two planes, all of one size")
    boxes = _textured(target.unbind() if target is not None else planes)
    crops = torch.stack([_crops(plane[None], boxes) for plane in planes], 1)
    return _measured(crops, None if target is None else _crops(target, boxes), optics, plane_um)


def _textured(images: Iterable[Tensor]) -> list[Box]:
    """Tiles all over the field, each the one with most fine detail in its part of it, in the sharpest of the images 3 h w."""
    return max((_detailed(image[None]) for image in images), key=lambda found: found[0])[1]


def _detailed(image: Tensor) -> tuple[float, list[Box]]:
    """How much fine detail an image 1 3 h w shows, and where: the tile that shows most of it in each of up to 4 x 4 parts."""
    light = luminance(srgb_to_linear(image))
    detail = (light - F.avg_pool2d(F.pad(light, (1, 1, 1, 1), mode="replicate"), 3, 1)).square()
    tall, wide = (max(min(_TILE_PX, side // 2), min(_SMALLEST_TILE_PX, side)) for side in detail.shape[-2:])
    cells = F.avg_pool2d(detail, (tall, wide))[0, 0]
    boxes = []
    for rows in torch.arange(cells.shape[0]).tensor_split(min(_PARTS, cells.shape[0])):
        for columns in torch.arange(cells.shape[1]).tensor_split(min(_PARTS, cells.shape[1])):
            best = int(cells[rows][:, columns].argmax())
            top, left = int(rows[best // len(columns)]) * tall, int(columns[best % len(columns)]) * wide
            boxes.append((slice(top, top + tall), slice(left, left + wide)))
    return float(detail.mean()), boxes


def _crops(image: Tensor, boxes: Sequence[Box]) -> Tensor:
    return torch.cat([image[..., rows, columns] for rows, columns in boxes])


def _measured(crops: Tensor, targets: Tensor | None, optics: Optics, plane_um: float) -> StackLabels:
    """Labels from tiles t n 3 a b and their targets t 3 a b."""
    count = crops.shape[1]
    curves, peaks = [], []
    for index, tile in enumerate(crops):
        measured = measured_ctf(tile, None if targets is None else targets[index : index + 1], optics)
        focus = _vertex(measured.value)
        if bool(measured.valid.all()) and _falls(measured.value, focus, optics, plane_um):
            peaks.append(focus)
            curves.append(_limited(measured.value, focus, optics, plane_um))
    if not curves:
        nothing = torch.full((count,), float("nan"))
        return StackLabels(z_um=nothing, ctf=nothing, best_plane=0, valid=False)
    ctf = torch.stack(curves).mean(0)
    best, mean = int(ctf.argmax()), sum(peaks) / len(peaks)
    inside = 0 < best < count - 1 or float(ctf[best]) >= _IN_FOCUS
    return StackLabels(z_um=(torch.arange(count) - mean) * plane_um, ctf=ctf, best_plane=best, valid=inside)


def _falls(values: Tensor, focus: float, optics: Optics, plane_um: float) -> bool:
    """Whether the dullest plane loses at least half the contrast that the optics take from the farthest; noise loses none."""
    farthest_um = max(focus, len(values) - 1 - focus) * plane_um
    least = float(band_mtf(torch.tensor([farthest_um]), optics))
    return float(values.min()) <= (1 + least) / 2


def _limited(values: Tensor, focus: float, optics: Optics, plane_um: float) -> Tensor:
    """CTF values scaled down so that the sharpest plane has at most what the optics pass at its distance from focus.

    A target fused from the planes is no sharper than they are: where the focus lies between two of them, they would be measured as 1.
    """
    best = int(values.argmax())
    most = band_mtf(torch.tensor([(best - focus) * plane_um]).abs(), optics).to(values.device)
    return values * (most / values[best].clamp(min=1e-6)).clamp(max=1)


def _vertex(values: Tensor) -> float:
    """Where a curve peaks, between its samples too: the vertex of a parabola through the largest and its neighbours."""
    best = int(values.argmax())
    if not 0 < best < len(values) - 1:
        return float(best)
    before, at, after = values[best - 1 : best + 2].tolist()
    bend = before - 2 * at + after
    return best + (0.5 * (before - after) / bend if bend < 0 else 0.0)


def _slide(stack: StackFiles, folder: Path) -> str:
    """The folder of a slide, told from all others under `folder`."""
    return stack.folder.name if stack.folder == folder else stack.folder.relative_to(folder).as_posix()


def _rows(stack: StackFiles, listed: dict[Path, Listed], options: StackOptions) -> list[Row]:
    told = [listed.get(path) for path in stack.planes]
    measured = None if all(told) else _labels_of(stack, options)
    target = stack.target or stack.planes[_sharpest(told, measured)]
    split = _split(stack, listed)
    rows = []
    for index, (path, said) in enumerate(zip(stack.planes, told, strict=True)):
        z_um, ctf = (said.z_um, said.ctf) if said else _of_plane(measured, index)
        rows.append(
            Row(
                path=str(path),
                mpp=options.mpp,
                z_um=z_um,
                ctf=ctf,
                target=str(target),
                split=(said.split if said else "") or split,
                extra=(("fov", stack.fov), ("plane", stack.numbers[index])),
            )
        )
    return rows


def _sharpest(told: Sequence[Listed | None], measured: StackLabels | None) -> int:
    """The plane that stands for a missing target: the one nearest focus by the lists where they name all, else the measured one."""
    distances = [abs(said.z_um) for said in told if said]
    return distances.index(min(distances)) if measured is None else measured.best_plane


def _of_plane(labels: StackLabels | None, index: int) -> tuple[float | None, float | None]:
    if labels is None or not labels.valid:
        return None, None
    return round(float(labels.z_um[index]), 4), round(float(labels.ctf[index]), 4)


def _split(stack: StackFiles, listed: dict[Path, Listed]) -> str:
    """The split of planes that no list names: that of their field, else of their slide, where it is one."""
    for paths in (stack.planes, [path for path in listed if path.parent == stack.folder]):
        splits = {listed[path].split for path in paths if path in listed and listed[path].split}
        if len(splits) == 1:
            return splits.pop()
    return "train"


def _labels_of(stack: StackFiles, options: StackOptions) -> StackLabels:
    """Labels of a stack on disk; one plane at a time is decoded."""
    files = [*stack.planes, *([stack.target] if stack.target else [])]
    sizes = {path: image_size(path) for path in files}
    odd = next((path for path in files if sizes[path] != sizes[files[0]]), None)
    if odd is not None or len(stack.planes) < 2:
        reason = "its stack has no other plane" if odd is None else f"it is not of the size of {files[0].name}, as planes of one field are"
        raise UnreadableImage.of(odd or files[0], reason)
    boxes = _textured(from_uint8(read_rgb(path))[0] for path in ([stack.target] if stack.target else stack.planes))
    crops = torch.stack([_crops(from_uint8(read_rgb(path)), boxes) for path in stack.planes], 1)
    targets = _crops(from_uint8(read_rgb(stack.target)), boxes) if stack.target else None
    return _measured(crops, targets, options.optics, options.plane_um)


def _check_targets(folder: Path, stacks: Sequence[StackFiles]) -> None:
    without = [stack for stack in stacks if stack.target is None]
    if without:
        first = without[0]
        raise FileNotFoundError(
            f"{first.folder}: field {first.fov} has no fused target {TARGET_PREFIX}{first.fov}, as {len(without)} of {len(stacks)} fields; "
            f"make them with `pathorestore fuse {folder} -o {folder}`, "
            "or train towards the sharpest planes with StackOptions(missing_target='best_plane')"
        )


def _labels(file: Path) -> list[tuple[int, str, str]]:
    """Line, name and label of each row of a table with these columns."""
    with file.open(newline="", encoding="utf-8-sig") as stream:
        table = csv.DictReader(stream)
        if not {"name", "label"} <= set(table.fieldnames or ()):
            raise ValueError(f"{file}, line 1: got columns {', '.join(table.fieldnames or ()) or 'none'}, expected name and label")
        found = [(table.line_num, row["name"], row["label"]) for row in table]
    for line, name, label in found:
        if not name or not label:
            raise ValueError(f"{file}, line {line}: got name {name!r} and label {label!r}, expected both; fill them in or delete the line")
    return found
