"""One file made larger: read, enlarge, write with the new size of its pixels and the record of how."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pathorestore.nn.implicit import Lattice, bicubic_on
from pathorestore.pipelines.batch import Job
from pathorestore.pipelines.compute import DEVICES, choose_device
from pathorestore.pipelines.enlarge import Enlargement, Enlarger, Size, enlarged, target_size
from pathorestore.pipelines.image_file import ImageFile, check_size_for
from pathorestore.pipelines.image_work import ImageWork, Made
from pathorestore.pipelines.provenance import ENLARGED_NOTICE, Parameter
from pathorestore.pipelines.raster import ImageFileError, Pixels, rounded
from pathorestore.pipelines.restorer import Progress, silent

if TYPE_CHECKING:
    from pathorestore.pipelines.iste import ISTE

LEAST_OVERLAP_PX = 4
UNTRAINED_SCALE = 8.0
"""Beyond it nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions:
    """Wishes for an enlargement; the names in messages are those of the command line.

    model: folder or hub repository, None for the embedded weights. revision: commit hash or tag of a repository. target: how large.
    tile_px, overlap_px: of the tiles, in pixels of the input. device: "auto", "cpu" or "cuda".
    """

    target: Enlargement
    model: str | None = None
    revision: str | None = None
    tile_px: int = 64
    overlap_px: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 16 <= self.tile_px <= 512:
            raise ValueError(f"--tile {self.tile_px} must lie in 16..512 px of the input; it also bounds where textures are looked for")
        if not LEAST_OVERLAP_PX <= self.overlap_px < self.tile_px / 2:
            raise ValueError(
                f"--overlap {self.overlap_px} must lie in {LEAST_OVERLAP_PX}..{(self.tile_px - 1) // 2}, below half of --tile "
                f"{self.tile_px}; with less, the borders of tiles show"
            )
        if self.device not in DEVICES:
            raise ValueError(f"--device {self.device}; expected one of {DEVICES}")
        if self.revision is not None and self.model is None:
            raise ValueError("--revision belongs to a hub repository; name it with --model owner/name")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyUpscaler:
    """A system on its device, with what a provenance record says about it."""

    system: "ISTE"
    device: str
    parameters: dict[str, Parameter]


def ready_upscaler(options: UpscaleOptions) -> ReadyUpscaler:
    """Load and move to the device. Raises ValueError or OSError for weights that cannot be used, or a missing device."""
    from pathorestore.pipelines.iste import ISTE, load_default

    device = choose_device(options.device)
    system = load_default() if options.model is None else ISTE.from_pretrained(options.model, revision=options.revision)
    parameters: dict[str, Parameter] = {
        "tile_px": options.tile_px,
        "overlap_px": options.overlap_px,
        "max_keys": system.search.max_keys,
        "device": device,
    }
    return ReadyUpscaler(system=system.to(device), device=device, parameters=parameters)


@dataclass(frozen=True, kw_only=True, eq=False)
class UpscaleFile(ImageWork):
    """Enlarges image files; the output's pixels are finer by as much. target: how large. tile_px, overlap_px: in pixels of the input."""

    enlarger: Enlarger
    target: Enlargement
    tile_px: int = 64
    overlap_px: int = 8
    device: str = "cpu"
    progress: Progress = silent
    notice = ENLARGED_NOTICE

    def check(self, job: Job, given: ImageFile) -> None:
        """Refuse sizes that cannot be."""
        try:
            scale = self.target.scale_of(given.pixel_um)
        except ImageFileError as error:
            raise ImageFileError(f"{given.path}: {error}") from None
        out_size = target_size((given.image.shape[-2], given.image.shape[-1]), scale=scale)
        if out_size[0] * out_size[1] > self.max_pixels:
            raise ImageFileError(
                f"{given.path}: would become {out_size[1]} x {out_size[0]} = {out_size[0] * out_size[1]:,} pixels, above the limit of "
                f"{self.max_pixels:,}; take a smaller scale, write a slide with --pyramid, or allow it with --max-pixels"
            )
        check_size_for(job.output, *out_size)

    def made(self, given: ImageFile) -> Made:
        """The larger image, its alpha plane interpolated."""
        size, scale = (given.image.shape[-2], given.image.shape[-1]), self.target.scale_of(given.pixel_um)
        out_size = target_size(size, scale=scale)
        image = enlarged(
            self.enlarger,
            given.image,
            out_size,
            tile_px=self.tile_px,
            overlap_px=self.overlap_px,
            device=self.device,
            progress=self.progress,
        )
        pixel_um = self.target.pixel_um(given.pixel_um, size, out_size)
        alpha = None if given.alpha is None else _interpolated(given.alpha, out_size)
        notes = [] if pixel_um else ["the file does not say how large a pixel is, so neither does the output; --source-mpp would"]
        if given.format == "JPEG":
            notes.append("the file is compressed, and what that did to it is enlarged too; bicubic interpolation may be nearer")
        if scale > UNTRAINED_SCALE:
            notes.append(f"nothing was measured beyond x{UNTRAINED_SCALE:g}, and this is x{scale:.3g}")
        return Made(
            image=image,
            like=replace(given, image=image, alpha=alpha, pixel_um=pixel_um),
            parameters={"scale": scale, "mpp_given": self.target.source_mpp},
            notes=tuple(notes),
        )


def _interpolated(alpha: Pixels, out_size: Size) -> Pixels:
    """An alpha plane h w at another size."""
    top = np.iinfo(alpha.dtype).max
    plane = torch.from_numpy(alpha.astype(np.float32) / top)[None, None]
    return rounded(bicubic_on(plane, Lattice.of(out_size))[0, 0].numpy(), 8 * alpha.dtype.itemsize)
