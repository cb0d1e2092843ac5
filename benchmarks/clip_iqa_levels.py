"""How well CLIP-IQA ranks blur: rank correlation of its score with the level of blur, on images that it has not seen.

The middle of every image is blurred at the eleven levels of `pathorestore iqa-build` and scored; beside them stands simulated
defocus, which no head was trained on. `python benchmarks/clip_iqa_levels.py --data FOLDER --json out/clip_iqa.json`.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pathorestore.atomic import write_atomic
from pathorestore.data.image_cache import read_rgb
from pathorestore.data.iqa import LEVELS, Blur, Kind
from pathorestore.data.sharp_crops import image_files
from pathorestore.degradations.optical import degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.evaluation.cases import central
from pathorestore.functional.noise import stream
from pathorestore.image import from_uint8, to_uint8
from pathorestore.metrics.risk import rank_correlation
from pathorestore.models.clip_iqa import load_clip_iqa

Z_UM = (0.0, 0.8, 1.6, 2.4, 3.2)
Pixels = np.ndarray


def blurred(kind: Kind) -> Callable[[Pixels], list[Tensor]]:
    """The image at every level, sharp first."""
    return lambda pixels: [from_uint8(Blur(kind=kind, k=k)(pixels)) for k in range(LEVELS)]


def defocused(pixels: Pixels) -> list[Tensor]:
    """The image at every distance from focus, without noise."""
    sharp = from_uint8(pixels)
    return [degrade(sharp, torch.tensor([z]), setting=Setting.ideal(), generator=stream(0, step)).degraded for step, z in enumerate(Z_UM)]


def score_table(score: Callable[[Tensor], Tensor], images: Sequence[Pixels], degrade_all: Callable[[Pixels], list[Tensor]]) -> Pixels:
    """Scores, images x levels."""
    return np.array([[score(image).item() for image in degrade_all(pixels)] for pixels in images])


def halved(pixels: Pixels) -> Pixels:
    """The image at half its size, each pixel the mean of four: for scans that are sampled twice as finely as they are sharp."""
    import cv2

    return np.asarray(cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))


def agreement(scores: Pixels) -> dict[str, object]:
    """Rank correlations of scores (images x levels, sharp first) with sharpness: all pooled, and within each image; means of the levels."""
    known = torch.from_numpy(scores)
    sharpness = -torch.arange(scores.shape[1])
    within = [rank_correlation(row, sharpness) for row in known]
    return {
        "images": len(scores),
        "spearman": rank_correlation(known, sharpness.expand_as(known)),
        "spearman_within_mean": float(np.mean(within)),
        "spearman_within_worst": float(np.min(within)),
        "level_means": [round(float(mean), 4) for mean in scores.mean(axis=0)],
    }


def main() -> None:
    """Measure every head on every degradation and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of sharp images that no head was trained on")
    parser.add_argument("--without", nargs="*", default=[], help="beginnings of file names to leave out in a second count")
    parser.add_argument("--halve", nargs="*", default=[], help="beginnings of the names of oversampled images, which are halved first")
    parser.add_argument("--heads", nargs="*", default=["box", "gauss"], help="kind, or kind=folder of a head of your own")
    parser.add_argument("--ways", nargs="*", default=["box", "gauss", "defocus"], help="degradations to rank")
    parser.add_argument("--crop", type=int, default=384, help="side of the middle of each image that is looked at")
    parser.add_argument("--limit", type=int, default=None, help="first images only")
    parser.add_argument("--json", type=Path, default=None, help="write all scores")
    arguments = parser.parse_args()
    files = image_files(arguments.data)[: arguments.limit]
    whole = [halved(read_rgb(file)) if file.name.startswith(tuple(arguments.halve)) else read_rgb(file) for file in files]
    images = [to_uint8(central(from_uint8(pixels), arguments.crop)) for pixels in whole]
    kept = [not file.name.startswith(tuple(arguments.without)) for file in files]
    ways: dict[str, Callable[[Pixels], list[Tensor]]] = {"box": blurred("box"), "gauss": blurred("gauss"), "defocus": defocused}
    results = []
    for head in arguments.heads:
        kind, _, folder = head.partition("=")
        score = load_clip_iqa(kind, folder=folder or None)  # type: ignore[arg-type]
        for name in arguments.ways:
            scores = score_table(score, images, ways[name])
            for which, rows in (("all", scores), ("kept", scores[kept])):
                if which == "all" or not all(kept):
                    results.append({"head": head, "degradation": name, "which": which} | agreement(rows))
                    print({key: round(value, 3) if isinstance(value, float) else value for key, value in results[-1].items()}, flush=True)
    if arguments.json:
        told = {"files": [file.name for file in files], "results": results}
        write_atomic(arguments.json, (json.dumps(told, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
