"""Fit the risk map of a generative upscaler to images that were made smaller, and measure on others whether it knows where the errors are.

    python benchmarks/calibrate_enlargement_risk.py --train TRAIN --val VAL --model MODEL --json out/risk.json --save MODEL

TRAIN is what the model of risk is fitted to: each image once, at x2, x3 and x4, blurred before and not, in turns. VAL is only measured,
every image at x2 and x4, not blurred. The central 128 px of TRAIN and VAL are what is drawn. --save writes the fitted risk.json.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from calibrate_risk import on_grid
from torch import Tensor
from tqdm import tqdm

from pathorestore.atomic import write_atomic
from pathorestore.data.sharp_crops import image_files
from pathorestore.degradations.resize import reduced
from pathorestore.evaluation.cases import central
from pathorestore.evaluation.results import jsonable
from pathorestore.functional.trust import Signals
from pathorestore.metrics.risk import rank_correlation, reliability, risk_coverage
from pathorestore.metrics.statistics import bootstrap_interval
from pathorestore.pipelines.enlarge import Enlargement, enlarged
from pathorestore.pipelines.enlargement_risk import DEFAULT_SEEDS, Samples, enlargement_signals
from pathorestore.pipelines.generate import GeneratedPieces
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.risk_model import RISK_FILE, RiskModel, RiskModels, SignalSettings, fit_risk
from pathorestore.pipelines.trust import local_error
from pathorestore.pipelines.upscalers import UpscaleOptions, ready_upscaler
from pathorestore.version import __version__

_CROP_PX = 128
_NAMES = [name for name in Signals._fields if name != "defocus_um"]
Drawn = tuple[str, Tensor, Tensor]
"""Name of an image, the small one and the clean one."""


class Sample(NamedTuple):
    """One image drawn: signals by name and true local error, each n, on a grid of pixels."""

    image: str
    signals: dict[str, Tensor]
    error: Tensor


def pairs(folder: Path, kinds: Sequence[tuple[float, float]], *, in_turns: bool, limit: int | None) -> Iterator[Drawn]:
    """The images of a folder, made smaller by (scale, blur): each by one of the kinds in turns, or by all of them."""
    for index, path in enumerate(tqdm(image_files(folder)[:limit])):
        sharp = central(read_image_file(path).image, _CROP_PX)
        for scale, blur in [kinds[index % len(kinds)]] if in_turns else kinds:
            small, clean = reduced(sharp, scale, blur=blur)
            yield path.name, small, clean


def measured(given: Iterator[Drawn], pieces: GeneratedPieces, settings: SignalSettings, *, seeds: int) -> list[Sample]:
    """Signals and errors of every pair; the image that is judged is of seed 0, the others of further seeds."""
    samples = []
    for name, small, clean in given:
        size, others = (clean.shape[-2], clean.shape[-1]), Samples()
        first = enlarged(pieces, small, size)
        for seed in range(1, seeds + 1):
            others.add(enlarged(replace(pieces, seed=seed), small, size))
        told = enlargement_signals(small, first, others.variance(), window_px=settings.window_px)
        error = local_error(first, clean, window_px=settings.window_px)
        samples.append(Sample(name, {key: on_grid(getattr(told, key)) for key in _NAMES}, on_grid(error)))
    return samples


def fitted(samples: Sequence[Sample], settings: SignalSettings, *, steps: int) -> RiskModel:
    """The model of risk of these samples."""
    features = {name: torch.cat([sample.signals[name] for sample in samples]) for name in _NAMES}
    return fit_risk(features, torch.cat([sample.error for sample in samples]), steps=steps, settings=settings)


def judged(samples: Sequence[Sample], model: RiskModel) -> dict[str, Any]:
    """How each signal and the risk made of them rank the errors, pooled and within images; coverage and reliability of the risk."""
    error = torch.cat([sample.error for sample in samples])
    ranks = {name: [sample.signals[name] for sample in samples] for name in _NAMES} | {"risk": [_risk(one, model) for one in samples]}
    groups, table = [sample.image for sample in samples], {}
    for name, values in ranks.items():
        within = [rank_correlation(value, sample.error) for value, sample in zip(values, samples, strict=True)]
        pooled = torch.cat(values)
        interval = bootstrap_interval(within, groups)
        table[name] = {
            "spearman_pooled": rank_correlation(pooled, error),
            "spearman_within": interval,
            "gain": risk_coverage(pooled, error).gain,
        }
    risk = torch.cat(ranks["risk"])
    bins = reliability(risk, error)
    return {
        "images": len(set(groups)),
        "pixels": len(error),
        "mean_error": error.mean().item(),
        "mean_expected": risk.mean().item(),
        "signals": table,
        "reliability": {name: values.tolist() for name, values in bins._asdict().items()},
    }


def _with_others(model: RiskModel, folder: Path, weights_sha256: str) -> RiskModels:
    """The model of risk beside those for other numbers of steps that the folder has for the same weights; of others none is kept."""
    stored = RiskModels.load(folder) if (folder / RISK_FILE).exists() else None
    kept = stored.models if stored is not None and stored.weights_sha256 == weights_sha256 else ()
    return RiskModels(weights_sha256=weights_sha256, models=(*(one for one in kept if one.steps != model.steps), model))


def _risk(sample: Sample, model: RiskModel) -> Tensor:
    maps = {name: values.view(1, 1, -1, 1) for name, values in sample.signals.items()}
    return model.expected_error(Signals(**maps, defocus_um=torch.zeros_like(maps["change"]))).flatten()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="folder of sharp images to fit to")
    parser.add_argument("--val", type=Path, required=True, help="folder of sharp images to measure on")
    parser.add_argument("--model", required=True, help="folder of weights")
    parser.add_argument("--steps", type=int, default=None, help="of the sampler; default: those of the model")
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="runs for the spread")
    parser.add_argument("--limit", type=int, default=None, help="so many images of each folder only")
    parser.add_argument("--json", type=Path, required=True, help="all figures")
    parser.add_argument("--save", type=Path, default=None, metavar="FOLDER", help="write the fitted risk.json there, beside the weights")
    chosen = parser.parse_args(arguments)
    settings = SignalSettings()
    ready = ready_upscaler(UpscaleOptions(target=Enlargement(scale=2), model=chosen.model, steps=chosen.steps, device="cpu"))
    if not isinstance(ready.pieces, GeneratedPieces):
        raise SystemExit(f"{chosen.model} generates nothing")
    train = pairs(chosen.train, [(2, 0), (3, 1), (4, 0), (2, 1), (3, 0), (4, 1)], in_turns=True, limit=chosen.limit)
    model = fitted(measured(train, ready.pieces, settings, seeds=chosen.seeds), settings, steps=ready.pieces.passes)
    val = pairs(chosen.val, [(2, 0), (4, 0)], in_turns=False, limit=chosen.limit)
    told = judged(measured(val, ready.pieces, settings, seeds=chosen.seeds), model)
    run = {"pathorestore": __version__, "torch": str(torch.__version__), "weights_sha256": ready.weights_sha256, **ready.parameters}
    write_atomic(chosen.json, (json.dumps({"run": run, "results": jsonable(told)}, indent=1, allow_nan=False) + "\n").encode())
    if chosen.save:
        print(f"wrote {_with_others(model, chosen.save, ready.weights_sha256).save(chosen.save)}")
    for name, found in told["signals"].items():
        print(f"{name}: {found['spearman_pooled']:.2f} pooled, {found['spearman_within'][0]:.2f} within images, gain {found['gain']:.2f}")
    print(f"mean error {told['mean_error']:.2f} levels, expected {told['mean_expected']:.2f}; {model.exponents}")


if __name__ == "__main__":
    main()
