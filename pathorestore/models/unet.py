"""The time-conditioned U-Net with window attention of ResShift (Yue et al., NeurIPS 2023), in a form that prompts can be injected into.

Module names follow the published checkpoints, so that those load by name.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.hub import Pretrained
from pathorestore.nn.conditioning import TimeResBlock, timestep_embedding
from pathorestore.nn.swin import SwinLayer, SwinMask


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of a `UNet`. in_channels: state plus image condition. channels: at full working resolution; mult: their factor per level.

    swin_*: the window attention of every level; mlp_ratio of its feed-forward. groups: of every group norm.
    """

    in_channels: int = 6
    out_channels: int = 3
    channels: int = 160
    mult: tuple[int, ...] = (1, 2, 2, 4)
    res_blocks: int = 2
    swin_dim: int = 192
    swin_heads: int = 6
    window: int = 8
    mlp_ratio: int = 4
    groups: int = 32
    swin_mask: SwinMask = "correct"

    def __post_init__(self) -> None:
        if min(self.in_channels, self.out_channels, self.channels, *self.mult, self.res_blocks) < 1:
            raise ValueError(f"channels, multipliers and blocks must be at least 1; got {self}")
        if self.channels % self.groups or self.swin_dim % self.groups or self.swin_dim % self.swin_heads:
            raise ValueError(f"groups must divide channels and swin_dim, swin_heads must divide swin_dim; got {self}")

    @property
    def multiple(self) -> int:
        """Working height and width must be multiples of this: a whole number of windows at the deepest level."""
        return self.window * 2 ** (len(self.mult) - 1)

    @classmethod
    def tiny(cls) -> "UNetConfig":
        """1.4 M parameters over pixel-unshuffled images (48 channels)."""
        return cls(
            in_channels=96, out_channels=48, channels=32, mult=(1, 1, 2), res_blocks=1, swin_dim=64, swin_heads=2, mlp_ratio=2, groups=8
        )

    @classmethod
    def base(cls) -> "UNetConfig":
        """20 M parameters over pixel-unshuffled images."""
        return cls(in_channels=96, out_channels=48, channels=64, swin_dim=96, swin_heads=3, mlp_ratio=2)

    @classmethod
    def paper(cls) -> "UNetConfig":
        """ResShift's published size for a three-channel working space of 64 x 64: 118,593,583 parameters."""
        return cls()


class UNet(nn.Module, Pretrained):
    """Working-space state (and condition) b c h w and step t in 0..T-1 -> b out h w. h, w: multiples of `config.multiple`."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        emb = 4 * config.channels
        widths = [config.channels * m for m in config.mult]
        self.time_embed = nn.Sequential(nn.Linear(config.channels, emb), nn.SiLU(), nn.Linear(emb, emb))

        def res(c_in: int, c_out: int) -> TimeResBlock:
            return TimeResBlock(c_in, c_out, embedding_dim=emb, groups=config.groups)

        def swin(channels: int) -> SwinLayer:
            return SwinLayer(
                channels,
                dim=config.swin_dim,
                window=config.window,
                heads=config.swin_heads,
                mlp_ratio=config.mlp_ratio,
                groups=config.groups,
                mask=config.swin_mask,
            )

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(config.in_channels, widths[0], 3, padding=1)])])
        skips, width = [widths[0]], widths[0]
        for level, c_out in enumerate(widths):
            for index in range(config.res_blocks):
                parts: list[nn.Module] = [res(width, c_out)]
                self.input_blocks.append(nn.ModuleList([*parts, swin(c_out)] if index == 0 else parts))
                width = c_out
                skips.append(width)
            if level + 1 < len(widths):
                self.input_blocks.append(nn.ModuleList([_Down(width)]))
                skips.append(width)
        self.middle_block = nn.ModuleList([res(width, width), swin(width), res(width, width)])
        self.output_blocks = nn.ModuleList()
        for level, c_out in reversed(list(enumerate(widths))):
            for index in range(config.res_blocks + 1):
                parts = [res(width + skips.pop(), c_out)]
                width = c_out
                if index == 0:
                    parts.append(swin(width))
                if index == config.res_blocks and level > 0:
                    parts.append(_Up(width))
                self.output_blocks.append(nn.ModuleList(parts))
        self.out = nn.Sequential(nn.GroupNorm(config.groups, width), nn.SiLU(), nn.Conv2d(width, config.out_channels, 3, padding=1))

    @property
    def deepest_width(self) -> int:
        """Channels of the deepest level."""
        return self.config.channels * self.config.mult[-1]

    def embed_time(self, t: Tensor) -> Tensor:
        """The time embedding of steps 0..T-1, b -> b 4 channels."""
        dtype = next(self.time_embed.parameters()).dtype
        return self.time_embed(timestep_embedding(t, self.config.channels).to(dtype))

    def forward(self, state: Tensor, t: Tensor) -> Tensor:
        return self.run(self.input_blocks[0][0](state), self.embed_time(t), NoInjection())  # type: ignore[index]

    def run(self, stem: Tensor, embedding: Tensor, inject: "Injection") -> Tensor:
        """Everything behind the first convolution. inject: called after the window attention of the deepest encoder and decoder level."""
        height, width = stem.shape[-2:]
        if height % self.config.multiple or width % self.config.multiple:
            raise ValueError(
                f"the U-Net got a working size of {height} x {width}; both must be multiples of {self.config.multiple}; pad the image first"
            )
        deepest = len(self.input_blocks) - self.config.res_blocks
        h, skips = stem, [stem]
        for index, block in enumerate(list(self.input_blocks)[1:], start=1):
            h = _through(block, h, embedding)
            h = inject.down(h) if index == deepest else h
            skips.append(h)
        h = _through(self.middle_block, h, embedding)
        for index, block in enumerate(self.output_blocks):
            h = _through(block, torch.cat([h, skips.pop()], dim=1), embedding)
            h = inject.up(h) if index == 0 else h
        return self.out(h)


class Injection(Protocol):
    """What is added at the two innermost window-attention layers."""

    def down(self, h: Tensor) -> Tensor:
        """After the deepest encoder level's window attention; b c h w -> same."""
        ...

    def up(self, h: Tensor) -> Tensor:
        """After the deepest decoder level's window attention; b c h w -> same."""
        ...


class NoInjection:
    """Adds nothing: the plain ResShift network."""

    def down(self, h: Tensor) -> Tensor:
        """Return h."""
        return h

    def up(self, h: Tensor) -> Tensor:
        """Return h."""
        return h


def _through(block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    for part in block.children():
        h = part(h, embedding) if isinstance(part, TimeResBlock) else part(h)
    return h


class _Down(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class _Up(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
