"""Patches of known sharpness, to train and judge no-reference scores on: one sharp patch at eleven levels of box or Gaussian blur.

A manifest names each patch and level; the blur itself is made when a patch is read, so that nothing is stored.
After Histo-Diffusion (Xu et al., 2024), sec. 3.4, whose levels stand only in a figure: those here are ours.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pathorestore.data.drawing import CropConfig, Draws, below, turned
from pathorestore.data.image_cache import ArrayCache, UnreadableImage, read_rgb
from pathorestore.data.manifest import Manifest, Row
from pathorestore.data.splits import Ratio, with_splits
from pathorestore.data.table_rules import leaks, listed_defects
from pathorestore.image import from_uint8

Kind = Literal["box", "gauss"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LEVELS = 11
TOP_SCORE = LEVELS - 1
_COLUMNS = ("patch", "x_px", "y_px", "patch_px", "blur", "k", "parameter_px", "score")
_SIGMA_PX = 0.6  # a box of radius r has the standard deviation sqrt(r (r + 1) / 3)
_TRUNCATE = 4.0  # sigmas; scipy's default too
_BLANK = 4.0  # grey levels; glass and its noise stay below this standard deviation
_GRAY = np.array([0.299, 0.587, 0.114])

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Blur:
    """A level of blur. kind: "box" of radius k px or "gauss" of sigma 0.6 k px; k: 0, which changes nothing, to 10.

    It maps bytes to bytes, as stored images are, and CLIP-IQA's heads were trained on it. The blurs of `evaluation.iqa_levels` are others:
    float tensors, replicated border, Gaussian cut at three sigmas, strengths off this scale; NIQE's and BRISQUE's parameters rest on those.
    """

    kind: Kind
    k: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not 0 <= self.k < LEVELS:
            raise ValueError(f"blur {self.kind!r} of level k={self.k} is unknown; expected box or gauss, k from 0 to {LEVELS - 1}")

    @property
    def parameter_px(self) -> float:
        """Radius of the box, which is 2 k + 1 px wide, or sigma of the Gaussian."""
        return float(self.k) if self.kind == "box" else _SIGMA_PX * self.k

    @property
    def reach_px(self) -> int:
        """How far away a pixel can change another."""
        return self.k if self.kind == "box" else int(_TRUNCATE * self.parameter_px + 0.5)

    @property
    def score(self) -> int:
        """10 for the sharp patch down to 0."""
        return TOP_SCORE - self.k

    def __call__(self, pixels: Pixels) -> Pixels:
        """Blur h w 3 uint8 pixels in their own values; the border is reflected, its pixels repeated. One rounding, at the end."""
        if not self.k:
            return pixels
        import cv2

        wide, side = pixels.astype(np.float32), 2 * self.reach_px + 1
        if self.kind == "box":
            blurred = cv2.blur(wide, (side, side), borderType=cv2.BORDER_REFLECT)
        else:
            blurred = cv2.GaussianBlur(wide, (side, side), self.parameter_px, borderType=cv2.BORDER_REFLECT)
        return np.rint(blurred).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class IqaOptions:
    """What `iqa_rows` makes. Raises ValueError for sizes and numbers that cannot be meant.

    kinds: of blur; every patch gets eleven rows of each. patch_px: side of a patch. per_image: patches of an image at most, which do not
    overlap. seed: of the choice of patches and of the split. ratio: of train, val and test in groups; None keeps the splits of rows that
    have more than one, and else is 8:1:1.
    """

    kinds: tuple[Kind, ...] = KINDS
    patch_px: int = 256
    per_image: int = 4
    seed: int = 0
    ratio: Ratio | None = None

    def __post_init__(self) -> None:
        if not self.kinds or set(self.kinds) - set(KINDS) or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds={self.kinds} must be one or both of {', '.join(KINDS)}")
        if self.patch_px < 32 or self.per_image < 1:
            raise ValueError(f"patch_px={self.patch_px} must be at least 32, and per_image={self.per_image} at least 1")


def iqa_rows(
    rows: Sequence[Row],
    options: IqaOptions,
    *,
    folder: Path = Path(),
    note: Callable[[str], None] = lambda line: None,
    damaged: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Manifest rows, one for every patch, kind and level; further columns patch, x_px, y_px, patch_px, blur, k, parameter_px, score.

    rows: sharp images (those with a target are left out); their paths are taken below `folder`. Blank patches are passed over. `note` hears
    what was left out, `damaged` of each file that cannot be read and was passed over. The same images, seed and options give the same rows,
    and a group (patient, else slide, else file) has one split.
    Raises ValueError if no patch is left, and for what lies in two splits.
    """
    sharp = _split(rows, options, folder)
    made: list[Row] = []
    without, unread = 0, 0
    for index, row in enumerate(sharp):
        try:
            corners = _patches(read_rgb(folder / row.path), _name(row, folder), options)
            without += not corners
            made += [one for y_px, x_px in corners for one in _levels(row, (y_px, x_px), options, folder)]
        except UnreadableImage as error:
            unread += 1
            damaged(f"passed over: {str(error).rpartition('; ')[0]}")  # behind it stands what to do in training
        progress(index + 1, len(sharp))
    if without:
        note(f"{without} of {len(sharp)} images are smaller than a patch of {options.patch_px} px, or blank, and left out")
    if not made:
        read = f", {unread} of which cannot be read" if unread else ""
        raise ValueError(
            f"no patch of {options.patch_px} px fits into any of {len(sharp)} sharp images{read}; give larger images or a smaller --patch"
        )
    return made


