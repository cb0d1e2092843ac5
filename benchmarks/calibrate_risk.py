"""Fit the risk map of a restorer to simulated defocus, and measure on other images whether it knows where the errors are.

    python benchmarks/calibrate_risk.py --train TRAIN --val VAL --json out/risk.json --picture out/risk.png

TRAIN is what the model of risk is fitted to: each image once at a random distance, `Setting.ideal()` and `Setting.scanner()` in turns. VAL
is only measured, every image at each distance in both settings. The central 256 px are used. --save FOLDER, the folder of the weights,
writes the fitted risk.json.
"""

import argparse
import fnmatch
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pathorestore.atomic import write_atomic
from pathorestore.data.sharp_crops import image_files
from pathorestore.degradations.optical import Degraded, degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.evaluation.cases import central
from pathorestore.evaluation.results import jsonable
from pathorestore.functional.noise import NoiseField, stream
from pathorestore.functional.trust import Signals
from pathorestore.metrics.risk import rank_correlation, reliability, risk_coverage
from pathorestore.metrics.statistics import bootstrap_interval
from pathorestore.models.optics_prompt import OpticsPrompt
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.mop import MoPRestorer, default_folder
from pathorestore.pipelines.refine import DiffusionRefiner
from pathorestore.pipelines.risk_model import RiskModel, RiskModels, SignalSettings, fit_risk
from pathorestore.pipelines.tiled import TiledRestorer
from pathorestore.pipelines.trust import DEFAULT_SEEDS, TrustSignals, local_error
from pathorestore.version import __version__

SETTINGS = {"ideal": Setting.ideal, "scanner": Setting.scanner}
Z_UM = (0.8, 1.6, 2.4, 3.2)
_STEP_PX = 8  # neighbouring pixels say the same after smoothing
_CROP_PX = 256
_NAMES = {0: "coarse", 1: "two-stage"}


class Memory:
    """The first stage of a restorer, computed once for a tile however often it is asked for; it holds the last tile."""

    def __init__(self, system: MoPRestorer):
        self.system = system
        self._tile, self._prompts, self._coarse = torch.empty(0), None, None

    def prompts(self, degraded: Tensor) -> Any:
        if not torch.equal(self._tile, degraded):
            self._tile, self._prompts, self._coarse = degraded.clone(), self.system.prepare(degraded), None
        return self._prompts

    def coarse(self, current: Tensor, degraded: Tensor, prompts: Any, noise: NoiseField) -> Tensor:
        self.prompts(degraded)
        if self._coarse is None:
            self._coarse = self.system.stages[0](current, degraded, prompts, noise)
        return self._coarse


