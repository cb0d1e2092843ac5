"""What fewer steps of a generative upscaler cost: scores and time by sampler and number of steps.

    python benchmarks/generation_steps.py --images SHARP --model histo-diffusion-tiny --json out/steps.json

Sharp images, at most --crop px around their centres, are made smaller --scale times and enlarged again, with interpolation, the first stage
alone, and both stages with each sampler and number of steps; means over the images. Times are of this machine.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pathorestore.atomic import write_atomic
from pathorestore.data.sharp_crops import image_files
from pathorestore.degradations.resize import reduced, resized
from pathorestore.evaluation.cases import central
from pathorestore.evaluation.results import jsonable
from pathorestore.metrics.fidelity import psnr
from pathorestore.metrics.nuclei import nuclei_difference
from pathorestore.pipelines.histo_diffusion import HistoDiffusion
from pathorestore.pipelines.image_file import read_image_file

COLUMNS = ("psnr", "l1_texture", "l1_intensity", "seconds")


def scored(made: Tensor, clean: Tensor, seconds: float) -> dict[str, float]:
    """The scores of one image; those of nuclei are NaN where there are none."""
    nuclei = nuclei_difference(made, clean)
    return {
        "psnr": psnr(made, clean).item(),
        "l1_texture": nuclei.l1_texture.item(),
        "l1_intensity": nuclei.l1_intensity.item(),
        "seconds": seconds,
    }


def table(images: Iterable[Tensor], model: HistoDiffusion, ways: Sequence[tuple[str, int]], *, scale: float) -> list[dict[str, Any]]:
    """A row of means for each way to enlarge. ways: sampler and steps."""
    systems = {
        f"{sampler}, {steps} steps": model.with_settings(replace(model.settings, sampler=sampler, steps=steps)) for sampler, steps in ways
    }
    rows: dict[str, list[dict[str, float]]] = {}
    for sharp in images:
        small, clean = reduced(sharp, scale, blur=0)
        size = (clean.shape[-2], clean.shape[-1])
        makers = {"bicubic": partial(resized, small, size), "first stage": partial(model.coarse, small, out_size=size)}
        makers |= {name: partial(system.upscale, small, out_size=size) for name, system in systems.items()}
        for name, make in makers.items():
            start = perf_counter()
            made = make()
            rows.setdefault(name, []).append(scored(made, clean, perf_counter() - start))
    return [{"way": name} | {key: _mean([one[key] for one in found]) for key in COLUMNS} for name, found in rows.items()]


def _mean(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).nanmean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of sharp images that the model never saw")
    parser.add_argument("--model", default="histo-diffusion-tiny", help="embedded name or folder")
    parser.add_argument("--ways", nargs="+", default=["ddpm:50", "ddpm:20", "ddim:20", "ddim:10", "dpm++:20", "dpm++:10", "dpm++:5"])
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--crop", type=int, default=128, metavar="PX")
    parser.add_argument("--limit", type=int, default=None, help="so many images only")
    parser.add_argument("--json", type=Path, default=None, help="the table")
    chosen = parser.parse_args(arguments)
    images = (central(read_image_file(path).image, chosen.crop) for path in tqdm(image_files(chosen.images)[: chosen.limit]))
    ways = [(sampler, int(steps)) for sampler, _, steps in (way.partition(":") for way in chosen.ways)]
    rows = table(images, HistoDiffusion.from_pretrained(chosen.model), ways, scale=chosen.scale)
    if chosen.json:
        write_atomic(chosen.json, (json.dumps(jsonable(rows), indent=1, allow_nan=False) + "\n").encode())
    print("| way | " + " | ".join(COLUMNS) + " |\n" + "| --- " * (1 + len(COLUMNS)) + "|")
    for row in rows:
        print(f"| {row['way']} | " + " | ".join(f"{row[key]:.2f}" for key in COLUMNS) + " |")


if __name__ == "__main__":
    main()
