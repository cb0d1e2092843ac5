"""Pictures of how a stage is doing: a labelled grid after every validation, and the colours of defocus heat maps."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from pathorestore.atomic import write_atomic
from pathorestore.image import to_uint8
from pathorestore.pipelines.contact_sheet import colour_ramp

if TYPE_CHECKING:
    from PIL.Image import Image

_GAP_PX, _HEADER_PX, _TEXT_PX, _BAR_PX = 4, 22, 13, 12
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_UNKNOWN = 0.5  # gray, a colour that the ramp does not hold


class PictureGrid(pl.Callback):
    """Draws `stage.pictures(batch)` of the first validation batch: one column a name, one row an image.

    every_n_validations: how often. images: rows at most. The grid goes to `<log_dir>/pictures/step_000400.png` (validation.png outside
    fit), and to TensorBoard where that is a logger. It shows the weights that are validated: the average, under `ExponentialAverage`.
    A stage may say which columns are heat maps of a distance by an attribute `legends_um`, names to the top of their scale in um; they
    get a colour bar. The first process draws, alone.
    """

    def __init__(self, every_n_validations: int = 1, images: int = 8):
        super().__init__()
        if every_n_validations < 1 or images < 1:
            raise ValueError(f"every_n_validations and images must be at least 1; got {every_n_validations} and {images}")
        self.every_n_validations, self.images = every_n_validations, images
        self._validations = 0
        self._folder = Path()
        self._columns: dict[str, Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ask for the folder now, since all processes must ask together."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "pictures"

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Make the pictures of the first batch while the weights under validation are in place."""
        due = self._validations % self.every_n_validations == 0
        if batch_idx or dataloader_idx or not due or trainer.sanity_checking or not trainer.is_global_zero:
            return
        with trainer.precision_plugin.val_step_context():
            pictures = pl_module.pictures(_first(batch, self.images))  # type: ignore[operator]
        self._columns = {name: images.detach().float().cpu() for name, images in pictures.items()}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw and hand out the grid."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        columns, self._columns = self._columns, {}
        if not columns:
            return
        grid = draw_grid(columns, legends_um=getattr(pl_module, "legends_um", {}))
        # outside fit, Lightning does not know the step of the weights
        name = f"step_{trainer.global_step:06d}" if trainer.state.fn == TrainerFn.FITTING else "validation"
        write_atomic(self._folder / f"{name}.png", _png(grid))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                pixels = torch.frombuffer(bytearray(grid.tobytes()), dtype=torch.uint8).reshape(grid.height, grid.width, 3)
                logger.experiment.add_image("pictures", pixels, trainer.global_step, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were, so that a resumed run draws at the same ones."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the count."""
        self._validations = int(state_dict["validations"])


def heat_colours(distance_um: Tensor, *, top_um: float) -> Tensor:
    """Colours b 3 h w for distances to focus b 1 h w: dark blue in focus, over green, to yellow at `top_um` and beyond, on either side.

    The lightness (CIE L*) rises evenly with the distance, so that equal differences look equal and a gray copy reads the same. What is
    not finite is gray. Raises ValueError unless top_um is positive and the shape fits.
    """
    if not 0 < top_um < float("inf"):
        raise ValueError(f"top_um must be a positive distance in um, got {top_um}")
    if distance_um.ndim != 4 or distance_um.shape[1] != 1:
        raise ValueError(f"distance_um has shape {tuple(distance_um.shape)}; expected b 1 h w")
    known = distance_um.isfinite()
    share = torch.where(known, distance_um.abs() / top_um, torch.zeros_like(distance_um)).float()
    return torch.where(known, colour_ramp(share.cpu()).to(distance_um.device), _UNKNOWN)


def draw_grid(columns: Mapping[str, Tensor], *, legends_um: Mapping[str, float] | None = None) -> "Image":
    """The grid of `columns` (name to images b 3 h w in [0, 1]), names on top, a colour bar below each column that `legends_um` names.

    Smaller pictures are enlarged to the largest height and width, by nearest neighbour. Raises ValueError for no columns, and for columns
    of different lengths or which are no RGB images.
    """
    from PIL import Image, ImageDraw, ImageFont

    legends = {name: top_um for name, top_um in (legends_um or {}).items() if name in columns}
    rows = _rows(columns)
    height, width = (max(images.shape[side] for images in columns.values()) for side in (2, 3))
    font = ImageFont.load_default(_TEXT_PX)
    # a name is never cut: narrow pictures stand in wide columns
    step_x = max(width, *(round(font.getlength(name)) for name in columns)) + _GAP_PX
    footer_px = _BAR_PX + _HEADER_PX if legends else 0
    size = (_GAP_PX + len(columns) * step_x, _HEADER_PX + rows * (height + _GAP_PX) + footer_px)
    grid = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(grid)
    for column, (name, images) in enumerate(columns.items()):
        middle = _GAP_PX + column * step_x + (step_x - _GAP_PX) // 2
        left = middle - width // 2
        pen.text((middle, _HEADER_PX / 2), name, fill=_INK, font=font, anchor="mm")
        for row, picture in enumerate(F.interpolate(images.float(), (height, width), mode="nearest")):
            grid.paste(Image.fromarray(to_uint8(picture)), (left, _HEADER_PX + row * (height + _GAP_PX)))
        if name in legends:
            bar = heat_colours(torch.linspace(0, 1, width).expand(1, 1, _BAR_PX, width), top_um=1.0)
            grid.paste(Image.fromarray(to_uint8(bar)), (left, size[1] - footer_px))
            bottom = size[1] - _HEADER_PX / 2
            pen.text((left, bottom), "0", fill=_INK, font=font, anchor="lm")
            pen.text((left + width, bottom), f"{legends[name]:g} um", fill=_INK, font=font, anchor="rm")  # the font has no Greek
    return grid


def _rows(columns: Mapping[str, Tensor]) -> int:
    shapes = {name: tuple(images.shape) for name, images in columns.items()}
    if not shapes or any(len(shape) != 4 or shape[1] != 3 for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(f"pictures are of shapes {shapes}; expected b 3 h w with the same b in every column")
    return next(iter(shapes.values()))[0]


def _first(batch: Any, images: int) -> Any:
    """The first images of a batch, whatever it is made of."""
    if isinstance(batch, Tensor):
        return batch[:images]
    if isinstance(batch, Mapping):
        return {name: _first(item, images) for name, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_first(item, images) for item in batch))
    return type(batch)(_first(item, images) for item in batch) if isinstance(batch, list | tuple) else batch


def _png(picture: "Image") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
