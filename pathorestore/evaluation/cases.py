"""The images that an evaluation goes through: pairs on the disk, or sharp images degraded on the way; one in memory at a time."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pathorestore.degradations.optical import Degraded, degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.degradations.resize import reduced, resized
from pathorestore.pipelines.enlarge import LARGEST_SCALE
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.raster import ImageFileError

DESIGN_MPP = 0.25
DEGRADED, BICUBIC = "degraded", "bicubic"


@dataclass(frozen=True, kw_only=True)
class CaseKey:
    """A case before it is loaded. name: its own; image: the file's name, by which restored files are found, with `/` between folders.

    field: what it shows, by which cases are told to be of one image: planes of a stack have one target; "" is `image`.
    clean, degraded: the files, degraded None where there is none. mpp: of the images that are judged. mpp, z_um: None if not known.
    slide, patient: "" if not known. scale: how many times smaller the degraded image was made, None if it was not.
    task: what methods are asked to do, "" where they do one thing.
    """

    name: str
    image: str
    field: str = ""
    clean: Path
    degraded: Path | None = None
    slide: str = ""
    patient: str = ""
    mpp: float | None = None
    z_um: float | None = None
    scale: float | None = None
    task: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A loaded case. clean, degraded: 1 3 h w in [0, 1] of one size. simulated: how the degraded image came about, if here.

    whole: the degraded image before it was cropped, for methods that look beyond the edge; None if it was not. small: the image that the
    degraded one is an interpolation of, if it is. shrunk: how many times smaller it was before it was brought to this size for a task.
    """

    key: CaseKey
    clean: Tensor
    degraded: Tensor | None = None
    whole: Tensor | None = None
    simulated: Degraded | None = None
    small: Tensor | None = None
    shrunk: float = 1.0


class Cases(Protocol):
    """Cases in a fixed order."""

    @property
    def degraded_name(self) -> str:
        """How the degraded images are called."""
        ...

    @property
    def keys(self) -> Sequence[CaseKey]:
        """All of them, before any is loaded."""
        ...

    def load(self, key: CaseKey) -> Case:
        """One of them. Raises ImageFileError or OSError for files that cannot be used."""
        ...

    def window(self, image: Tensor) -> Tensor:
        """The part of a whole image b c h w that is judged."""
        ...


@dataclass(frozen=True, kw_only=True)
class FilePairs:
    """Pairs of files, or clean files alone where only restored ones are judged. crop_px: at most so much around the centre; 0 is all."""

    keys: tuple[CaseKey, ...]
    crop_px: int = 0
    degraded_name: str = DEGRADED

    def load(self, key: CaseKey) -> Case:
        """Read the files of a case."""
        file = read_image_file(key.clean)
        key = replace(key, mpp=key.mpp or file.pixel_um)
        clean = self.window(file.image)
        if key.degraded is None:
            return Case(key=key, clean=clean)
        whole = read_image_file(key.degraded).image
        check_size(whole, file.image, key.degraded)
        degraded = self.window(whole)
        return Case(key=key, clean=clean, degraded=degraded, whole=None if degraded.shape == whole.shape else whole)

    def window(self, image: Tensor) -> Tensor:
        """The part of a whole image that is judged."""
        return central(image, self.crop_px)


