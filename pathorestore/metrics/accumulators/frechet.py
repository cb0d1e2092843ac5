"""The Frechet distance as a torchmetric."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathorestore._torchvision import ensure_torchvision
from pathorestore.metrics.frechet import INDICATIVE_BELOW, Moments, frechet_distance_of_moments

ensure_torchvision()
from torchmetrics import Metric  # noqa: E402  it imports torchvision where that is installed


class FrechetDistance(Metric):  # type: ignore[misc]
    """`frechet.frechet_distance` between the features of all restored and all clean images; NaN before the second image.

    features: images b 3 h w -> b dim, such as `frechet.InceptionFeatures()` (that is FID) or `embedding.WholeImage(encoder)`.
    dim: their width. Keeps sums of d d in double precision, never the features themselves.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(self, features: Callable[[Tensor], Tensor], *, dim: int, **options: Any) -> None:
        super().__init__(**options)
        if dim < 1:
            raise ValueError(f"dim={dim} must be the width of the features, at least 1")
        self.features, self.dim = features, dim
        self.add_state("images", default=torch.tensor(0), dist_reduce_fx="sum")
        # restored, then clean
        self.add_state("totals", default=torch.zeros(2, dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", default=torch.zeros(2, dim, dim, dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def indicative(self) -> bool:
        """Whether there are so few images that the distance is indicative only."""
        return int(self.images) < INDICATIVE_BELOW

    def update(self, restored: Tensor, clean: Tensor) -> None:
        """Add images b 3 h w in [0, 1]. Raises ValueError if their numbers differ or the features are not b dim."""
        if len(restored) != len(clean):
            raise ValueError(f"{len(restored)} restored images came with {len(clean)} clean ones; expected as many of both")
        both = torch.stack([self._vectors(image) for image in (restored, clean)])
        self.images += len(restored)
        self.totals += both.sum(dim=1)
        self.products += both.transpose(1, 2) @ both

    def compute(self) -> Tensor:
        """The squared distance so far, float64."""
        count = int(self.images)
        if count < 2:
            return self.totals.new_tensor(torch.nan)
        means = self.totals / count
        covariances = (self.products - count * means[:, :, None] * means[:, None]) / (count - 1)
        return frechet_distance_of_moments(*(Moments(*one) for one in zip(means, covariances, strict=True)))

    def _vectors(self, image: Tensor) -> Tensor:
        vectors = self.features(image)
        if vectors.shape != (len(image), self.dim):
            raise ValueError(f"features are of shape {tuple(vectors.shape)}; expected {(len(image), self.dim)}: dim must be their width")
        return vectors.detach().double()
