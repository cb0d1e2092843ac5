"""Blind degradation of sharp images, as super-resolution papers train on, with everything that was drawn."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathorestore.degradations.blind_recipes import Recipe
from pathorestore.degradations.blind_stages import Jpeg, RestoreSize, Size, Stage
from pathorestore.functional.noise import stream
from pathorestore.image import check_image


class BlindDegraded(NamedTuple):
    """Degraded images b 3 h' w' in [0, 1]; for each the name of its recipe and what `summary` says of its draw."""

    image: Tensor
    parameters: tuple[dict[str, Any], ...]


def degrade_blind(
    image: Tensor, recipe: Recipe, *, generator: torch.Generator | Sequence[torch.Generator], restore_size: bool = False
) -> BlindDegraded:
    """Degrade each sharp image b 3 h w in [0, 1] with its own draw of the recipe; float32 in [0, 1].

    recipe: `OneRound` keeps the size, `Shuffled` and `TwoRounds` give round(h / scale), round(w / scale), or with restore_size h w again,
    bicubically. generator: CPU, one for each image or one for all; an image takes one number from it, on which alone its result depends.
    Raises ValueError for images outside the contract, another number of generators, generators of a GPU or an image below the scale.
    """
    check_image(image)
    count, size_px = len(image), (image.shape[-2], image.shape[-1])
    generators = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != count:
        raise ValueError(f"got {len(generators)} generators for {count} images; give one for all or one an image")
    if any(one.device.type != "cpu" for one in generators):
        raise ValueError(
            "got a generator of another device; expected torch.Generator() of the CPU, so that every device gives the same image"
        )
    degraded, parameters = [], []
    for sharp, own in zip(torch.split(image.detach().float().clamp(0, 1), 1), generators, strict=True):
        # a stream of its own: what an image draws, and how much, is nothing to the next
        private = stream(int(torch.randint(2**63 - 1, (), generator=own)))
        stages = recipe.plan(size_px, private)
        if restore_size:
            stages = (*stages, RestoreSize(to_px=size_px))
        degraded.append(applied(stages, sharp, generator=private))
        parameters.append({"recipe": recipe.name} | summary(stages, size_px))
    return BlindDegraded(torch.cat(degraded), tuple(parameters))


def applied(stages: Sequence[Stage], image: Tensor, *, generator: torch.Generator) -> Tensor:
    """What stages make of one image 1 3 h w; generator: of what they draw themselves."""
    return functools.reduce(lambda before, stage: stage(before, generator), stages, image)


def summary(stages: Sequence[Stage], size_px: Size) -> dict[str, Any]:
    """What stages do to an image of height and width `size_px`, under the same keys for every recipe, ready for JSON.

    blur_sigma_px, blur_sigma_x_px, blur_sigma_y_px: standard deviation of all blurs together in pixels of the input, as root mean square of
    both axes and along each, measured on the kernels as they were cut off; low-passes and interpolation add nothing. downscale: how many
    times smaller than the input the image was at its smallest, at least 1. noise_std: of all noises together on the scale of the image,
    as they were added, Poisson noise at half intensity. jpeg_quality: the lowest, 100 without JPEG. stages: what was drawn, in the order
    applied.
    """
    variance, size, smallest = [0.0, 0.0], size_px, 1.0
    for stage in stages:
        steps = [before / now for before, now in zip(size_px, size, strict=True)]
        variance = [sum_ + spread * step**2 for sum_, spread, step in zip(variance, stage.spread_px2(), steps, strict=True)]
        size = stage.size_px(size)
        smallest = min(smallest, math.sqrt(size[0] * size[1] / (size_px[0] * size_px[1])))
    return {
        "blur_sigma_px": math.sqrt(sum(variance) / 2),
        "blur_sigma_x_px": math.sqrt(variance[1]),
        "blur_sigma_y_px": math.sqrt(variance[0]),
        "downscale": 1 / smallest,
        "noise_std": math.sqrt(sum(stage.noise_variance() for stage in stages)),
        "jpeg_quality": min((stage.quality for stage in stages if isinstance(stage, Jpeg)), default=100),
        "stages": [stage.facts() for stage in stages],
    }
