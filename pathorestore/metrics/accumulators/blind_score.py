"""Scores that need no clean image as torchmetrics."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pathorestore.metrics.accumulators.mean import OneMean


class BlindScore(OneMean):
    """Mean over images of a score without reference, such as CLIP-IQA's.

    score: images b c h w in [0, 1] -> b; it is called without gradients only if it takes care of that itself. higher_is_better: which way
    it points; None where neither end is good.
    """

    def __init__(self, *, score: Callable[[Tensor], Tensor], higher_is_better: bool | None = True, **options: Any) -> None:
        super().__init__(**options)
        self.score = score
        self.points_up = higher_is_better

    @property
    def higher_is_better(self) -> bool | None:
        """Which way the score points."""
        return self.points_up

    def update(self, restored: Tensor) -> None:
        """Add images b c h w in [0, 1]. Raises ValueError where the score gives anything but one number an image."""
        scores = self.score(restored).detach()
        if scores.shape != (len(restored),):
            raise ValueError(f"the score gave {tuple(scores.shape)} for {len(restored)} images; expected one number an image")
        self.add(scores)
