"""One file made larger: read, enlarge, write with the new size of its pixels and the record of how."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from pathorestore.nn.implicit import Lattice, bicubic_on
from pathorestore.pipelines.batch import Job
from pathorestore.pipelines.caption import captioned
from pathorestore.pipelines.enlarge import Enlargement, Pieces, Size, enlarged, target_size
from pathorestore.pipelines.image_file import ImageFile, check_size_for
from pathorestore.pipelines.image_work import ImageWork, Made
from pathorestore.pipelines.provenance import ENLARGED_NOTICE
from pathorestore.pipelines.raster import ImageFileError, Pixels, rounded
from pathorestore.pipelines.restorer import Progress, silent

MEASURED_SCALE = 8.0
"""Beyond it nothing was measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UpscaleFile(ImageWork):
    """Enlarges image files; the output's pixels are finer by as much. target: how large. device: where the pieces are made.

    knows_compression: whether JPEG was in what the model learned from. captions: the first that fits is drawn into a corner of the output.
    """

    pieces: Pieces
    target: Enlargement
    device: str = "cpu"
    progress: Progress = silent
    notice: str = ENLARGED_NOTICE
    knows_compression: bool = False
    captions: tuple[str, ...] = ()

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
        image = enlarged(self.pieces.seen(given.image), given.image, out_size, device=self.device, progress=self.progress)
        image, caption, box = captioned(image, self.captions)
        pixel_um = self.target.pixel_um(given.pixel_um, size, out_size)
        alpha = None if given.alpha is None else _interpolated(given.alpha, out_size)
        if alpha is not None and caption:
            alpha[box] = np.iinfo(alpha.dtype).max  # nothing hides the caption
        notes = [] if pixel_um else ["the file does not say how large a pixel is, so neither does the output; --source-mpp would"]
        if given.format == "JPEG" and not self.knows_compression:
            notes.append("the file is compressed, and what that did to it is enlarged too; bicubic interpolation may be nearer")
        if self.captions and not caption:
            notes.append("the image is too small for a caption; its record and its name alone say what it is")
        if scale > MEASURED_SCALE:
            notes.append(f"nothing was measured beyond x{MEASURED_SCALE:g}, and this is x{scale:.3g}")
        return Made(
            image=image,
            like=replace(given, image=image, alpha=alpha, pixel_um=pixel_um),
            parameters={"scale": scale, "mpp_given": self.target.source_mpp} | ({"caption": caption} if caption else {}),
            notes=tuple(notes),
        )


def _interpolated(alpha: Pixels, out_size: Size) -> Pixels:
    """An alpha plane h w at another size."""
    top = np.iinfo(alpha.dtype).max
    plane = torch.from_numpy(alpha.astype(np.float32) / top)[None, None]
    return rounded(bicubic_on(plane, Lattice.of(out_size))[0, 0].numpy(), 8 * alpha.dtype.itemsize)
