"""Embedding similarity as a torchmetric."""

from typing import Any

from torch import Tensor

from pathorestore.metrics.accumulators.mean import OneMean
from pathorestore.metrics.embedding import ImageEncoder, embedding_similarity


class EmbeddingSimilarity(OneMean):
    """Mean over images of `embedding.embedding_similarity` by a given encoder, resized to `side_px`."""

    higher_is_better = True

    def __init__(self, encoder: ImageEncoder, *, side_px: int | None = 224, **options: Any) -> None:
        super().__init__(**options)
        self.encoder, self.side_px = encoder, side_px

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b 3 h w in [0, 1]."""
        self.add(embedding_similarity(restored, clean, self.encoder, side_px=self.side_px))
