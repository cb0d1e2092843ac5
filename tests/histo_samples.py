"""Small generative systems for tests."""

import torch
from torch import nn

from pathorestore.pipelines.histo_diffusion import HistoDiffusion, HistoDiffusionConfig
from pathorestore.pipelines.lpfm import LPFM, LPFMConfig


def awake_nano() -> HistoDiffusion:
    """A nano system whose control branch, which begins silent, has a say."""
    torch.manual_seed(0)
    made = HistoDiffusion.of(HistoDiffusionConfig.nano()).eval()
    _wake(made.sampler.denoiser.control)
    return made


def awake_lpfm(config: LPFMConfig | None = None) -> LPFM:
    """A nano system in which prompts, FiLM and control have a say."""
    torch.manual_seed(0)
    made = LPFM.of(config or LPFMConfig.nano()).eval()
    _wake(made)
    return made


def _wake(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1, generator=generator)
