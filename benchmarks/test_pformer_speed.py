"""What the mixture of experts costs: folded kernels against the two direct ways to compute it, and against a Restormer of equal width.

PATHORESTORE_BENCH_PRESET=base measures the larger preset.
"""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from taking_turns import TakingTurns
from torch import Tensor, nn

from pathorestore.models.pformer import PFormer, PFormerConfig, Restormer, RestormerConfig
from pathorestore.nn.experts import MoeImpl

PRESET = os.environ.get("PATHORESTORE_BENCH_PRESET", "tiny")
IMPLEMENTATIONS: tuple[MoeImpl, ...] = ("folded", "taps", "naive")


def networks() -> dict[str, nn.Module]:
    """The same P-former three times, with equal weights, and a Restormer."""
    torch.manual_seed(0)
    config: PFormerConfig = getattr(PFormerConfig, PRESET)()
    made: dict[str, nn.Module] = {name: PFormer(replace(config, moe_impl=name)) for name in IMPLEMENTATIONS}
    for name in IMPLEMENTATIONS[1:]:
        made[name].load_state_dict(made["folded"].state_dict())
    restormer: RestormerConfig = getattr(RestormerConfig, PRESET)()
    return made | {"Restormer": Restormer(restormer)}


def inputs(network: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    """What a network takes: the image, and for a P-former the prompt."""
    generator = torch.Generator().manual_seed(1)
    return (image, torch.randn(len(image), network.config.prompt_dim, generator=generator)) if isinstance(network, PFormer) else (image,)


def inference(network: nn.Module, image: Tensor) -> Callable[[], Tensor]:
    """A call that runs the network on the image."""
    arguments = inputs(network.eval(), image)

    @torch.no_grad()
    def run() -> Tensor:
        restored: Tensor = network(*arguments)
        return restored

    return run


def training_step(network: nn.Module, image: Tensor) -> Callable[[], None]:
    """A call that takes one optimiser step on the batch."""
    arguments, optimizer = inputs(network.train(), image), torch.optim.AdamW(network.parameters())

    def run() -> None:
        optimizer.zero_grad()
        F.l1_loss(network(*arguments), image).backward()
        optimizer.step()

    return run


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def batch() -> Tensor:
    return torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_inference_at_256_px(taking_turns: TakingTurns, image: Tensor) -> None:
    contenders = {name: inference(network, image) for name, network in networks().items()}
    results = [contenders[name]() for name in IMPLEMENTATIONS]
    assert all(torch.allclose(result, results[0], atol=1e-5) for result in results)
    taking_turns(contenders)
    taking_turns.benchmark.extra_info["preset"] = PRESET


def test_training_step_at_64_px_in_batches_of_8(taking_turns: TakingTurns, batch: Tensor) -> None:
    taking_turns({name: training_step(network, batch) for name, network in networks().items()})
    taking_turns.benchmark.extra_info["preset"] = PRESET
