"""Does the prompt matter: every task of a prompted system under every prompt, in PSNR against what the task wants.

    python benchmarks/prompt_matrix.py --images VAL --model lpfm-tiny --json out/prompts.json

Each sharp image, at most --crop px around its centre, is one example of each task: the one fault that a restoration names, alone and
always there; for `restore` one or more of all; for translations the sharp image, or a degraded one where the task is to restore it too.
Rows are tasks, columns prompts in their plainest words, "given" is what went in. For each task the differences of the right prompt to each
other one, with 95 % intervals over images (bootstrap); the nearest is told, but for prompts that ask for the same and more.

--alone denoise=FOLDER, any number of times: parts of a first stage that was trained on that task alone, whose column is "alone".
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pathorestore.atomic import write_atomic
from pathorestore.data.sharp_crops import image_files
from pathorestore.data.task_prompts import spec_of
from pathorestore.evaluation.cases import central
from pathorestore.evaluation.results import jsonable
from pathorestore.functional.noise import stream
from pathorestore.metrics.fidelity import psnr
from pathorestore.metrics.statistics import bootstrap_interval
from pathorestore.models.prompted import PromptedSwinIR
from pathorestore.models.text import ByteTextEncoder
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.lpfm import LPFM

_SINGLE = ("sr", "deblur", "denoise", "restore_jpeg")
_BEST_DB = 60.0  # of equal images


def more(task: str) -> set[str]:
    """The prompts that ask for the same and more."""
    return {f"restore_{task}"} if task.startswith("stain_") else {"restore"} if task in _SINGLE else set()


def alone(model: LPFM, folder: Path) -> LPFM:
    """The system with the first stage of another folder of parts."""
    coarse, text = PromptedSwinIR.from_pretrained(folder / "coarse"), ByteTextEncoder.from_pretrained(folder / "text")
    return LPFM.from_parts(model.parts() | {"coarse": coarse, "text": text}, model.settings).eval()


def matrix(
    model: LPFM, images: Sequence[Tensor], *, coarse_only: bool, others: Mapping[str, LPFM] | None = None
) -> dict[str, dict[str, list[float]]]:
    """PSNR of each image by task and prompt, "given" included. others: first stages that learned one task alone, by its name."""
    tasks = [task for task in model.tasks if task.example is not None]
    scores: dict[str, dict[str, list[float]]] = {task.name: {} for task in tasks}
    for number, sharp in enumerate(tqdm(images)):
        for task in tasks:
            given, wanted, _ = task.tried(sharp, stream(11, number))
            made = {prompt.name: model(given, spec_of(tasks, task=prompt.name), scale=1.0, coarse_only=coarse_only) for prompt in tasks}
            if others and task.name in others:
                made["alone"] = others[task.name](given, spec_of(tasks, task=task.name), scale=1.0, coarse_only=True)
            for name, one in ({"given": given} | made).items():
                scores[task.name].setdefault(name, []).append(min(psnr(one, wanted).item(), _BEST_DB))
    return scores


def differences(scores: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """For each task what the right prompt gains over each other column: mean and 95 % interval."""
    told: dict[str, dict[str, Any]] = {}
    for task, row in scores.items():
        right = torch.tensor(row[task], dtype=torch.float64)
        others = {name: right - torch.tensor(values, dtype=torch.float64) for name, values in row.items() if name != task}
        told[task] = {name: list(bootstrap_interval(found)) for name, found in others.items()}
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of sharp H&E images that the model never saw")
    parser.add_argument("--model", default="lpfm-tiny", help="embedded name or folder")
    parser.add_argument("--crop", type=int, default=96, metavar="PX")
    parser.add_argument("--limit", type=int, default=None, help="so many images only")
    parser.add_argument("--coarse-only", action="store_true")
    parser.add_argument("--alone", action="append", default=[], metavar="TASK=FOLDER", help="parts of a first stage of that task alone")
    parser.add_argument("--json", type=Path, default=None, help="all scores and differences")
    chosen = parser.parse_args(arguments)
    images = [central(read_image_file(path).image, chosen.crop) for path in image_files(chosen.images)[: chosen.limit]]
    model = LPFM.from_pretrained(chosen.model)
    others = {task: alone(model, Path(folder)) for task, _, folder in (word.partition("=") for word in chosen.alone)}
    scores = matrix(model, images, coarse_only=chosen.coarse_only, others=others)
    gains = differences(scores)
    if chosen.json:
        content = jsonable({"scores": scores, "differences": gains})
        write_atomic(chosen.json, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    columns = ["given", *scores, *(["alone"] if others else [])]
    print("| task | " + " | ".join(columns) + " |\n" + "| --- " * (1 + len(columns)) + "|")
    for task, row in scores.items():
        means = (f"{sum(row[name]) / len(row[name]):.2f}" if name in row else "" for name in columns)
        print(f"| {task} | {' | '.join(means)} |")
    for task, row in gains.items():
        worst = min(set(row) - more(task) - {"alone"}, key=lambda name: row[name][0])
        mean, low, high = row[worst]
        print(f"{task}: nearest other column {worst}, {mean:+.2f} [{low:+.2f}, {high:+.2f}] dB")
        if "alone" in row:
            mean, low, high = row["alone"]
            print(f"{task}: against a model of its own {mean:+.2f} [{low:+.2f}, {high:+.2f}] dB")


if __name__ == "__main__":
    main()
