"""Fitting NIQE and BRISQUE to sharp images: which files, what is taken of each, the fit, and how well it does on files kept apart."""

import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pathorestore.data.layouts import IMAGE_SUFFIXES, files_under
from pathorestore.data.manifest import Row, plain_name, read_manifest
from pathorestore.data.splits import split_groups
from pathorestore.data.table_rules import leaks, listed_defects
from pathorestore.evaluation.cases import central
from pathorestore.evaluation.iqa_levels import DEGRADATIONS, STEPS, level_score, variants
from pathorestore.metrics import brisque, niqe
from pathorestore.metrics.risk import rank_correlation
from pathorestore.metrics.scene_parameters import FitFacts
from pathorestore.metrics.scene_statistics import image_features, luminance_levels, patch_features
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.raster import ImageFileError

Kind = Literal["niqe", "brisque", "both"]
Note = Callable[[str], None]
Progress = Callable[[int, int], None]

_RATIO = (4.0, 1.0, 0.0)
_MODEL_SIDE_PX = 1024  # of an image, what the pristine model is made of
_NUMBER = re.compile(r"[ ._-]*\d+$")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """kind: what to fit. limit: take so many of the images, 0 for all. seed: of the split, the noise and the centres.

    crop_px: side of the central crop that is degraded. patch_px: of NIQE's patches. Raises ValueError for numbers that cannot be meant.
    """

    kind: Kind = "both"
    limit: int = 0
    seed: int = 0
    crop_px: int = 384
    patch_px: int = niqe.PATCH_PX

    def __post_init__(self) -> None:
        if self.patch_px % 2 or self.patch_px < 32:
            raise ValueError(f"patch={self.patch_px} must be even and at least 32 px, such as {niqe.PATCH_PX}")
        if self.limit < 0 or self.crop_px < 2 * self.patch_px:
            raise ValueError(f"limit={self.limit} must be >= 0 and crop={self.crop_px} at least two patches, {2 * self.patch_px} px")


class Source(NamedTuple):
    """A sharp image, what must not be torn apart from it, and whether it is kept apart from the fit."""

    path: Path
    group: str
    held_out: bool


class Agreement(NamedTuple):
    """How a score follows the levels of a degradation: rank correlation over all images together, and its mean over single images.

    medians: of the scores of all images at levels 0 to 5.
    """

    pooled: float
    within: float
    medians: tuple[float, ...]


class FitResult(NamedTuple):
    """The parameters, None where not asked for, and their agreement on the images kept apart by name of the degradation."""

    niqe: niqe.NiqeParameters | None
    brisque: brisque.BrisqueParameters | None
    agreement: dict[str, dict[str, Agreement]]
    facts: FitFacts


class _Measured(NamedTuple):
    """What is kept of an image. sharp: chosen patches n 36. names, levels, features v 36, patches v of n 36: of its variants."""

    source: Source
    digest: str
    sharp: Tensor
    names: list[str]
    levels: list[int]
    features: Tensor
    patches: list[Tensor]


def find_sources(place: Path, options: FitOptions, note: Note) -> list[Source]:
    """The sharp images of a folder or manifest, some of them held out.

    Of a manifest: the clean partner where a row has one, splits train and val, the latter held out. Else one group in five is held out:
    a patient, a slide, or files whose names differ in their last number only.
    Raises FileNotFoundError and ValueError telling what there is and what to do.
    """
    found = _of_manifest(place) if place.suffix.lower() in (".csv", ".parquet") and not place.is_dir() else _of_folder(place)
    found = sorted(found, key=lambda one: hashlib.sha256(f"{options.seed}:{one.path.name}".encode("utf-8", "surrogateescape")).digest())
    found = found[: options.limit or len(found)]
    if not any(one.held_out for one in found):
        if len({one.group for one in found}) == 1:
            note("all files seem to be of one patient or slide, so single files are held out; a manifest tells patients")
            found = [one._replace(group=one.path.name) for one in found]
        of = split_groups([one.group for one in found], _RATIO, seed=options.seed)
        found = [one._replace(held_out=of[one.group] != "train") for one in found]
    if all(one.held_out for one in found):
        raise ValueError(f"{place}: all of {len(found)} images are of the split val, so none is left to fit; take rows of train in, too")
    return sorted(found)