class FirstStages:
    """The first `count` stages of the restorer of a memory, as a staged restorer."""

    def __init__(self, memory: Memory, *, count: int):
        self.prepare = memory.prompts
        self.stages = (memory.coarse, *memory.system.stages[1:])[:count]
        self.tile_px, self.multiple_px = memory.system.tile_px, memory.system.multiple_px

    def restore(self, image: Tensor, *, seed: int = 0) -> Tensor:
        return TiledRestorer(self, overlap_px=0).restore(image, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image, restored with so many steps: signals by name and true local error, each n, on a grid of pixels."""

    image: str
    setting: str
    z_um: float
    steps: int
    signals: dict[str, Tensor]
    error: Tensor


def training_pairs(fields: "Fields", *, seed: int) -> Iterator[tuple[str, str, float, Degraded]]:
    """Each image once, at a distance drawn from 0 to 3.2 um, the settings in turns."""
    for index, (name, sharp) in enumerate(fields):
        setting, own = list(SETTINGS)[index % 2], stream(seed, index)
        z_um = Z_UM[-1] * torch.rand(1, generator=own)
        yield name, setting, z_um.item(), degrade(sharp, z_um, setting=SETTINGS[setting](), generator=own)


def validation_pairs(fields: "Fields", *, seed: int) -> Iterator[tuple[str, str, float, Degraded]]:
    """Every image at each distance in both settings."""
    for setting, make in SETTINGS.items():
        for index, (name, sharp) in enumerate(fields):
            for at, z_um in enumerate(Z_UM):
                own = stream(seed, index, at)
                yield name, setting, z_um, degrade(sharp, torch.tensor([z_um]), setting=make(), generator=own)


def measure(
    pairs: Iterator[tuple[str, str, float, Degraded]], system: MoPRestorer, settings: SignalSettings, *, seeds: int, fine_every: int = 1
) -> list[Sample]:
    """Signals and errors of every pair, restored by the first stage, and of every `fine_every`th image by both if there are two."""
    samples: list[Sample] = []
    memory, order = Memory(system), dict[str, int]()
    for name, setting, z_um, pair in pairs:
        both = len(system.stages) > 1 and order.setdefault(name, len(order)) % fine_every == 0
        for count in (1, 2) if both else (1,):
            staged = FirstStages(memory, count=count)
            restored = staged.restore(pair.degraded)
            measured = TrustSignals(staged, settings, seeds=seeds if count > 1 else 0).of(pair.degraded, restored)
            error = local_error(restored, pair.clean, window_px=settings.window_px)
            steps = generative_steps(system) if count > 1 else 0
            signals = {key: on_grid(values) for key, values in measured._asdict().items()}
            samples.append(Sample(image=name, setting=setting, z_um=z_um, steps=steps, signals=signals, error=on_grid(error)))
    return samples


def on_grid(values: Tensor) -> Tensor:
    """Every eighth pixel of b 1 h w, flat."""
    return values[..., _STEP_PX // 2 :: _STEP_PX, _STEP_PX // 2 :: _STEP_PX].flatten().clone()


def generative_steps(system: MoPRestorer) -> int:
    """Steps of the second stage."""
    return system.fine.settings.process.steps if isinstance(system.fine, DiffusionRefiner) else 0


def fit(samples: Sequence[Sample], settings: SignalSettings, *, use: Sequence[str] = Signals._fields) -> tuple[RiskModel, ...]:
    """A model of risk for each number of steps among the samples. use: names of the signals that it may weigh."""
    models = []
    for steps in sorted({sample.steps for sample in samples}):
        chosen = [sample for sample in samples if sample.steps == steps]
        names = [name for name in use if steps or name != "spread"]
        features = {name: torch.cat([sample.signals[name] for sample in chosen]) for name in names}
        models.append(fit_risk(features, torch.cat([sample.error for sample in chosen]), steps=steps, settings=settings))
    return tuple(models)


def expected(sample: Sample, model: RiskModel) -> Tensor:
    """The risk of a sample's pixels, n."""
    return model.expected_error(Signals(**{name: values.view(1, 1, -1, 1) for name, values in sample.signals.items()})).flatten()


def judge(samples: Sequence[Sample], model: RiskModel) -> dict[str, Any]:
    """How each signal and the risk made of them rank the errors, pooled and within images; coverage and reliability of the risk."""
    error = torch.cat([sample.error for sample in samples])
    ranks = {name: [sample.signals[name] for sample in samples] for name in Signals._fields if model.steps or name != "spread"}
    ranks["risk"] = [expected(sample, model) for sample in samples]
    groups = [sample.image for sample in samples]
    table = {}
    for name, values in ranks.items():
        within = [rank_correlation(value, sample.error) for value, sample in zip(values, samples, strict=True)]
        table[name] = {
            "spearman_pooled": rank_correlation(torch.cat(values), error),
            "spearman_within": bootstrap_interval(within, groups),
            "gain": risk_coverage(torch.cat(values), error).gain,
        }
    risk = torch.cat(ranks["risk"])
    curve = risk_coverage(risk, error)
    bins = reliability(risk, error)
    return {
        "images": len(set(groups)),
        "pairs": len(samples),
        "pixels": len(error),
        "mean_error": curve.mean,
        "mean_expected": risk.mean().item(),
        "area": curve.area,
        "area_oracle": curve.oracle.mean().item(),
        "signals": table,
        "reliability": {name: values.tolist() for name, values in bins._asdict().items()},
        "curve": {name: values.tolist() for name, values in curve.at(50)._asdict().items()},
    }


def report(samples: Sequence[Sample], models: Sequence[RiskModel]) -> dict[str, Any]:
    """`judge` for every model, in both settings together and apart."""
    told: dict[str, Any] = {}
    for model in models:
        own = [sample for sample in samples if sample.steps == model.steps]
        parts = {"both": own} | {name: [sample for sample in own if sample.setting == name] for name in SETTINGS}
        told[_NAMES[min(model.steps, 1)]] = {name: judge(part, model) for name, part in parts.items() if part}
    return told


def markdown(told: dict[str, Any]) -> str:
    """One table a restorer: rank correlations of each signal alone and of the risk, and the calibration."""
    lines = []
    for name, parts in told.items():
        lines += [f"**{name}**", "", "| signal | " + " | ".join(f"{part}, pooled | {part}, within images" for part in parts) + " |"]
        lines.append("| --- " * (1 + 2 * len(parts)) + "|")
        for signal in parts["both"]["signals"]:
            cells = []
            for part in parts.values():
                found = part["signals"][signal]
                cells += [_shown(found["spearman_pooled"]), _shown(found["spearman_within"][0])]
            lines.append(f"| {signal} | " + " | ".join(cells) + " |")
        for part, found in parts.items():
            risk = found["signals"]["risk"]
            lines.append("")
            lines.append(
                f"{name}, {part}: {found['pairs']} pairs of {found['images']} images; mean error {found['mean_error']:.2f} levels, "
                f"expected {found['mean_expected']:.2f}; area {found['area']:.2f}, oracle {found['area_oracle']:.2f}, "
                f"gain {risk['gain']:.2f}; within images {risk['spearman_within']:.2f}."
            )
        rows = zip(parts["both"]["reliability"]["expected"], parts["both"]["reliability"]["error"], strict=True)
        lines += ["", "expected: true error by tenths, both settings: " + ", ".join(f"{said:.1f}: {was:.1f}" for said, was in rows), ""]
    return "\n".join(lines)


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def draw(told: dict[str, Any], path: Path) -> None:
    """Risk-coverage curves and reliability, a column for each restorer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(told), 7.2), layout="constrained", dpi=90)
    panels = figure.subplots(2, len(told), squeeze=False)
    for column, (name, parts) in enumerate(told.items()):
        top, bottom = panels[0, column], panels[1, column]
        for part, colour in (("ideal", "#1b6ca8"), ("scanner", "#c8553d")):
            if part not in parts:
                continue
            curve, bins = parts[part]["curve"], parts[part]["reliability"]
            top.plot(curve["coverage"], curve["error"], color=colour, label=f"{part}, risk")
            top.plot(curve["coverage"], curve["oracle"], color=colour, linestyle=":", label=f"{part}, oracle")
            top.axhline(parts[part]["mean_error"], color=colour, linestyle="--", linewidth=0.8, label=f"{part}, random")
            bottom.plot(bins["expected"], bins["error"], "o-", color=colour, label=part)
        top.set(title=name, xlabel="coverage, safest pixels first", ylabel="mean error, grey levels", xlim=(0, 1), ylim=(0, None))
        most = max(bottom.get_xlim()[1], bottom.get_ylim()[1])
        bottom.plot((0, most), (0, most), color="gray", linewidth=0.8)
        bottom.set(xlabel="expected error, grey levels", ylabel="true error, grey levels", xlim=(0, most), ylim=(0, most))
        top.legend(fontsize="small")
        bottom.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


class Fields:
    """Names and central parts of the images of a folder, but of those whose names match a pattern; one in memory at a time."""

    def __init__(self, folder: Path, *, leave_out: Sequence[str] = (), limit: int | None = None):
        kept = [path for path in image_files(folder) if not any(fnmatch.fnmatch(path.name, pattern) for pattern in leave_out)]
        self.paths = kept[:limit]

    @property
    def names(self) -> list[str]:
        return [path.name for path in self.paths]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for path in tqdm(self.paths):
            yield path.name, central(read_image_file(path).image, _CROP_PX)


def signal_settings(system: MoPRestorer) -> SignalSettings:
    """With the objective that the model itself was told of, where it was."""
    optics = system.prompter.optics
    return replace(SignalSettings(), optics=optics.config.optics) if isinstance(optics, OpticsPrompt) else SignalSettings()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="folder of sharp images to fit to")
    parser.add_argument("--val", type=Path, required=True, help="folder of sharp images to measure on")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="PATTERN", help="names of training images not to use, such as 'a_*'")
    parser.add_argument("--model", type=Path, default=default_folder(), help="folder of weights; default: the embedded ones")
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="runs of the second stage for the spread")
    parser.add_argument("--signals", nargs="+", choices=Signals._fields, default=Signals._fields, help="those that the model may weigh")
    parser.add_argument("--fine-every", type=int, default=1, metavar="N", help="run the second stage on every Nth image of VAL only")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated noise and distances")
    parser.add_argument("--limit", type=int, default=None, help="so many images of each folder only")
    parser.add_argument("--json", type=Path, required=True, help="all figures")
    parser.add_argument("--picture", type=Path, default=None, help="curves, PNG")
    parser.add_argument("--save", type=Path, default=None, metavar="FOLDER", help="write the fitted risk.json there, beside the weights")
    chosen = parser.parse_args(arguments)
    system = MoPRestorer.from_pretrained(chosen.model)
    settings = signal_settings(system)
    train = Fields(chosen.train, leave_out=chosen.leave_out, limit=chosen.limit)
    samples = measure(training_pairs(train, seed=chosen.seed), system, settings, seeds=chosen.seeds)
    fitted = fit(samples, settings, use=chosen.signals)
    val = Fields(chosen.val, limit=chosen.limit)
    measured = measure(validation_pairs(val, seed=chosen.seed), system, settings, seeds=chosen.seeds, fine_every=chosen.fine_every)
    told = report(measured, fitted)
    models = RiskModels(weights_sha256=system.weights_sha256, models=fitted)
    run = {
        "pathorestore": __version__,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "weights_sha256": system.weights_sha256,
        "seeds": chosen.seeds,
        "seed": chosen.seed,
        "train": train.names,
        "val": val.names,
    }
    write_atomic(chosen.json, (json.dumps({"run": run, "results": jsonable(told)}, indent=1, allow_nan=False) + "\n").encode())
    if chosen.picture:
        draw(told, chosen.picture)
    if chosen.save:
        print(f"wrote {models.save(chosen.save)}")
    print(markdown(told))


if __name__ == "__main__":
    main()
