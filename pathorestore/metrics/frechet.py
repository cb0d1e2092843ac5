"""How far the distribution of restored images lies from that of clean ones, in the features of some encoder (FID with Inception's)."""

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pathorestore._torchvision import ensure_torchvision
from pathorestore.metrics.availability import Availability
from pathorestore.metrics.cached_weights import cached_file, check_tensors, require, weights_available

INDICATIVE_BELOW = 2048
"""Distances of fewer images than this are indicative only: the estimate is biased upwards, the more the fewer the images."""

_INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


class Moments(NamedTuple):
    """The Gaussian that describes a set of features. mean: d. covariance: d d, unbiased. Both in double precision."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Moments of features n d. Raises ValueError for fewer than two rows or another shape."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features of shape {tuple(features.shape)} have no covariance; expected n d with at least n = 2 images")
        rows = features.detach().double()
        mean = rows.mean(dim=0)
        return cls(mean, (rows - mean).T @ (rows - mean) / (len(rows) - 1))


def frechet_distance(features: Tensor, other_features: Tensor) -> Tensor:
    """Squared Frechet distance of two sets of features n d and m d, each taken as a Gaussian; a float64 scalar, 0 for equal sets.

    Raises ValueError if the widths differ or a set has fewer than two rows. See `INDICATIVE_BELOW`.
    Source: Dowson & Landau, J. Multivariate Anal. 12 (1982) 450-455, eq. 4; Heusel et al., NeurIPS 2017, eq. 6.
    """
    return frechet_distance_of_moments(Moments.of(features), Moments.of(other_features))


def frechet_distance_of_moments(first: Moments, second: Moments) -> Tensor:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), a float64 scalar. Raises ValueError if the widths differ. NaN gives NaN."""
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features are {len(first.mean)} and {len(second.mean)} wide; expected both from the same encoder")
    everything = torch.cat([part.flatten() for part in (*first, *second)])
    if not everything.isfinite().all():
        return everything.new_tensor(torch.nan)
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # C1 C2 has the eigenvalues of this symmetric matrix, whose own are real and found more accurately
    shared = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * shared
    return ((first.mean - second.mean).square().sum() + spread).clamp(min=0)


class InceptionFeatures:
    """The 2048 pooled features of the Inception network that FID is defined by, through torchmetrics and torch-fidelity.

    Its weights are neither shipped nor downloaded: a user puts the file into torch's cache.
    Source: Heusel et al., NeurIPS 2017; the network is TensorFlow's of 2015-12-05.
    """

    dim = 2048

    def __init__(self) -> None:
        self._network: nn.Module | None = None

    def available(self) -> Availability:
        """Whether torch-fidelity and its weights are here. Never reaches for the network."""
        if find_spec("torch_fidelity") is None:
            return Availability(ok=False, reason="torch-fidelity is not installed; install it with: pip install torch-fidelity")
        return weights_available(_INCEPTION_URL, name="the Inception weights")

    def __call__(self, image: Tensor) -> Tensor:
        """Features b 2048 of images b 3 h w on the scale [0, 1], rounded to 8 bit and resized to 299 px, bilinear and antialiased.

        Raises RuntimeError with the remedy if they are not available.
        """
        if self._network is None:
            require("FID", self.available())
            file = cached_file(_INCEPTION_URL)
            check_tensors(file)
            ensure_torchvision()
            from torchmetrics.image.fid import NoTrainInceptionV3

            self._network = NoTrainInceptionV3("inception-v3-compat", [str(self.dim)], feature_extractor_weights_path=str(file))
        levels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
        with torch.no_grad():
            return self._network.to(image.device)(levels)