def fit_iqa(place: Path, options: FitOptions, *, progress: Progress = lambda *_: None, note: Note = lambda line: None) -> FitResult:
    """Fit to the sharp images of a folder or manifest, one in memory at a time. `note` hears of files that were passed over.

    Raises what `find_sources` does, and ValueError if too few images serve.
    """
    sources = find_sources(place, options, note)
    measured = []
    for done, source in enumerate(sources):
        progress(done, len(sources))
        try:
            measured.append(_measure(source, options))
        except (OSError, ImageFileError) as error:
            note(f"passed over: {error}")
    progress(len(sources), len(sources))
    fitted, held_out = ([one for one in measured if one.source.held_out is kept] for kept in (False, True))
    if not fitted:
        raise ValueError(f"{place}: none of {len(sources)} images could be used; see the notes, or name another folder")
    return _fit(fitted, held_out, options)


def spearman(scores: Tensor, levels: Tensor) -> float:
    """`rank_correlation` of the finite scores among n with their levels n; NaN if none is left or one of the two does not vary."""
    known = scores.isfinite()
    return rank_correlation(scores[known], levels[known]) if bool(known.any()) else math.nan


def _of_folder(folder: Path) -> list[Source]:
    if not folder.is_dir():
        what = "is a file; name its folder, or a manifest (.csv, .parquet)" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: {what}")
    files = files_under(folder, IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder}: holds no images (PNG, JPEG, TIFF, BMP); name a folder of sharp ones")
    return [Source(path, _leading(path, folder), held_out=False) for path in files]


def _of_manifest(path: Path) -> list[Source]:
    manifest = read_manifest(path)
    rows = {manifest.resolve(row.target or row.path): row for row in manifest.rows if row.split != "test"}
    if not rows:
        raise ValueError(f"{path}: has rows of the split test only, which are never fitted; name some train")
    found = leaks(manifest, taken=lambda row: row.split != "test")
    if found:
        raise ValueError(f"{listed_defects(path, 'rows both fitted and held out', found)}; figures would not be of unseen tissue")
    return [Source(file, _group(row, file, path.parent), row.split == "val") for file, row in rows.items()]


def _group(row: Row, file: Path, folder: Path) -> str:
    return plain_name(row.patient) or plain_name(row.slide) or _leading(file, folder)


def _leading(path: Path, folder: Path) -> str:
    """Folder and name without its last number, which tiles of one slide or field have in common; of a plain number, the folder."""
    near = Path(os.path.relpath(path, folder))
    return (near.parent / _NUMBER.sub("", near.stem)).as_posix()