class Patch(NamedTuple):
    """One row: a square of an image and the blur it gets. y_px, x_px: its corner."""

    path: Path
    y_px: int
    x_px: int
    side_px: int
    blur: Blur

    @classmethod
    def of(cls, row: Row, folder: Path = Path()) -> "Patch":
        """Read the further columns. Raises ValueError for a row without them."""
        extra = dict(row.extra)
        try:
            y_px, x_px, side_px, k = (int(extra[name]) for name in ("y_px", "x_px", "patch_px", "k"))
            return cls(folder / row.path, y_px, x_px, side_px, Blur(kind=extra["blur"], k=k))  # type: ignore[arg-type]
        except (KeyError, ValueError) as error:
            raise ValueError(f"the row of {row.path} is no blurred patch ({error}); write the table with pathorestore iqa-build") from None

    def pixels(self, whole: Pixels) -> Pixels:
        """The sharp patch out of its image h w 3."""
        cut = whole[self.y_px : self.y_px + self.side_px, self.x_px : self.x_px + self.side_px]
        if cut.shape[:2] != (self.side_px, self.side_px) or min(self.y_px, self.x_px) < 0:
            raise ValueError(
                f"{self.path}: {whole.shape[1]} x {whole.shape[0]} px do not hold the patch of {self.side_px} px at x={self.x_px}, "
                f"y={self.y_px}; the file has changed: write the table anew with pathorestore iqa-build"
            )
        return cut


class IqaBatch(NamedTuple):
    """Blurred images b 3 s s in [0, 1], their scores b in [0, 1] (one is sharp), and keys b, int64."""

    image: Tensor
    score: Tensor
    key: Tensor


class BlurredCrops(Dataset[IqaBatch]):
    """Item `key` is an IqaBatch without its batch axis: a crop of a blurred patch by (seed, key) alone; all rows are as likely.

    rows: as `iqa_rows` makes them, their paths below `folder`. config: of the crops; levels of blur are counted in pixels of the source, so
    resizing and margins are refused. Raises ValueError for those, and for crops larger than a patch.
    """

    def __init__(self, rows: Sequence[Row], config: CropConfig, *, folder: Path = Path(), seed: int = 0):
        self.patches = [Patch.of(row, folder) for row in rows]
        smallest = min(patch.side_px for patch in self.patches)
        if config.crop_px > smallest or config.margin_px or config.zoom != (1.0,) or config.target_mpp is not None:
            raise ValueError(
                f"crops of blurred patches are at most patch_px={smallest} wide and not resized; got crop_px={config.crop_px}, "
                f"margin_px={config.margin_px}, zoom={config.zoom}, target_mpp={config.target_mpp}"
            )
        self.config = config
        self._draws = Draws([1.0] * len(self.patches), config, seed)
        self._cache = ArrayCache(config.cache_mb)

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, key: int) -> IqaBatch:
        image, score = self._draws(key, self._cut)
        return IqaBatch(image, torch.tensor(score / TOP_SCORE), torch.tensor(key))

    def _cut(self, which: int, generator: torch.Generator) -> tuple[Tensor, int]:
        patch = self.patches[which]
        slack = patch.side_px - self.config.crop_px
        top, left = below(slack + 1, generator), below(slack + 1, generator)
        sharp = patch.pixels(self._cache.get(patch.path, lambda: read_rgb(patch.path)))
        crop = from_uint8(_blurred_window(sharp, patch.blur, top=top, left=left, side_px=self.config.crop_px))[0]
        return turned(crop, below(8, generator) if self.config.augment else 0), patch.blur.score


