"""What a contrastive encoder knows of images it never saw: the same patch in another stain, what was done to it, and the stain itself.

    python benchmarks/contrastive_encoder.py --train TRAIN --val VAL --encoder runs/lpfm/parts/contrastive --json out/encoder.json

TRAIN, VAL: folders of sharp images. Patches of --patch px are cut from VAL at places drawn once. Retrieval: is the nearest of a pool of
--pool other-stained patches the same patch. Stains are HED jitter of 0.3, RandStainNA, and synthetic PAS, IHC and Masson. Degradations are
those of training, on patches of VAL; R2 of each parameter over all of them and over that fault alone or nothing. Stain probe: a linear
classifier, trained on TRAIN, tells H&E from the synthetic stains by the content vectors; and by the tokens' means, for comparison.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from pathorestore.atomic import write_atomic
from pathorestore.data.sharp_crops import image_files
from pathorestore.degradations.blind import degrade_blind
from pathorestore.degradations.composed import FAULTS, Composed, Fault, Theta
from pathorestore.degradations.stain import SYNTHETIC_STAINS, RandStainNA, hed_jitter, synthetic_stain
from pathorestore.evaluation.results import jsonable
from pathorestore.functional.noise import stream
from pathorestore.models.contrastive import ContrastiveEncoder, Impression
from pathorestore.pipelines.image_file import read_image_file

STAINED = ("he", *SYNTHETIC_STAINS)
Restain = Callable[[Tensor, torch.Generator], Tensor]


def patches(images: Sequence[Tensor], *, count: int, side_px: int, seed: int) -> Tensor:
    """Patches n 3 s s of images in turns, at places drawn by a seed, the liveliest of eight each time: no bare glass."""
    made, generator = [], stream(seed)
    for number in range(count):
        image = images[number % len(images)]
        height, width = (side - side_px for side in image.shape[-2:])
        best = None
        for _ in range(8):
            top, left = (int(torch.randint(room + 1, (), generator=generator)) for room in (height, width))
            cut = image[..., top : top + side_px, left : left + side_px]
            best = cut if best is None or cut.std() > best.std() else best
        made.append(best)
    return torch.cat([one for one in made if one is not None])


@torch.no_grad()
def seen(encoder: ContrastiveEncoder, image: Tensor, *, at_once: int = 64) -> Impression:
    """The impression of many images."""
    found = [encoder(part) for part in image.split(at_once)]
    return Impression(*(torch.cat(values) for values in zip(*found, strict=True)))


def retrieval(encoder: ContrastiveEncoder, patch: Tensor, *, pool: int) -> dict[str, float]:
    """Share of patches whose nearest in a pool of others of another stain is themselves."""
    stain = RandStainNA.mop()
    ways: dict[str, Restain] = {
        "HED jitter": lambda image, generator: hed_jitter(image, sigma=0.3, generator=generator),
        "RandStainNA": lambda image, generator: stain(image, generator=generator),
        **{f"synthetic {to}": (lambda image, _, to=to: synthetic_stain(image, to)) for to in SYNTHETIC_STAINS},
    }
    plain, shares = seen(encoder, patch).content, {}
    for name, way in ways.items():
        other = seen(encoder, torch.cat([way(one[None], stream(1, index)) for index, one in enumerate(patch)])).content
        hits = [
            (part @ whole.T).argmax(dim=1) == torch.arange(len(part))
            for part, whole in zip(plain.split(pool), other.split(pool), strict=True)
        ]
        shares[name] = torch.cat(hits).float().mean().item()
    return shares


def determination(encoder: ContrastiveEncoder, patch: Tensor) -> dict[str, dict[str, float]]:
    """R2 of the estimated parameters: over all degradations of training, and over images with one fault alone or none."""
    told: dict[str, dict[str, float]] = {"any": _r2(encoder, patch, Composed.wide(), Theta._fields)}
    own = {"blur": ("blur_sigma_x_px", "blur_sigma_y_px"), "downscale": ("downscale",), "noise": ("noise_std",), "jpeg": ("jpeg_quality",)}
    for fault in FAULTS:
        told[f"{fault} or nothing"] = _r2(encoder, patch, _perhaps(fault), own[fault])
    return told


def _perhaps(fault: Fault) -> Composed:
    """That one alone, or nothing."""
    others = {f"{other}_probability": float(other == fault) for other in FAULTS}
    return replace(Composed.wide(), identity_probability=0.3, **others)  # type: ignore[arg-type]


def _r2(encoder: ContrastiveEncoder, patch: Tensor, recipe: Composed, names: Sequence[str]) -> dict[str, float]:
    degraded = degrade_blind(patch, recipe, generator=[stream(2, index) for index in range(len(patch))])
    true, found = Theta.of(degraded.parameters), Theta.from_normalised(seen(encoder, degraded.image).theta)
    shares = {}
    for name in names:
        wanted, error = getattr(true, name), getattr(found, name) - getattr(true, name)
        shares[name] = 1 - (error.square().mean() / wanted.var(correction=0)).item()
    return shares


def probe(encoder: ContrastiveEncoder, train: Tensor, val: Tensor) -> dict[str, float]:
    """Accuracy of linear classifiers of the stain on patches of images they never saw; chance is one in four."""

    def features(patch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        stains = [patch if to == "he" else synthetic_stain(patch, to) for to in STAINED]
        found = [seen(encoder, image) for image in stains]
        label = torch.arange(len(STAINED)).repeat_interleave(len(patch))
        return {"content": torch.cat([one.content for one in found]), "tokens": torch.cat([one.tokens.mean(1) for one in found])}, label

    (known, label), (unknown, truth) = features(train), features(val)
    shares = {}
    for name in known:
        mean, deviation = known[name].mean(0), known[name].std(0) + 1e-6
        x, y = ((one[name] - mean) / deviation for one in (known, unknown))
        weight = torch.zeros(x.shape[1], len(STAINED), requires_grad=True)
        bias = torch.zeros(len(STAINED), requires_grad=True)
        fit = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def loss(x: Tensor = x, weight: Tensor = weight, bias: Tensor = bias, fit: torch.optim.LBFGS = fit) -> Tensor:
            fit.zero_grad()
            value = F.cross_entropy(x @ weight + bias, label) + 1e-2 * weight.square().sum()
            value.backward()
            return value

        fit.step(loss)  # type: ignore[arg-type]
        shares[name] = ((y @ weight + bias).argmax(dim=1) == truth).float().mean().item()
    return shares


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="folder of images that the probe may learn from")
    parser.add_argument("--val", type=Path, required=True, help="folder of images that the encoder never saw")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a ContrastiveEncoder")
    parser.add_argument("--patch", type=int, default=96, metavar="PX")
    parser.add_argument("--pool", type=int, default=256)
    parser.add_argument("--count", type=int, default=512, help="patches of VAL")
    parser.add_argument("--json", type=Path, default=None, help="all figures")
    chosen = parser.parse_args(arguments)
    encoder = ContrastiveEncoder.from_pretrained(chosen.encoder)
    train, val = ([read_image_file(path).image for path in tqdm(image_files(folder))] for folder in (chosen.train, chosen.val))
    known, unknown = (
        patches(images, count=chosen.count, side_px=chosen.patch, seed=seed) for seed, images in enumerate((train, val), start=5)
    )
    told: dict[str, Any] = {
        "retrieval": retrieval(encoder, unknown, pool=chosen.pool),
        "R2": determination(encoder, unknown),
        "stain probe": probe(encoder, known, unknown),
    }
    if chosen.json:
        write_atomic(chosen.json, (json.dumps(jsonable(told), indent=1, allow_nan=False) + "\n").encode())
    print(json.dumps(jsonable(told), indent=1))


if __name__ == "__main__":
    main()
