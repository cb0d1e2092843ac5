"""What it saves to compute, once for all sampling steps, what no step changes: the prompts and the denoiser's conditions."""

from collections.abc import Callable

import pytest
import torch
from conftest import TakingTurns
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

    return refiner.space.decode(sample(denoise, refiner.process, start, lambda step: refiner.space.noise(NOISE, step, start)))


@torch.no_grad()
def test_sampling_at_256_px(taking_turns: TakingTurns, untrained: MoPRestorer, image: Tensor) -> None:
    refiner = untrained.fine
    assert isinstance(refiner, DiffusionRefiner)

    def cached() -> Tensor:
        return refiner(image, image, untrained.prepare(image), noise=NOISE)

    def conditions_each_step() -> Tensor:
        prompts = untrained.prepare(image)
        return forgetful(refiner, image, image, lambda: prompts)

    def prompts_each_step() -> Tensor:
        return forgetful(refiner, image, image, lambda: untrained.prepare(image))

    contenders = {"cached": cached, "conditions each step": conditions_each_step, "prompts and conditions each step": prompts_each_step}
    results = [run() for run in contenders.values()]
    assert all(torch.allclose(result, results[0], atol=1e-5) for result in results)
    taking_turns(contenders, rounds=15)
    taking_turns.benchmark.extra_info["steps"] = refiner.process.steps
