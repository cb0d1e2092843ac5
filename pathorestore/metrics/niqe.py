"""NIQE: how far the scene statistics of an image lie from those of sharp histology. No reference, no opinions of observers."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pathorestore.metrics.availability import Availability
from pathorestore.metrics.scene_parameters import FitFacts, ParameterError, parameters_available, read_parameters, write_parameters
from pathorestore.metrics.scene_statistics import FEATURES, PatchFeatures, luminance_levels, patch_features

PATCH_PX = 96
SHARPNESS = 0.75

_NAME = "niqe"
_LEAST_PATCHES = FEATURES + 1  # fewer leave directions in which nothing is known of the covariance


@dataclass(frozen=True, kw_only=True)
class NiqeConfig:
    """What is stored beside the numbers.

    patch_px: side of the patches. sharpness: patches above this share of the largest of their image were taken for the pristine model (T of
    the paper). fit: where they come from.
    """

    patch_px: int
    sharpness: float
    fit: FitFacts

    def __post_init__(self) -> None:
        if self.patch_px % 2 or self.patch_px < 32 or not 0 <= self.sharpness < 1:
            raise ValueError(f"patch_px={self.patch_px} must be even and >= 32, sharpness={self.sharpness} in [0, 1)")


@dataclass(frozen=True, kw_only=True, eq=False)
class NiqeParameters:
    """The multivariate Gaussian of sharp images: mean 36, covariance 36 36, both float64."""

    mean: Tensor
    covariance: Tensor
    config: NiqeConfig

    def __post_init__(self) -> None:
        if self.mean.shape != (FEATURES,) or self.covariance.shape != (FEATURES, FEATURES):
            got = f"mean {tuple(self.mean.shape)} and covariance {tuple(self.covariance.shape)}"
            raise ParameterError(f"NIQE parameters hold {got}; expected ({FEATURES},) and ({FEATURES}, {FEATURES})")


def niqe(image: Tensor, parameters: NiqeParameters | None = None) -> Tensor:
    """The distance of each image from sharp histology, b in float64; 0 is best. NaN where fewer than two patches are not flat.

    image: b 3 h w in [0, 1], on which at least two patches (96 px) must fit. parameters: None for the embedded ones.
    The fewer patches an image has, the larger its value, so compare images of one size.
    Raises ValueError for smaller images, FileNotFoundError without parameters.
    Source: Mittal, Soundararajan, Bovik, IEEE Signal Process. Lett. 20 (2013) 209-212, eq. 10, with the features of BRISQUE.
    """
    known = parameters or _embedded()
    patches = patch_features(luminance_levels(image), patch_px=known.config.patch_px).features
    return torch.stack([distance(rows, known) for rows in patches]) if len(patches) else patches.new_zeros(0)


def distance(patches: Tensor, parameters: NiqeParameters) -> Tensor:
    """The distance of one image from its patches n 36, a scalar; rows that are not finite are left out, fewer than two others give NaN."""
    rows = patches[patches.isfinite().all(dim=-1)]
    if len(rows) < 2:
        return patches.new_tensor(torch.nan)
    return gaussian_distance(parameters.mean.to(rows), parameters.covariance.to(rows), rows.mean(dim=0), rows.T.cov())


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """sqrt((m1 - m2)^T ((S1 + S2) / 2)^+ (m1 - m2)) of two multivariate Gaussians; + is the pseudo-inverse. 0 for equal means."""
    difference = mean - other_mean
    inverse = torch.linalg.pinv((covariance + other_covariance) / 2, hermitian=True)
    return (difference @ inverse @ difference).clamp(min=0).sqrt()


def pristine_patches(image: Tensor, *, patch_px: int = PATCH_PX, sharpness: float = SHARPNESS) -> Tensor:
    """The patches n 36 of one sharp image 1 3 h w that enter the pristine model: those with more than `sharpness` of its largest sharpness.

    Raises ValueError for images on which fewer than two patches fit.
    """
    return sharp_rows(patch_features(luminance_levels(image), patch_px=patch_px), sharpness)


def sharp_rows(patches: PatchFeatures, sharpness: float) -> Tensor:
    """The features n 36 of the patches of all images whose sharpness exceeds a share of the largest of their own image; flat ones never."""
    chosen = patches.sharpness > sharpness * patches.sharpness.amax(dim=1, keepdim=True)
    return patches.features[chosen & patches.features.isfinite().all(dim=-1)]


def fit_niqe(patches: Tensor, config: NiqeConfig) -> NiqeParameters:
    """The Gaussian of the chosen patches n 36 of all sharp images. Raises ValueError for 36 patches or fewer."""
    if len(patches) < _LEAST_PATCHES:
        raise ValueError(
            f"{len(patches)} sharp patches of {config.patch_px} px are too few for NIQE, at least {_LEAST_PATCHES} are needed; "
            "use more or larger images"
        )
    return NiqeParameters(mean=patches.mean(dim=0), covariance=patches.T.cov(), config=config)


def save_parameters(parameters: NiqeParameters, folder: Path) -> tuple[Path, Path]:
    """Write niqe.safetensors and niqe.json into a folder and return their paths. Raises OSError."""
    tensors = {"mean": parameters.mean, "covariance": parameters.covariance}
    return write_parameters(folder, _NAME, tensors, parameters.config)


def load_parameters(folder: Path | None = None) -> NiqeParameters:
    """The parameters in a folder, None for the embedded ones. Raises FileNotFoundError and ParameterError with the remedy."""
    tensors, config = read_parameters(folder, _NAME, NiqeConfig, {"mean": 1, "covariance": 2})
    return NiqeParameters(**tensors, config=config)


def available(folder: Path | None = None) -> Availability:
    """Whether parameters are in a folder, None for the embedded ones."""
    return parameters_available(folder, _NAME)


@cache
def _embedded() -> NiqeParameters:
    return load_parameters()