class SimulatedDefocus:
    """Sharp files, each put out of focus at every distance.

    Images of a known pixel size are brought to 0.25 um first: oversampled ones are soft in focus and no targets as they are. Others are
    taken to have it. The noise of a case depends on the seed, the file's name and the distance alone.
    """

    degraded_name = DEGRADED

    def __init__(self, files: Sequence[CaseKey], *, z_um: Sequence[float], setting: Setting, seed: int = 0, crop_px: int = 0):
        if not z_um or len({f"{z:g}" for z in z_um}) < len(z_um):
            raise ValueError(f"--simulate needs one or more different distances in um; got {list(z_um)}")
        self.z_um, self.setting, self.seed, self.crop_px = tuple(z_um), setting, seed, crop_px
        self.keys = tuple(replace(file, name=f"{file.name} at {z:g} um", z_um=z, mpp=DESIGN_MPP) for file in files for z in z_um)
        self._source_mpp = {file.image: file.mpp for file in files}

    def load(self, key: CaseKey) -> Case:
        """Read the sharp file and degrade it."""
        pair = self.simulate(key)
        return Case(key=key, clean=pair.clean, degraded=pair.degraded, simulated=pair)

    def simulate(self, key: CaseKey) -> Degraded:
        """The degraded image and its parameters."""
        if key.z_um is None:
            raise ValueError(f"{key.name} has no distance; expected a key of this list")
        file = read_image_file(key.clean)
        sharp = self.window(at_design_mpp(file.image, self._source_mpp[key.image] or file.pixel_um))
        # hashed, because torch's CPU generator takes only the low 32 bits of its seed
        digest = hashlib.sha256(f"{self.seed} {key.clean.name} {key.z_um:.6f}".encode("utf-8", "surrogateescape")).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        return degrade(sharp, torch.tensor([key.z_um]), setting=self.setting, generator=generator)

    def window(self, image: Tensor) -> Tensor:
        """The part of a whole image that is judged."""
        return central(image, self.crop_px)


class ReducedImages:
    """Sharp files, each made smaller by every factor; the degraded image is the small one enlarged by bicubic interpolation.

    Pixel sizes as in `SimulatedDefocus`. blur: before the reduction, see `blur_then_resize`. A clean image is cut to what whole small
    pixels show, so that it may lack up to one of them at its right and bottom.
    """

    degraded_name = BICUBIC

    def __init__(self, files: Sequence[CaseKey], *, scales: Sequence[float], blur: float = 1.0, crop_px: int = 0):
        told_apart = len({f"{scale:g}" for scale in scales}) == len(scales)
        if not scales or not told_apart or not all(1 <= scale <= LARGEST_SCALE for scale in scales):
            raise ValueError(f"--reduce needs one or more different factors from 1 to {LARGEST_SCALE:g}; got {list(scales)}")
        if not blur >= 0:
            raise ValueError(f"--blur {blur:g} must not be negative; 1 is that of ISTE's recipe, 0 none")
        self.scales, self.blur, self.crop_px = tuple(scales), blur, crop_px
        self.keys = tuple(replace(file, name=f"{file.name} x{scale:g}", scale=scale, mpp=DESIGN_MPP) for file in files for scale in scales)
        self._source_mpp = {file.image: file.mpp for file in files}

    def load(self, key: CaseKey) -> Case:
        """Read the sharp file and make it smaller."""
        if key.scale is None:
            raise ValueError(f"{key.name} has no scale; expected a key of this list")
        file = read_image_file(key.clean)
        sharp = self.window(at_design_mpp(file.image, self._source_mpp[key.image] or file.pixel_um))
        try:
            small, clean = reduced(sharp, key.scale, blur=self.blur)
        except ValueError as error:
            raise ImageFileError(f"{key.clean}: {error}") from None
        size = (clean.shape[-2], clean.shape[-1])
        return Case(key=key, clean=clean, degraded=resized(small, size), small=small)

    def window(self, image: Tensor) -> Tensor:
        """The part of a whole image that is judged."""
        return central(image, self.crop_px)


def central(image: Tensor, crop_px: int) -> Tensor:
    """At most crop_px of each side of b c h w, around the centre; 0 leaves it whole."""
    if not crop_px:
        return image
    top, left = (max(0, side - crop_px) // 2 for side in image.shape[-2:])
    return image[..., top : top + crop_px, left : left + crop_px]


def at_design_mpp(image: Tensor, mpp: float | None) -> Tensor:
    """The image brought to 0.25 um per pixel, as it is where the size of a pixel is not known."""
    if mpp is None or mpp == DESIGN_MPP:
        return image
    size = [round(side * mpp / DESIGN_MPP) for side in image.shape[-2:]]
    return F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def check_size(image: Tensor, clean: Tensor, path: Path) -> None:
    """Raise ImageFileError unless an image has the size of its clean partner."""
    if image.shape != clean.shape:
        (height, width), (wanted_height, wanted_width) = image.shape[-2:], clean.shape[-2:]
        raise ImageFileError(
            f"{path}: is {width} x {height} px and its clean partner {wanted_width} x {wanted_height}; "
            "metrics compare pixel by pixel, so restore without resizing or crop both alike"
        )
