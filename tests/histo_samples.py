"""A small generative system for tests."""

import torch
from torch import nn

from pathorestore.pipelines.histo_diffusion import HistoDiffusion, HistoDiffusionConfig


def awake_nano() -> HistoDiffusion:
    """A nano system whose control branch, which begins silent, has a say."""
    torch.manual_seed(0)
    made = HistoDiffusion.of(HistoDiffusionConfig.nano()).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in made.sampler.denoiser.control.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return made