class BlurredPatches(Dataset[IqaBatch]):
    """Every patch whole and unturned; the key is the row's number among `rows`."""

    def __init__(self, rows: Sequence[Row], *, folder: Path = Path()):
        self.patches = [Patch.of(row, folder) for row in rows]

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> IqaBatch:
        patch = self.patches[index]
        image = from_uint8(patch.blur(patch.pixels(read_rgb(patch.path))))[0]
        return IqaBatch(image, torch.tensor(patch.blur.score / TOP_SCORE), torch.tensor(index))


def _blurred_window(sharp: Pixels, blur: Blur, *, top: int, left: int, side_px: int) -> Pixels:
    """A square of the blurred patch, out of no more of the patch than it depends on."""
    low_y, low_x = max(0, top - blur.reach_px), max(0, left - blur.reach_px)
    around = sharp[low_y : top + side_px + blur.reach_px, low_x : left + side_px + blur.reach_px]
    return blur(around)[top - low_y :, left - low_x :][:side_px, :side_px]


def _split(rows: Sequence[Row], options: IqaOptions, folder: Path) -> list[Row]:
    """The rows without a target, in the splits that they have or in new ones. Raises ValueError for what lies in two."""
    sharp = [row for row in rows if not row.target]
    if options.ratio is not None or len({row.split for row in sharp}) < 2:
        return with_splits(sharp, [None] * len(sharp), options.ratio or (8.0, 1.0, 1.0), seed=options.seed, folder=folder)
    # the rows left out are counted, so that numbers are those of the table
    found = leaks(Manifest(folder / "rows", tuple(rows)), taken=lambda row: not row.target)
    if found:
        raise ValueError(f"{listed_defects(folder, 'rows in two splits', found)}; or split anew with --split 8:1:1")
    return sharp


def _name(row: Row, folder: Path) -> str:
    """A path by which a file is known wherever its folder lies."""
    path = Path(row.path)
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_absolute() else path.as_posix()


def _patches(whole: Pixels, name: str, options: IqaOptions) -> list[tuple[int, int]]:
    """Corners (y, x) of up to `per_image` cells of a centred grid that are not blank, in the order of a seeded hash."""
    side = options.patch_px
    cells = list(_grid(whole.shape[:2], side))
    key = f"{options.seed}:{name}".encode("utf-8", "surrogateescape")
    cells.sort(key=lambda cell: hashlib.sha256(key + f":{cell}".encode()).digest())
    kept: list[tuple[int, int]] = []
    for y_px, x_px in cells:
        if len(kept) < options.per_image and (whole[y_px : y_px + side, x_px : x_px + side] @ _GRAY).std() >= _BLANK:
            kept.append((y_px, x_px))
    return kept


def _grid(size_px: Sequence[int], side_px: int) -> Iterator[tuple[int, int]]:
    starts = [range(length % side_px // 2, length - side_px + 1, side_px) for length in size_px]
    return ((y_px, x_px) for y_px in starts[0] for x_px in starts[1])


def _levels(row: Row, corner: tuple[int, int], options: IqaOptions, folder: Path) -> Iterator[Row]:
    y_px, x_px = corner
    for kind in options.kinds:
        for k in range(LEVELS):
            blur = Blur(kind=kind, k=k)
            place = (f"{_name(row, folder)}@{x_px},{y_px}", x_px, y_px, options.patch_px)
            cells = (*place, kind, k, f"{blur.parameter_px:g}", blur.score)
            yield replace(row, extra=tuple((name, str(cell)) for name, cell in zip(_COLUMNS, cells, strict=True)))
