"""The measurements behind the thresholds of `pathorestore qc`, as the tables of docs/qc.md.

    python benchmarks/qc_thresholds.py --data SHARP_IMAGES --oversampled 'myeloma_*' --json out/qc.json

The central 256 px of each image are put out of focus by known distances in three settings and read by the embedded estimator; those of the
setting `ideal` are restored by the coarse stage as well. Then the same tiles with more and more glass in them, and the images whole, as
they were photographed.
"""

import argparse
import fnmatch
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from pathorestore.atomic import write_atomic
from pathorestore.data.sharp_crops import image_files
from pathorestore.degradations.optical import degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.functional.noise import stream
from pathorestore.functional.optics import ctf_value
from pathorestore.metrics.fidelity import psnr, ssim
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.mop import load_default
from pathorestore.slide.focus_qc import JUDGED_MPP, FocusFile, FocusOptions, TissueFocus, tissue_of
from pathorestore.slide.focus_verdict import JUDGED, Thresholds, summarise
from pathorestore.version import __version__

SETTINGS: dict[str, Callable[[], Setting]] = {"ideal": Setting.ideal, "scanner": Setting.scanner, "shifted": Setting.shifted}
Z_UM = (0.0, 0.4, 0.8, 1.2, 1.6, 2.4, 3.2, 4.0, 5.0, 6.4)
TAUGHT_UM = (0.8, 1.6, 2.4, 3.2)
TISSUE_SHARES, SHARES_Z_UM = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625), (0.0, 1.6)
OVERSAMPLED_MPP = 0.125
_CROP_PX, _GLASS = 256, 240
Restore = Callable[[Tensor], Tensor]
Tile = tuple[int, str, Tensor]


