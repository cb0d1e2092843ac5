"""What `pathorestore predict` writes: one PNG an image, beside the run."""

import io
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from pathorestore.atomic import write_atomic
from pathorestore.image import to_uint8


class WritePredictions(pl.Callback):
    """Writes predicted images b 3 h w in [0, 1] as 8-bit PNG into `folder`, by default `predictions` in the run's own folder.

    A file is named after its source image; where two sources share a name, the row's number comes before it. Whole slides and files of
    16 bits, with provenance, are `pathorestore restore`'s business.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write the images of a batch."""
        if not isinstance(outputs, Tensor):
            return
        folder = Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "predictions"
        names = self._names(trainer)
        for image, key in zip(outputs, batch.key.tolist(), strict=True):
            write_png(folder / f"{names[key] if key < len(names) else f'{key:06d}'}.png", image)

    @staticmethod
    def _names(trainer: pl.Trainer) -> list[str]:
        rows = trainer.datamodule.rows("test") if hasattr(trainer, "datamodule") and hasattr(trainer.datamodule, "rows") else ()
        stems = [PurePath(row.path).stem for row in rows]
        count = Counter(stems)
        return [stem if count[stem] == 1 else f"{index:06d}_{stem}" for index, stem in enumerate(stems)]


def write_png(path: Path, image: Tensor) -> None:
    """Write an image 3 h w in [0, 1] as an 8-bit PNG, whole or not at all."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())