def _measure(source: Source, options: FitOptions) -> _Measured:
    file = read_image_file(source.path)
    whole, crop = central(file.image, _MODEL_SIDE_PX), central(file.image, options.crop_px)
    if (crop.shape[-2] // options.patch_px) * (crop.shape[-1] // options.patch_px) < 2:
        size = f"{file.image.shape[-1]} x {file.image.shape[-2]}"
        raise ImageFileError(
            f"{source.path}: {size} px hold fewer than two patches of {options.patch_px} px; use larger images or a smaller --patch"
        )
    wanted = {"niqe": options.kind != "brisque", "brisque": options.kind != "niqe"}
    sharp = torch.zeros(0, 36, dtype=torch.float64)
    if wanted["niqe"] and not source.held_out:
        sharp = niqe.pristine_patches(whole, patch_px=options.patch_px)
    names, levels, features, patches = [], [], [torch.zeros(0, 36, dtype=torch.float64)], []
    if wanted["brisque"] or source.held_out:
        stream = torch.Generator().manual_seed(int(hashlib.sha256(f"{options.seed}:{file.input_sha256}".encode()).hexdigest()[:15], 16))
        for one in variants(crop, stream):
            luma = luminance_levels(one.image)
            names.append(one.degradation)
            levels.append(one.level)
            if wanted["brisque"]:
                features.append(image_features(luma))
            if wanted["niqe"] and source.held_out:
                patches.append(patch_features(luma, patch_px=options.patch_px).features[0])
    return _Measured(source, file.input_sha256, sharp, names, levels, torch.cat(features), patches)


def _fit(fitted: Sequence[_Measured], held_out: Sequence[_Measured], options: FitOptions) -> FitResult:
    digest = hashlib.sha256("\n".join(sorted(one.digest for one in fitted)).encode()).hexdigest()
    facts = FitFacts(
        files=len(fitted),
        groups=len({one.source.group for one in fitted}),
        samples=0,
        held_out=len(held_out),
        spearman={},
        spearman_within={},
        digest=digest,
        seed=options.seed,
        crop_px=options.crop_px,
    )
    agreement: dict[str, dict[str, Agreement]] = {}
    distance, regression = None, None
    if options.kind != "brisque":
        patches = torch.cat([one.sharp for one in fitted])
        own = replace(facts, samples=len(patches))
        distance = niqe.fit_niqe(patches, niqe.NiqeConfig(patch_px=options.patch_px, sharpness=niqe.SHARPNESS, fit=own))
        known = distance
        agreement["niqe"] = _agreement(held_out, lambda one: torch.stack([niqe.distance(rows, known) for rows in one.patches]))
        distance = replace(known, config=replace(known.config, fit=_told(own, agreement["niqe"])))
    if options.kind != "niqe":
        samples = _samples(fitted)
        own = replace(facts, samples=len(samples.scores))
        found = brisque.fit_brisque(samples, fit=own, seed=options.seed)
        agreement["brisque"] = _agreement(held_out, lambda one: brisque.score(one.features, found))
        regression = replace(found, config=replace(found.config, fit=_told(own, agreement["brisque"])))
    return FitResult(distance, regression, agreement, facts)


def _samples(fitted: Sequence[_Measured]) -> brisque.Samples:
    """Features of all variants that have any; the sharp image counts once for each degradation, whose level 0 it is."""
    features = torch.cat([one.features for one in fitted])
    levels = [level for one in fitted for level in one.levels]
    scores = torch.tensor([level_score(level) for level in levels], dtype=torch.float64)
    weights = torch.tensor([1.0 if level else float(len(DEGRADATIONS)) for level in levels], dtype=torch.float64)
    groups = [one.source.group for one in fitted for _ in one.levels]
    known = features.isfinite().all(dim=1)
    kept = [group for group, usable in zip(groups, known.tolist(), strict=True) if usable]
    return brisque.Samples(features=features[known], scores=scores[known], weights=weights[known], groups=kept)


def _agreement(held_out: Sequence[_Measured], score: Callable[[_Measured], Tensor]) -> dict[str, Agreement]:
    """By degradation. Level 0 is the sharp image."""
    if not held_out:
        return {}
    scores = [score(one) for one in held_out]
    found = {}
    for degradation in DEGRADATIONS:
        chosen = [torch.tensor([name in ("", degradation.name) for name in one.names]) for one in held_out]
        kept = [values[rows] for values, rows in zip(scores, chosen, strict=True)]
        levels = [torch.tensor(one.levels)[rows] for one, rows in zip(held_out, chosen, strict=True)]
        single = torch.tensor([spearman(values, level) for values, level in zip(kept, levels, strict=True)])
        pooled, level = torch.cat(kept), torch.cat(levels)
        medians = tuple(float(pooled[level == one].nanquantile(0.5)) for one in range(STEPS + 1))
        found[degradation.name] = Agreement(spearman(pooled, level), float(single.nanmean()), medians)
    return found


def _told(facts: FitFacts, agreement: dict[str, Agreement]) -> FitFacts:
    """The facts with what was measured; NaN is left out, for JSON holds none."""
    pooled = {name: round(one.pooled, 4) for name, one in agreement.items() if not math.isnan(one.pooled)}
    within = {name: round(one.within, 4) for name, one in agreement.items() if not math.isnan(one.within)}
    return replace(facts, spearman=pooled, spearman_within=within)