def tiles_of(paths: Sequence[Path], fine: Collection[Path]) -> Iterator[Tile]:
    """Number, name and central tile 1 3 256 256 of each image that is large enough, those with fine pixels brought to 0.25 um."""
    for index, path in enumerate(tqdm(paths, unit="image", leave=False)):
        image = read_image_file(path).image
        if path in fine:
            image = F.interpolate(image, scale_factor=OVERSAMPLED_MPP / JUDGED_MPP, mode="area")
        top, left = ((side - _CROP_PX) // 2 for side in image.shape[-2:])
        if min(top, left) >= 0:
            yield index, path.name, image[..., top : top + _CROP_PX, left : left + _CROP_PX]


def read_out_of_focus(
    tiles: Iterable[Tile], focus: TissueFocus, restore: Restore, *, restore_every: int, seed: int
) -> list[dict[str, Any]]:
    """A row for each tile, setting and distance; PSNR and SSIM before and after where it was restored."""
    limits, rows = Thresholds(), []
    everywhere = torch.ones(1, 1, _CROP_PX // 4, _CROP_PX // 4)
    for index, name, sharp in tiles:
        for setting, make in SETTINGS.items():
            for at, z_um in enumerate(Z_UM):
                pair = degrade(sharp, torch.tensor([z_um]), setting=make(), generator=stream(seed, index, at))
                distance, ctf = (float(value) for value in focus(pair.degraded, everywhere))
                row = {"image": name, "setting": setting, "z_um": z_um, "defocus_um": distance, "ctf": ctf}
                row["verdict"] = limits.verdict(distance, ctf)
                if setting == "ideal" and index % restore_every == 0:
                    for when, image in (("before", pair.degraded), ("after", restore(pair.degraded))):
                        row |= {f"psnr_{when}": float(psnr(image, pair.clean)), f"ssim_{when}": float(ssim(image, pair.clean))}
                rows.append(row)
    return rows


def read_beside_glass(tiles: Iterable[Tile], focus: TissueFocus, *, seed: int) -> list[dict[str, Any]]:
    """A row for each tile, share of tissue and distance: what is read of its tissue alone, and averaged over all of it."""
    rows, colour = [], np.full(3, _GLASS, float)
    everywhere = torch.ones(1, 1, _CROP_PX // 4, _CROP_PX // 4)
    for index, name, sharp in tiles:
        for share in TISSUE_SHARES:
            partly = sharp.clone()
            partly[..., round(share * _CROP_PX) :] = _GLASS / 255
            for at, z_um in enumerate(SHARES_Z_UM):
                plane = degrade(partly, torch.tensor([z_um]), setting=Setting.ideal(), generator=stream(seed, index, at)).degraded
                tissue = tissue_of(plane, colour)
                alone = float(focus(plane, tissue)[0]) if tissue.any() else None
                rows.append({"image": name, "share": share, "z_um": z_um, "tissue_um": alone, "all_um": float(focus(plane, everywhere)[0])})
    return rows


def read_whole(paths: Sequence[Path], focus: TissueFocus, mpp: float) -> list[dict[str, Any]]:
    """A row for each image as it is, judged by `pathorestore qc --mpp` in tiles: verdicts and figures."""
    judge, rows = FocusFile(judge=focus, options=FocusOptions(mpp=mpp), thresholds=Thresholds()), []
    for path in tqdm(paths, unit="image", leave=False):
        tiles = judge(path).tiles
        found = summarise(tiles, judge.thresholds)
        rows.append(
            {
                "image": path.name,
                "mpp": mpp,
                "verdict": found.verdict,
                "median_um": found.median_um,
                "mean_ctf": found.mean_ctf,
                "tiles": dict(Counter(tile.verdict for tile in tiles)),
            }
        )
    return rows


def markdown(told: Mapping[str, list[dict[str, Any]]]) -> str:
    """The tables of docs/qc.md."""
    rows = told["out_of_focus"]
    parts = [_distances(rows), _verdicts(rows), _errors(rows), _glass(told["beside_glass"]), _whole(told["whole"])]
    return "\n\n".join(part for part in parts if part)


def _distances(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("true z", "true CTF", *(f"estimated {what}, median (10-90 %)" for what in ("distance", "CTF")))
    heads += ("PSNR before, after", "SSIM before, after")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for z_um in Z_UM:
        own = [row for row in rows if row["setting"] == "ideal" and row["z_um"] == z_um]
        restored = [row for row in own if "psnr_after" in row]
        scores = [", ".join(f"{_mean(restored, f'{name}_{when}'):.{n}f}" for when in ("before", "after")) for name, n in _SCORES]
        cells = [f"{z_um:g} um", f"{float(ctf_value(torch.tensor([z_um]))):.2f}", _spread(own, "defocus_um"), _spread(own, "ctf"), *scores]
        lines.append(f"| {' | '.join(cells)} |")
    count, fewer = (len({row["image"] for row in rows if key in row}) for key in ("ctf", "psnr_after"))
    return "\n".join([f"setting ideal, {count} tiles, {fewer} of them restored", "", *lines])


_SCORES = (("psnr", 1), ("ssim", 3))


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["fine, restore, rescan", "", f"| true z | {' | '.join(SETTINGS)} |", "|---" * (1 + len(SETTINGS)) + "|"]
    for z_um in Z_UM:
        cells = []
        for setting in SETTINGS:
            counted = Counter(row["verdict"] for row in rows if (row["setting"], row["z_um"]) == (setting, z_um))
            cells.append(", ".join(str(counted[verdict]) for verdict in JUDGED))
        lines.append(f"| {z_um:g} um | {' | '.join(cells)} |")
    return "\n".join(lines)


def _errors(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far the distance is off on average, where the estimator was trained."""
    lines, asked = [], " ".join(f"{z_um:g}" for z_um in TAUGHT_UM)
    for setting in SETTINGS:
        off = [row["defocus_um"] - row["z_um"] for row in rows if row["setting"] == setting and row["z_um"] in TAUGHT_UM]
        lines.append(f"{setting}, {asked} um: distance {np.abs(off).mean():.2f} um off, {np.mean(off):+.2f} um with its sign")
    return "\n".join(lines)


def _glass(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = [f"{z_um:g} um, {what}" for z_um in SHARES_Z_UM for what in ("tissue only", "whole tile")]
    lines = ["median estimated distance, um", "", f"| share of tissue | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for share in TISSUE_SHARES:
        own = [[row for row in rows if (row["share"], row["z_um"]) == (share, z_um)] for z_um in SHARES_Z_UM]
        cells = [f"{_quantiles(some, key)[1]:.2f}" for some in own for key in ("tissue_um", "all_um")]
        lines.append(f"| {share:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _whole(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    groups = dict.fromkeys((row["mpp"], row["oversampled"]) for row in rows)
    for mpp, oversampled in groups:
        own = [row for row in rows if (row["mpp"], row["oversampled"]) == (mpp, oversampled)]
        files, tiles = (Counter[str](row["verdict"] for row in own), Counter[str]())
        for row in own:
            tiles.update(row["tiles"])
        seen = [row for row in own if row["median_um"] is not None]
        ranges = [f"{min(row[key] for row in seen):.2f}-{max(row[key] for row in seen):.2f}" for key in ("median_um", "mean_ctf")]
        kind = "oversampled images" if oversampled else "images"
        lines.append(
            f"{len(own)} whole {kind} at {mpp:g} um: {_counts(files)}; tiles: {_counts(tiles)}; "
            f"median distance {ranges[0]} um, mean CTF {ranges[1]}"
        )
    return "\n".join(lines)


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows) if rows else float("nan")


def _quantiles(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float, float]:
    low, middle, high = np.quantile([row[key] for row in rows if row[key] is not None], (0.1, 0.5, 0.9))
    return float(low), float(middle), float(high)


def _spread(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    low, middle, high = _quantiles(rows, key)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="sharp images of 0.25 um a pixel")
    parser.add_argument(
        "--oversampled", nargs="*", default=[], metavar="PATTERN", help="names of those of 0.125 um a pixel, such as 'myeloma_*'"
    )
    parser.add_argument("--limit", type=int, default=None, help="so many images only")
    parser.add_argument("--restore-every", type=int, default=2, metavar="N", help="restore every Nth tile only")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated noise and of what the settings draw")
    parser.add_argument("--json", type=Path, required=True, help="every row")
    chosen = parser.parse_args(arguments)
    system = load_default()
    focus, coarse = TissueFocus(system.prompter.defocus), system.coarse_only()
    paths = image_files(chosen.data)[: chosen.limit]
    fine = [path for path in paths if any(fnmatch.fnmatch(path.name, pattern) for pattern in chosen.oversampled)]
    told = {
        "out_of_focus": read_out_of_focus(
            tiles_of(paths, fine), focus, coarse.restore, restore_every=chosen.restore_every, seed=chosen.seed
        ),
        "beside_glass": read_beside_glass(tiles_of(paths, fine), focus, seed=chosen.seed),
        "whole": [row | {"oversampled": False} for row in read_whole([path for path in paths if path not in fine], focus, JUDGED_MPP)]
        + [row | {"oversampled": True} for mpp in (JUDGED_MPP, OVERSAMPLED_MPP) for row in read_whole(fine, focus, mpp)],
    }
    run = {
        "pathorestore": __version__,
        "torch": str(torch.__version__),
        "weights_sha256": system.weights_sha256,
        "seed": chosen.seed,
        "images": [path.name for path in paths],
    }
    write_atomic(chosen.json, (json.dumps({"run": run, "results": told}, indent=1, allow_nan=False) + "\n").encode())
    print(markdown(told))


if __name__ == "__main__":
    main()
