"""BRISQUE: the scene statistics of an image, mapped to a score by a regression on simulated degradations of sharp histology."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pathorestore.metrics.availability import Availability
from pathorestore.metrics.scene_parameters import FitFacts, ParameterError, parameters_available, read_parameters, write_parameters
from pathorestore.metrics.scene_statistics import FEATURES, image_features, luminance_levels

WORST = 100.0

_NAME = "brisque"
_WIDTHS = (1.0, 2.0, 4.0, 8.0)
_PENALTIES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_CENTRES = 512
_FOLDS = 5
_JITTER = 1e-10


@dataclass(frozen=True, kw_only=True)
class BrisqueConfig:
    """What is stored beside the numbers.

    width: of the kernel, in scaled features. penalty: of the ridge, chosen with the width by cross-validation. offset: the score far from
    all centres. fit: where they come from.
    """

    width: float
    penalty: float
    offset: float
    fit: FitFacts

    def __post_init__(self) -> None:
        if self.width <= 0 or self.penalty <= 0:
            raise ValueError(f"width={self.width} and penalty={self.penalty} must be positive")


@dataclass(frozen=True, kw_only=True, eq=False)
class BrisqueParameters:
    """The regression: range of each feature in the fit, low and high 36; centres n 36 in scaled features; their coefficients n."""

    low: Tensor
    high: Tensor
    centres: Tensor
    coefficients: Tensor
    config: BrisqueConfig

    def __post_init__(self) -> None:
        shapes = tuple(tuple(tensor.shape) for tensor in (self.low, self.high, self.centres, self.coefficients))
        count = len(self.centres)
        expected = ((FEATURES,), (FEATURES,), (count, FEATURES), (count,))
        if shapes != expected or not count:
            raise ParameterError(f"BRISQUE parameters have shapes {shapes}; expected {expected} with at least one centre")


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What the regression is fitted to: features n 36, scores n in 0..100, weights n, and the group of each, which is never torn apart."""

    features: Tensor
    scores: Tensor
    weights: Tensor
    groups: Sequence[str]


def brisque(image: Tensor, parameters: BrisqueParameters | None = None) -> Tensor:
    """The score of each image, b in float64: 0 is as sharp histology, 100 as the worst degradation of the fit. NaN for flat images.

    image: b 3 h w in [0, 1], at least 32 px a side. parameters: None for the embedded ones.
    The features are those of the paper; where it takes an epsilon support vector regression on observers' opinions, this is a kernel ridge
    regression on levels of simulated degradation, which is solved in closed form. The values compare with no other BRISQUE.
    Raises ValueError for smaller images, FileNotFoundError without parameters.
    Source: Mittal, Moorthy, Bovik, IEEE Trans. Image Process. 21 (2012) 4695-4708.
    """
    return score(image_features(luminance_levels(image)), parameters or _embedded())


def score(features: Tensor, parameters: BrisqueParameters) -> Tensor:
    """The scores n in 0..100 of features n 36. Features beyond the range of the fit are taken as at its end."""
    centres, coefficients = parameters.centres.to(features), parameters.coefficients.to(features)
    scaled = _scaled(features, parameters.low.to(features), parameters.high.to(features))
    return (_kernel(scaled, centres, parameters.config.width) @ coefficients + parameters.config.offset).clamp(0, WORST)


def fit_brisque(samples: Samples, *, fit: FitFacts, seed: int, centres: int = _CENTRES) -> BrisqueParameters:
    """Fit the regression; width and penalty are those of the least squared error in a cross-validation over groups.

    centres: with more samples than these, the solution is sought in the span of so many of them, drawn at random.
    Raises ValueError for fewer than two groups or samples that are not finite.
    Source: Saunders, Gammerman, Vovk, ICML 1998 (kernel ridge); Smola & Schoelkopf, ICML 2000 (fewer centres).
    """
    folds = _folds(samples.groups, seed)
    if not (samples.features.isfinite().all() and samples.scores.isfinite().all()):
        raise ValueError("features and scores must be finite; leave flat images out")
    low, high = samples.features.amin(dim=0), samples.features.amax(dim=0)
    rows = _scaled(samples.features, low, high)
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:centres]
    # rounded before they are used, so that half the bytes say all there is
    chosen = rows[drawn].float().double()
    offset = (samples.weights @ samples.scores / samples.weights.sum()).item()
    target = samples.scores - offset
    width, penalty = _best(rows, target, samples.weights, chosen, folds)
    coefficients = _solved(_kernel(rows, chosen, width), target, samples.weights, _kernel(chosen, chosen, width), (penalty,))[:, 0]
    config = BrisqueConfig(width=width, penalty=penalty, offset=offset, fit=fit)
    return BrisqueParameters(low=low, high=high, centres=chosen.float(), coefficients=coefficients, config=config)


