"""What restoration gains on simulated defocus, beside an unsharp mask and Wiener deconvolution that were given every advantage.

    python benchmarks/restoration_table.py --data DIR --json out/table.json

Every sharp image of the folder is put out of focus at each distance, restored by each method and compared with what it was. One image is
in memory at a time. A pixel is taken to be 0.25 um wide, whatever the file says.
"""

import argparse
import csv
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from simulated_defocus import DEGRADED, UNSHARP, WIENER, Method, Row, Study, measure, tune
from torch import Tensor

from pathorestore.data.manifest import read_manifest
from pathorestore.data.sharp_crops import image_files
from pathorestore.degradations.recipes import Setting
from pathorestore.metrics.statistics import Interval, bootstrap_interval
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.mop import MoPRestorer, load_default
from pathorestore.pipelines.refine import KeepCoarse
from pathorestore.pipelines.restorer import Restorer
from pathorestore.pipelines.tiled import TiledRestorer
from pathorestore.version import __version__

COARSE, TWO_STAGE = "coarse", "two-stage"
PIXEL_UM = 0.25
_DRAWS = 5000
SETTINGS = {"ideal": Setting.ideal, "scanner": Setting.scanner, "shifted": Setting.shifted}


class Folder:
    """The images of a folder, or of a manifest's validation rows, read one by one and cropped around their centre.

    Images whose pixel size the manifest knows are brought to 0.25 um: oversampled ones are soft in focus and no targets as they are.
    """

    def __init__(self, source: Path, *, crop_px: int, limit: int | None = None):
        self.crop_px = crop_px
        found = _validation_rows(source) if source.is_file() else [(path, None) for path in image_files(source)]
        self.paths = [path for path, _ in found][:limit]
        self._mpp = dict(found)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for path in self.paths:
            image = read_image_file(path).image
            mpp = self._mpp[path]
            if mpp is not None and mpp != PIXEL_UM:
                size = [round(side * mpp / PIXEL_UM) for side in image.shape[-2:]]
                image = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
            top, left = (max(0, side - self.crop_px) // 2 for side in image.shape[-2:])
            yield path.name, image[..., top : top + self.crop_px, left : left + self.crop_px]


def _validation_rows(manifest: Path) -> list[tuple[Path, float | None]]:
    read = read_manifest(manifest)
    return [(read.resolve(row.path), row.mpp) for row in read.of("val")]


class Results:
    """Rows as arrays: images down, distances across."""

    def __init__(self, rows: Sequence[Row]):
        self.rows, self.z_um = rows, tuple(sorted({row.z_um for row in rows}))
        self.methods = tuple(dict.fromkeys(row.method for row in rows))

    def values(self, measure: str, method: str) -> Tensor:
        """One measure of one method, images x distances, float64."""
        chosen = [getattr(row, measure) for row in self.rows if row.method == method]
        return torch.tensor(chosen, dtype=torch.float64).view(-1, len(self.z_um))

    def gain(self, method: str, over: str, measure: str = "psnr_db") -> list[Interval]:
        """Mean difference to another method at each distance, and last the mean over the distances; images with NaN are left out."""
        difference = self.values(measure, method) - self.values(measure, over)
        difference = difference[difference.isfinite().all(dim=1)]
        columns = [*difference.T, difference.mean(dim=1)]
        return [bootstrap_interval(column, draws=_DRAWS) for column in columns]

    def means(self, measure: str, method: str) -> list[float]:
        """Mean over images at each distance, and last the mean of those; NaN left out."""
        means = self.values(measure, method).nanmean(dim=0)
        return [*means.tolist(), means.mean().item()]


def markdown(results: Results) -> str:
    """The tables and the sentences under them."""
    return "\n\n".join([_fidelity(results), *(_plain(results, title, measure) for title, measure in _PLAIN.items()), *_sentences(results)])


_PLAIN = {
    "SSIM": "ssim",
    "L1_texture of nuclei (lower is closer to the clean image)": "l1_texture",
    "L1_intensity of nuclei (lower is closer)": "l1_intensity",
}


def _lines(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], z_um: Sequence[float]) -> str:
    names = [*(f"{z:g} um" for z in z_um), "mean"]
    lines = [["z", *header], ["---"] * (len(header) + 1), *([name, *row] for name, row in zip(names, rows, strict=True))]
    return "\n".join([f"**{title}**", "", *("| " + " | ".join(line) + " |" for line in lines)])


def _fidelity(results: Results) -> str:
    gains = {method: results.gain(method, DEGRADED) for method in results.methods}
    means = {method: results.means("psnr_db", method) for method in results.methods}

    def cell(method: str, index: int) -> str:
        return f"{means[method][index]:.2f}" + ("" if method == DEGRADED else f" ({gains[method][index]:+.2f})")

    rows = [[cell(method, index) for method in results.methods] for index in range(len(results.z_um) + 1)]
    return _lines("PSNR in dB (gain over the degraded image, its 95 % interval over images)", results.methods, rows, results.z_um)


def _plain(results: Results, title: str, measure: str) -> str:
    means = {method: results.means(measure, method) for method in results.methods}
    rows = [[f"{means[method][index]:.4g}" for method in results.methods] for index in range(len(results.z_um) + 1)]
    return _lines(title, results.methods, rows, results.z_um)


