"""What it saves to compute, once for all sampling steps, what no step changes: the prompts and the denoiser's conditions."""

from collections.abc import Callable

import pytest
import torch
from taking_turns import TakingTurns
from torch import Tensor

from pathorestore.diffusion.sampling import sample
from pathorestore.functional.noise import NoiseField
from pathorestore.models.prompts import Prompts
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.refine import DiffusionRefiner

NOISE = NoiseField.whole(0, 1)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))


def forgetful(refiner: DiffusionRefiner, coarse: Tensor, degraded: Tensor, prompts: Callable[[], Prompts]) -> Tensor:
    """The refiner, asking for the prompts and computing the conditions anew in every step."""
    start, seen = refiner.space.encode(coarse), refiner.space.encode(degraded)

    def denoise(scaled_state: Tensor, t: Tensor) -> Tensor:
        clean: Tensor = refiner.denoiser(scaled_state, t, refiner.denoiser.condition(start, seen, prompts()))
        return clean.clamp(-1, 1) if refiner.space.bounded else clean

    return refiner.space.decode(sample(denoise, refiner.settings.process, start, lambda step: refiner.space.noise(NOISE, step, start)))


def compare(taking_turns: TakingTurns, refiner: DiffusionRefiner, once: Callable[[], Tensor], each_step: Callable[[], Tensor]) -> None:
    assert torch.allclose(once(), each_step(), atol=1e-5)
    taking_turns({"once": once, "each step": each_step}, rounds=21)
    taking_turns.benchmark.extra_info["steps"] = refiner.settings.process.steps


@torch.no_grad()
def test_conditions_of_given_prompts(taking_turns: TakingTurns, untrained: MoPRestorer, image: Tensor) -> None:
    refiner, prompts = untrained.fine, untrained.prepare(image)
    assert isinstance(refiner, DiffusionRefiner)
    compare(
        taking_turns,
        refiner,
        once=lambda: refiner(image, image, prompts, noise=NOISE),
        each_step=lambda: forgetful(refiner, image, image, lambda: prompts),
    )


@torch.no_grad()
def test_prompts_and_conditions(taking_turns: TakingTurns, untrained: MoPRestorer, image: Tensor) -> None:
    refiner = untrained.fine
    assert isinstance(refiner, DiffusionRefiner)
    compare(
        taking_turns,
        refiner,
        once=lambda: refiner(image, image, untrained.prepare(image), noise=NOISE),
        each_step=lambda: forgetful(refiner, image, image, lambda: untrained.prepare(image)),
    )