def save_parameters(parameters: BrisqueParameters, folder: Path) -> tuple[Path, Path]:
    """Write brisque.safetensors and brisque.json into a folder and return their paths. Raises OSError."""
    tensors = {name: getattr(parameters, name) for name in _AXES}
    return write_parameters(folder, _NAME, tensors, parameters.config)


def load_parameters(folder: Path | None = None) -> BrisqueParameters:
    """The parameters in a folder, None for the embedded ones. Raises FileNotFoundError and ParameterError with the remedy."""
    tensors, config = read_parameters(folder, _NAME, BrisqueConfig, _AXES)
    return BrisqueParameters(**tensors, config=config)


def available(folder: Path | None = None) -> Availability:
    """Whether parameters are in a folder, None for the embedded ones."""
    return parameters_available(folder, _NAME)


_AXES = {"low": 1, "high": 1, "centres": 2, "coefficients": 1}


@cache
def _embedded() -> BrisqueParameters:
    return load_parameters()


def _scaled(features: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Features on [-1, 1]; what is worse than all that was seen looks like the worst, else it would drift back to the mean score."""
    span = torch.where(high > low, high - low, torch.ones_like(low))
    return (2 * (features - low) / span - 1).clamp(-1, 1)


def _kernel(rows: Tensor, centres: Tensor, width: float) -> Tensor:
    """exp(-|x - z|^2 / (2 width^2)), n m."""
    return torch.exp(-torch.cdist(rows, centres, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * width**2))


def _solved(kernel: Tensor, target: Tensor, weights: Tensor, gram: Tensor, penalties: Sequence[float]) -> Tensor:
    """Coefficients m p that minimise sum_i w_i (k_i a - t_i)^2 + penalty sum(w) a^T G a, a column for each penalty."""
    weighted = kernel.T * weights
    normal, right = weighted @ kernel, weighted @ target
    jitter = _JITTER * torch.eye(len(gram), dtype=gram.dtype)
    columns = [torch.linalg.solve(normal + penalty * weights.sum() * (gram + jitter), right) for penalty in penalties]
    return torch.stack(columns, dim=-1)


def _best(rows: Tensor, target: Tensor, weights: Tensor, centres: Tensor, folds: Tensor) -> tuple[float, float]:
    """Width and penalty of the least weighted squared error over the folds."""
    errors: dict[tuple[float, float], float] = {}
    for width in _WIDTHS:
        kernel, gram = _kernel(rows, centres, width), _kernel(centres, centres, width)
        total = torch.zeros(len(_PENALTIES), dtype=rows.dtype)
        for fold in range(int(folds.max()) + 1):
            left_out = folds == fold
            inside = ~left_out
            found = _solved(kernel[inside], target[inside], weights[inside], gram, _PENALTIES)
            missed = kernel[left_out] @ found - target[left_out, None]
            total += weights[left_out] @ missed.square()
        errors |= {(width, penalty): error for penalty, error in zip(_PENALTIES, total.tolist(), strict=True)}
    return min(errors, key=lambda pair: errors[pair])


def _folds(groups: Sequence[str], seed: int) -> Tensor:
    """The fold of each sample; samples of one group share theirs."""
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError(f"{len(names)} group of images is too few for a cross-validation; fit on images of two patients or more")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    fold = {names[index]: place % _FOLDS for place, index in enumerate(order)}
    return torch.tensor([fold[name] for name in groups])
