"""Conditioning on time: the sinusoidal embedding and the residual block that it scales and shifts."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """[cos(t f_i), sin(t f_i)] with f_i = exp(-ln(10000) i / (dim/2)), b -> b dim (Vaswani et al. 2017)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeResBlock(nn.Module):
    """GroupNorm-SiLU-conv twice, the embedding's scale and shift after the second norm, zero at first. b c_in h w -> b c_out h w."""

    def __init__(self, c_in: int, c_out: int, *, embedding_dim: int, groups: int):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_dim, 2 * c_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, c_out), nn.SiLU(), nn.Identity(), zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        )
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](self.in_layers(x)) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[3](F.silu(h))


def zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """The same convolution with zero weights: what it feeds starts unchanged."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
