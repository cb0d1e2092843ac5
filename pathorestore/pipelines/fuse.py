"""Focal stacks in, fused image files out: folders of planes, lists of files, multi-page TIFFs."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from pathorestore.data.stack_files import DEFAULT_PATTERN, TARGET_PREFIX, StackFiles, find_stacks, plane_pattern
from pathorestore.functional.drift import STILL_PX, shifted, stack_drift
from pathorestore.functional.fusion import FusionConfig, fuse_stack
from pathorestore.pipelines.batch import Done, Job, PlanError, check_folders, names_folder, writable
from pathorestore.pipelines.image_file import (
    DEFAULT_MAX_PIXELS,
    WRITE_SUFFIXES,
    ImageFile,
    ImageFileError,
    check_target,
    read_image_file,
    read_image_stack,
    write_image_file,
)
from pathorestore.pipelines.provenance import Parameter, Provenance
from pathorestore.version import __version__

LEVELS_PER_PLANE = 256
_MOST_MAPPED = 65_536 // LEVELS_PER_PLANE
_DEPTH_SUFFIXES = (".png", ".tif", ".tiff")


@dataclass(frozen=True)
class StackJob(Job):
    """One stack: its files in the order of focus (a single one holds all planes), the planes' names, and where the depth map goes."""

    planes: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    depth_map: Path | None = None


@dataclass(frozen=True, kw_only=True)
class FuseFiles:
    """The work of `run_batch` on stacks: fuses the planes of a job into its output, and its depth map if it asks for one.

    The output is stored as the planes are: depth, gray, pixel size, ICC profile; of planes that differ in that, as the deepest. The depth
    map is 16-bit gray, 256 levels to a plane. clock: the time of creation, ISO 8601 in UTC. max_pixels: of all planes of a stack.
    """

    clock: Callable[[], str]
    config: FusionConfig = field(default_factory=FusionConfig)
    overwrite: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __call__(self, job: StackJob) -> Done:
        """Fuse one stack. Raises ImageFileError or OSError for what the user can mend."""
        targets = [path for path in (job.output, job.depth_map) if path]
        for path in targets:
            for plane in job.planes:
                check_target(path, plane, overwrite=self.overwrite)
        files = _read(job, self.max_pixels)
        if job.depth_map and len(files) > _MOST_MAPPED:
            raise ImageFileError(f"{job.depth_map}: a depth map holds {_MOST_MAPPED} planes, the stack has {len(files)}; leave it out")
        planes = torch.cat([file.image for file in files])
        like = max(files, key=lambda file: (file.bit_depth, file.mode))  # the first of the deepest; "rgb" comes after "gray"
        like = replace(like, image=planes[:1], pixel_um=next((file.pixel_um for file in files if file.pixel_um), None))
        like = replace(like, input_sha256=_digest(files))
        notes = _notes(files)
        del files  # their images are copied, and large
        if self.config.align:
            planes, note = _aligned(planes)
            notes = (*notes, note)
        fused = fuse_stack(planes, replace(self.config, align=False))
        record = self._provenance(job, len(planes), like)
        notes += write_image_file(job.output, fused.image, like, record, overwrite=self.overwrite)
        if job.depth_map:
            levels = (fused.depth_index * (LEVELS_PER_PLANE / 65_535)).expand(-1, 3, -1, -1)
            gray = replace(like, image=levels, bit_depth=16, mode="gray", alpha=None, icc=None)
            record = replace(record, parameters={**record.parameters, "levels_per_plane": LEVELS_PER_PLANE})
            write_image_file(job.depth_map, levels, gray, record, overwrite=self.overwrite)
        return Done(megapixels=like.megapixels, notes=notes)

    def _provenance(self, job: StackJob, count: int, like: ImageFile) -> Provenance:
        names = job.names if len(job.names) == count else tuple(str(number) for number in range(1, count + 1))
        parameters: dict[str, Parameter] = {
            "planes": count,
            "plane_names": " ".join(names),
            "align": self.config.align,
            "band_px": " ".join(map(str, self.config.band_px)),
            "near_px": self.config.near_px,
            "wide_px": self.config.wide_px,
            "wide_share": self.config.wide_share,
            "selectivity": self.config.selectivity,
            "noise_margin": self.config.noise_margin,
        }
        return Provenance(
            version=__version__,
            model_id="focal-stack fusion",
            weights_sha256=None,
            seed=0,
            parameters=parameters,
            input_sha256=like.input_sha256,
            pixel_um=like.pixel_um,
            created_utc=self.clock(),
            notice=f"fused from {count} planes of a focal stack, not for primary diagnosis",
        )


