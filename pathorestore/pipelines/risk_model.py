"""From what speaks against a pixel to the error that it is expected to have: a product of powers and a curve, a handful of numbers in JSON.

score = sum over the signals of exponent x log(signal + 0.1), and expected error = curve(score). Exponents are not negative and the curve
does not fall, so no signal that grows can make a pixel look safer.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pathorestore.atomic import write_atomic
from pathorestore.functional.pupil import Optics
from pathorestore.functional.trust import Signals
from pathorestore.hub_codec import ConfigError, decode, encode

RISK_FILE = "risk.json"
_FORMAT = 1
_REMEDY = "calibrate this model with benchmarks/calibrate_risk.py (docs/trust.md), or leave the risk map out"
_FLOOR = 0.1  # of a grey level, or of a um: below it a signal says nothing
# shares of the pixels between which the curve has its knots; closer where risks are high, since those are looked at
_KNOTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995, 1.0)
_SHRINK = 1.0
_LARGEST = 1e6  # no number of a model is anywhere near it, and none up to it overflows


@dataclass(frozen=True, kw_only=True)
class SignalSettings:
    """How signals are measured.

    window_px: standard deviation of the Gaussian that they are smoothed with. contrast: what the blur passes with less than this share
    counts as hidden. optics: the objective that the blur is computed for, on the grid of the restorer.
    """

    window_px: float = 4.0
    contrast: float = 0.1
    optics: Optics = field(default_factory=Optics)

    def __post_init__(self) -> None:
        if not 0 < self.window_px <= _LARGEST or not 0 < self.contrast < 1:
            raise ValueError(f"window_px={self.window_px} must be positive and contrast={self.contrast} in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class RiskModel:
    """The expected error of one way to restore.

    steps: of the generative stage that it was fitted for, 0 for none. settings: of the signals. exponents: of each signal, by its name in
    `Signals`; one that is not named is not used. scores, errors: knots of the curve, scores rising, errors (grey levels of 255) not
    falling; beyond its ends the curve is level. Raises ValueError for numbers that would break these laws.
    """

    steps: int
    settings: SignalSettings = field(default_factory=SignalSettings)
    exponents: dict[str, float]
    scores: tuple[float, ...]
    errors: tuple[float, ...]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.exponents) - set(Signals._fields))
        if unknown or not self.exponents:
            raise ValueError(f"exponents name {', '.join(unknown) or 'nothing'}; expected some of {', '.join(Signals._fields)}")
        if not all(abs(number) <= _LARGEST for number in (*self.exponents.values(), *self.scores, *self.errors)):  # NaN is not, either
            raise ValueError(f"exponents, scores and errors must be finite numbers of at most {_LARGEST:g}, got {self}")
        if min(self.exponents.values()) < 0:
            raise ValueError(f"exponents must not be negative, got {self.exponents}: no signal may make a pixel look safer")
        if len(self.scores) != len(self.errors) or len(self.scores) < 2:
            raise ValueError(f"{len(self.scores)} scores and {len(self.errors)} errors make no curve; expected at least 2 of each")
        if not (_rises(self.scores, strictly=True) and _rises(self.errors, strictly=False) and self.errors[0] >= 0):
            raise ValueError("scores must rise, errors must not fall or be negative")

    @property
    def needs_spread(self) -> bool:
        """Whether the restorer has to be run for several seeds."""
        return self.exponents.get("spread", 0) > 0

    def expected_error(self, signals: Signals) -> Tensor:
        """Expected absolute error b 1 h w in grey levels of 255, the mean over the colours and the window."""
        score = sum(
            (power * torch.log(getattr(signals, name) + _FLOOR) for name, power in self.exponents.items()),
            start=torch.zeros_like(signals.residual),
        )
        return _interpolate(score, self.scores, self.errors)


@dataclass(frozen=True, kw_only=True)
class RiskModels:
    """What lies as risk.json beside a restorer's weights: one model for each way to restore. weights_sha256: of the weights it is about."""

    weights_sha256: str
    models: tuple[RiskModel, ...]

    def for_steps(self, steps: int) -> RiskModel:
        """The model fitted for so many steps of the generative stage. Raises ValueError with those that there are."""
        for model in self.models:
            if model.steps == steps:
                return model
        known = ", ".join(str(model.steps) for model in self.models)
        raise ValueError(f"the risk of restoring with {steps} steps was never calibrated, only with {known} (0: --coarse-only)")

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write risk.json into a folder of weights, whole or not at all; returns its path."""
        path = Path(folder) / RISK_FILE
        content = {"format_version": _FORMAT, "risk": encode(self, where="risk")}
        write_atomic(path, (json.dumps(content, indent=1) + "\n").encode("ascii"))
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, weights_sha256: str | None = None, remedy: str = _REMEDY) -> Self:
        """Read risk.json of a folder of weights. weights_sha256: those that are in use. remedy: what to do where it does not fit.

        Raises ValueError, saying what to do, if there is none or it was calibrated for other weights, ConfigError if it holds anything but
        exactly these fields.
        """
        path = Path(folder) / RISK_FILE
        if not path.is_file():
            raise ValueError(f"{folder} holds no {RISK_FILE}, so nothing is known of its errors; {remedy}")
        models = decode(cls, _content(path), where=f"{path}: risk")
        if weights_sha256 not in (None, models.weights_sha256):
            raise ValueError(f"{path} was calibrated for other weights ({models.weights_sha256[:12]}, not {weights_sha256[:12]}); {remedy}")
        return models


def fit_risk(features: Mapping[str, Tensor], error: Tensor, *, steps: int, settings: SignalSettings) -> RiskModel:
    """Fit a model to the true local error n (grey levels) of n pixels and their signals, each n, by name.

    Exponents by ridge regression of log(error + 0.1) on the logarithms of the signals, each scaled to unit deviation, none negative; the
    ridge is as heavy as the data, so that signals that say the same share the work. The curve then goes through the mean error of groups
    of pixels with like scores, made monotone. Raises ValueError for fewer than 100 pixels, or if no signal rises with the error.
    Sources: Hoerl & Kennard, Technometrics 12 (1970) 55-67; Lawson & Hanson, Solving Least Squares Problems (1974), ch. 23; Barlow et
    al., Statistical Inference under Order Restrictions (1972).
    """
    from scipy.optimize import nnls

    if len(error) < 100:
        raise ValueError(f"{len(error)} pixels are too few to fit a model of risk to; expected at least 100")
    logs = torch.stack([torch.log(values.double() + _FLOOR) for values in features.values()], 1)
    deviation = logs.std(dim=0).clamp(min=1e-9)
    unit = (logs - logs.mean(0)) / deviation
    target = torch.log(error.double() + _FLOOR)
    gram = unit.T @ unit / len(unit) + _SHRINK * torch.eye(unit.shape[1], dtype=torch.float64)
    moment = unit.T @ (target - target.mean()) / len(unit)
    # min b'Gb - 2 b'm is least squares with the Cholesky factor of G
    factor = torch.linalg.cholesky(gram)
    right = torch.linalg.solve_triangular(factor, moment[:, None], upper=False)[:, 0]
    found, _ = nnls(factor.T.numpy(), right.numpy())
    powers = [round(float(value), 4) for value in torch.from_numpy(found) / deviation]
    if not any(powers):
        raise ValueError("no signal rises with the error, so nothing can be predicted from them; fit to more, or to other, images")
    score = logs @ torch.tensor(powers, dtype=torch.float64)
    scores, errors = _curve(score, error.double())
    return RiskModel(steps=steps, settings=settings, exponents=dict(zip(features, powers, strict=True)), scores=scores, errors=errors)


def _curve(score: Tensor, error: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots at the mean score and mean error of groups of pixels in order of their score, the errors made monotone."""
    from scipy.optimize import isotonic_regression

    order = score.argsort(stable=True)
    edges = [round(share * len(order)) for share in _KNOTS]
    groups = [order[low:high] for low, high in pairwise(edges) if high > low]  # of few pixels 0.5 % are none
    centres = [round(float(score[group].mean()), 5) for group in groups]
    means = [float(error[group].mean()) for group in groups]
    smooth = isotonic_regression(means, weights=[len(group) for group in groups]).x
    knots = {centre: round(float(level), 4) for centre, level in zip(centres, smooth, strict=True)}  # of equal centres the last
    return tuple(knots), tuple(knots.values())


def _interpolate(score: Tensor, scores: tuple[float, ...], errors: tuple[float, ...]) -> Tensor:
    """Piecewise linear through the knots, level beyond them; in float64, in which knots that differ stay apart."""
    at, level = (torch.tensor(knots, dtype=torch.float64, device=score.device) for knots in (scores, errors))
    inside = score.double().clamp(scores[0], scores[-1])
    upper = torch.searchsorted(at, inside.contiguous()).clamp(1, len(scores) - 1)
    share = (inside - at[upper - 1]) / (at[upper] - at[upper - 1])
    return torch.lerp(level[upper - 1], level[upper], share.clamp(0, 1)).to(score.dtype)


def _rises(values: tuple[float, ...], *, strictly: bool) -> bool:
    return all(after > before if strictly else after >= before for before, after in pairwise(values))


def _content(path: Path) -> Any:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); expected what benchmarks/calibrate_risk.py writes") from error
    if not isinstance(stored, dict) or stored.keys() != {"format_version", "risk"} or stored["format_version"] != _FORMAT:
        raise ConfigError(f"{path} is no file of format_version {_FORMAT} with the keys format_version and risk; calibrate anew")
    return stored["risk"]