def _sentences(results: Results) -> Iterator[str]:
    if COARSE in results.methods:
        *over_mask, mean = results.gain(COARSE, UNSHARP)
        behind = [f"{z:g}" for z, gain in zip(results.z_um, over_mask, strict=True) if gain.mean <= 0]
        where = f"not at z = {', '.join(behind)} um" if behind else "at every z"
        yield f"Coarse over the degraded image: {results.gain(COARSE, DEGRADED)[-1]:+.2f} dB."
        yield f"Coarse over the unsharp mask: {mean:+.2f} dB; above it {where}."
    if TWO_STAGE in results.methods:
        texture = results.gain(TWO_STAGE, COARSE, "l1_texture")[-1]
        cost = results.gain(TWO_STAGE, COARSE)[-1]
        yield f"Two-stage against coarse: L1_texture {texture:+.2f} (negative is closer to the clean image), PSNR {cost:+.2f} dB."
    images = {row.image: row.nuclei for row in results.rows}
    without = sum(count == 0 for count in images.values())
    yield f"{len(images)} images with {sum(images.values())} nuclei; {without} of them without any, which are left out of L1."


# --- the command ----------------------------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sharp images, or a manifest, whose val rows are taken")
    parser.add_argument("--json", type=Path, required=True, help="where every row goes, with what was run")
    parser.add_argument("--csv", type=Path, help="the rows as a table too")
    parser.add_argument("--setting", choices=SETTINGS, default="ideal", help="of the simulator (default: ideal)")
    parser.add_argument("--limit", type=int, help="only the first so many images")
    parser.add_argument("--crop", type=int, default=512, help="at most this many px of each side, around the centre (default: 512)")
    parser.add_argument("--model", help="folder or hub id of a MoPRestorer (default: the embedded one)")
    parser.add_argument("--coarse-only", action="store_true", help="leave the second stage out")
    parser.add_argument("--unsharp-tune-dir", type=Path, help="tune the classical methods on these images (default: on the measured ones)")
    parser.add_argument("--tile", type=int, default=256, help="tile in px (default: 256)")
    parser.add_argument("--overlap", type=int, default=32, help="overlap of tiles in px (default: 32)")
    parser.add_argument("--device", default="cpu", help="where the networks run (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def networks(model: MoPRestorer, chosen: argparse.Namespace) -> dict[str, Method]:
    """The coarse stage alone, and both stages if the model has them and they are wanted."""
    stages: dict[str, Restorer] = {COARSE: TiledRestorer(model.coarse_only(), tile_px=chosen.tile, overlap_px=chosen.overlap)}
    if not chosen.coarse_only and not isinstance(model.fine, KeepCoarse):
        stages[TWO_STAGE] = TiledRestorer(model, tile_px=chosen.tile, overlap_px=chosen.overlap)

    def method(restorer: Restorer) -> Method:
        return lambda pair: restorer.restore(pair.degraded.to(chosen.device), seed=chosen.seed).cpu()

    return {name: method(restorer) for name, restorer in stages.items()}


def main(argv: Sequence[str] | None = None) -> None:
    chosen, start = arguments(argv), time.perf_counter()
    model = (MoPRestorer.from_pretrained(chosen.model) if chosen.model else load_default()).eval().to(chosen.device)
    fields = Folder(chosen.data, crop_px=chosen.crop, limit=chosen.limit)
    study = Study(setting=SETTINGS[chosen.setting](), seed=chosen.seed)
    tuning = Folder(chosen.unsharp_tune_dir, crop_px=chosen.crop, limit=chosen.limit) if chosen.unsharp_tune_dir else fields
    tuned = tune(study, tuning, note="tuning")
    results = Results(measure(study, fields, tuned, networks(model, chosen), note="restoring"))
    where = chosen.unsharp_tune_dir or "the measured images themselves, which favours them"
    report = [f"# Defocus of {chosen.data}, setting {chosen.setting}, model {model.model_id}", markdown(results)]
    report += [f"Unsharp mask and Wiener filter were tuned for the highest mean PSNR at each z on {where}:"]
    report += ["\n".join(f"* z = {z:g} um: {tuned[z][UNSHARP]}; {tuned[z][WIENER]}" for z in study.z_um)]
    print("\n\n".join(report))
    run = facts() | {"model": model.model_id, "weights_sha256": model.weights_sha256, "seconds": round(time.perf_counter() - start, 1)}
    run |= {"arguments": {name: value if isinstance(value, int | str | None) else str(value) for name, value in vars(chosen).items()}}
    run |= {"tuned": {f"{z:g}": {name: asdict(method) for name, method in methods.items()} for z, methods in tuned.items()}}
    write(chosen, run, results.rows)


def facts() -> dict[str, Any]:
    """The machine and the software."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return {
        "commit": git.stdout.strip() if git.returncode == 0 else "unknown",
        "pathorestore": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def write(chosen: argparse.Namespace, run: dict[str, Any], rows: Sequence[Row]) -> None:
    """Everything as JSON, where NaN becomes null, and as CSV if wanted."""
    plain = [asdict(row) for row in rows]
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(_finite({"run": run, "rows": plain}), indent=1) + "\n", encoding="utf-8")
    if chosen.csv:
        chosen.csv.parent.mkdir(parents=True, exist_ok=True)
        with chosen.csv.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, [name for name in plain[0] if name not in ("intensity", "texture")], extrasaction="ignore")
            table.writeheader()
            table.writerows(plain)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