def plan_fusion(inputs: Sequence[str | Path], output: str | Path, *, pattern: str = DEFAULT_PATTERN, depth_map: str = "") -> list[StackJob]:
    """Decide which planes make which output, before any is read.

    inputs: a folder (stacks by the pattern of `find_stacks`, in the folders in it too), several files (one stack, in the order given), or
    one multi-page TIFF. output: a file for one stack; else a folder, in which each stack becomes `Z_<fov>` with the suffix of its planes,
    ".png" if that cannot be written, in the folders that the planes lie in. depth_map: likewise, `<fov>_depth.png`; "" for none.
    Raises PlanError for inputs that make no stacks, and for outputs that cannot be written, are two, or are a plane.
    """
    paths = [Path(item) for item in inputs]
    if not paths:
        raise PlanError("no stack given; name a folder of planes, their files, or a multi-page TIFF")
    try:
        root, stacks = (
            (paths[0], find_stacks(paths[0], pattern)) if paths[0].is_dir() and len(paths) == 1 else (None, [_listed(paths, pattern)])
        )
    except (ValueError, OSError) as error:
        raise PlanError(str(error)) from error
    single = len(stacks) == 1
    outputs = _outputs(stacks, root, output, name=lambda stack: f"{TARGET_PREFIX}{stack.fov}{_suffix(stack)}", single=single)
    maps = (
        _outputs(stacks, root, depth_map, name=lambda stack: f"{stack.fov}_depth.png", single=single) if depth_map else [None] * len(stacks)
    )
    jobs = [
        StackJob(stack.folder / stack.fov if len(stack.planes) > 1 else stack.planes[0], target, stack.planes, stack.numbers, where)
        for stack, target, where in zip(stacks, outputs, maps, strict=True)
    ]
    _check_outputs(jobs)
    return jobs


def _listed(paths: Sequence[Path], pattern: str) -> StackFiles:
    """The stack of files that were named one by one."""
    expression = plane_pattern(pattern)
    folders = [path for path in paths if path.is_dir()]
    if folders:
        raise PlanError(f"{folders[0]}: is a folder among other inputs; name one folder, or the files of one stack")
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise PlanError(f"{twice}: is named twice; name each plane once")
    matches = [expression.fullmatch(path.stem) for path in paths]
    numbers = tuple(match["plane"] if match else str(number) for number, match in enumerate(matches, start=1))
    first = matches[0]
    fov = first["fov"] if first and len(paths) > 1 and "fov" in first.groupdict() else paths[0].stem
    return StackFiles(folder=paths[0].parent, fov=fov, planes=tuple(paths), numbers=numbers)


def _outputs(
    stacks: Sequence[StackFiles], root: Path | None, output: str | Path, *, name: Callable[[StackFiles], str], single: bool
) -> list[Path]:
    target = Path(output)
    if not names_folder(output):
        if not single:
            raise PlanError(f"there are {len(stacks)} stacks, so the output must be a folder, but {target} is named like a file")
        check_folders(target.parent)
        return [writable(target)]
    check_folders(target)
    below = [stack.folder.relative_to(root) if root else Path() for stack in stacks]
    return [target / folder / name(stack) for stack, folder in zip(stacks, below, strict=True)]


def _suffix(stack: StackFiles) -> str:
    suffix = stack.planes[0].suffix
    return suffix if suffix.lower() in WRITE_SUFFIXES else ".png"


def _check_outputs(jobs: Iterable[StackJob]) -> None:
    taken: set[Path] = set()
    for job in jobs:
        if job.depth_map and job.depth_map.suffix.lower() not in _DEPTH_SUFFIXES:
            raise PlanError(f"{job.depth_map}: a depth map needs 16 bits; name it with one of {', '.join(_DEPTH_SUFFIXES)}")
        for path in (job.output, job.depth_map):
            if path is None:
                continue
            place = Path(os.path.abspath(path))  # noqa: PTH100  the file may not exist yet
            if place in taken:
                raise PlanError(f"{path}: would be written twice; name another output or another depth map")
            taken.add(place)
            if path.exists() and any(plane.exists() and path.samefile(plane) for plane in job.planes):
                raise PlanError(f"{path}: is a plane of the stack, and inputs are never replaced; name another output folder or file")


def _read(job: StackJob, max_pixels: int) -> list[ImageFile]:
    """The planes of a job. Raises ImageFileError for one that cannot be read, another size, a single plane, and too many pixels."""
    if len(job.planes) == 1:
        return read_image_stack(job.planes[0], max_pixels=max_pixels)
    files: list[ImageFile] = []
    for path in job.planes:
        file = read_image_file(path, max_pixels=max_pixels)
        (height, width), (tall, wide) = file.image.shape[-2:], (files or [file])[0].image.shape[-2:]
        if (height, width) != (tall, wide):
            raise ImageFileError(
                f"{path}: has {width} x {height} px, {job.planes[0].name} has {wide} x {tall}; planes of one stack are equal"
            )
        total = height * width * len(job.planes)
        if total > max_pixels:
            raise ImageFileError(
                f"{path}: {len(job.planes)} planes of {width} x {height} px are {total:,} pixels, above the limit of {max_pixels:,}; "
                f"if memory allows it, --max-pixels {total}"
            )
        files.append(file)
    return files


def _notes(files: Sequence[ImageFile]) -> tuple[str, ...]:
    """What the reader changed, each thing once, and in what the planes differ."""
    said = dict.fromkeys(note for file in files for note in file.notes)
    kinds = {(file.bit_depth, file.mode) for file in files}
    mixed = ("planes differ in depth or colour; stored as the deepest",) if len(kinds) > 1 else ()
    return (*said, *mixed)


def _aligned(planes: Tensor) -> tuple[Tensor, str]:
    drift = stack_drift(planes)
    most = float(drift.abs().max())
    if most < STILL_PX:
        return planes, "no lateral drift to undo"
    return shifted(planes, -drift), f"lateral drift of up to {most:.1f} px undone"


def _digest(files: Sequence[ImageFile]) -> str:
    """Of the one file's bytes, or of the line of the hashes of several."""
    digests = list(dict.fromkeys(file.input_sha256 for file in files))
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
