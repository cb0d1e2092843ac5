"""Shifted-window attention on feature maps, in the GroupNorm form that ResShift's U-Net uses (Liu et al., ICCV 2021; Yue et al. 2023)."""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SwinMask = Literal["correct", "resshift"]


class WindowAttention(nn.Module):
    """Multi-head attention inside windows of tokens, (b windows) n c -> same, with a learned bias per relative position."""

    def __init__(self, dim: int, *, window: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_positions(window), persistent=False)

    def bias(self) -> Tensor:
        """The bias of every pair of window positions, heads n n."""
        index = self.relative_position_index
        assert isinstance(index, Tensor)
        return self.relative_position_bias_table[index].permute(2, 0, 1)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """mask: windows n n added to the scores, or None where no shift happened."""
        q, k, v = rearrange(self.qkv(tokens), "b n (qkv head d) -> qkv b head n d", qkv=3, head=self.heads)
        bias = self.bias()[None]
        if mask is not None:
            bias = bias + mask.repeat(len(tokens) // len(mask), 1, 1)[:, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(rearrange(mixed, "b head n d -> b n (head d)"))


class SwinBlock(nn.Module):
    """x + WMSA(GN x), then x + MLP(GN x), on b c h w with h and w multiples of the window. shift: by how much the windows are displaced."""

    def __init__(self, dim: int, *, window: int, heads: int, mlp_ratio: int, shift: int, groups: int, mask: SwinMask):
        super().__init__()
        self.window, self.shift, self.mask = window, shift, mask
        self.norm1 = nn.GroupNorm(groups, dim)
        self.attn = WindowAttention(dim, window=window, heads=heads)
        self.norm2 = nn.GroupNorm(groups, dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Conv2d(dim, mlp_ratio * dim, 1), "fc2": nn.Conv2d(mlp_ratio * dim, dim, 1)})

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # a map no larger than one window has nothing to shift into
        shift = self.shift if min(height, width) > self.window else 0
        h = torch.roll(self.norm1(x), (-shift, -shift), dims=(2, 3)) if shift else self.norm1(x)
        tokens = rearrange(h, "b c (y wy) (x wx) -> (b y x) (wy wx) c", wy=self.window, wx=self.window)
        mask = shift_mask(height, width, self.window, shift, self.mask).to(x.device) if shift else None
        tokens = self.attn(tokens, mask)
        h = rearrange(tokens, "(b y x) (wy wx) c -> b c (y wy) (x wx)", y=height // self.window, x=width // self.window, wy=self.window)
        x = x + (torch.roll(h, (shift, shift), dims=(2, 3)) if shift else h)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class SwinLayer(nn.Module):
    """Two Swin blocks, plain then shifted, between 1x1 convolutions; no residual around the layer. b channels h w -> same."""

    def __init__(self, channels: int, *, dim: int, window: int, heads: int, mlp_ratio: int, groups: int, mask: SwinMask):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, dim, 1)})
        self.blocks = nn.ModuleList(
            SwinBlock(dim, window=window, heads=heads, mlp_ratio=mlp_ratio, shift=shift, groups=groups, mask=mask)
            for shift in (0, window // 2)
        )
        self.patch_unembed = nn.ModuleDict({"proj": nn.Conv2d(dim, channels, 1)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x)
        for block in self.blocks:
            x = block(x)
        return self.patch_unembed["proj"](x)


def _relative_positions(window: int) -> Tensor:
    """Index into the (2 window - 1)^2 bias table for every pair of positions, n n."""
    grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def shift_mask(height_px: int, width_px: int, window: int, shift: int, kind: SwinMask) -> Tensor:
    """-100 for pairs of a rolled window that were not neighbours in the image, else 0: windows n n.

    kind "resshift" orders the positions inside a window column by column, as the published checkpoints were trained with; "correct" row by
    row, as the tokens are.
    """
    # a tensor made while tracing stands for one; kept, it would come back in ordinary calls
    make = _make_mask.__wrapped__ if torch.compiler.is_compiling() else _make_mask
    return make(height_px, width_px, window, shift, kind)


@functools.lru_cache(maxsize=32)
def _make_mask(height_px: int, width_px: int, window: int, shift: int, kind: SwinMask) -> Tensor:
    # on the CPU whatever device a caller's context prescribes, since the next caller's may be another
    region = torch.zeros(height_px, width_px, device="cpu")
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for row, y in enumerate(cuts):
        for column, x in enumerate(cuts):
            region[y, x] = 3 * row + column
    order = "(wy wx)" if kind == "correct" else "(wx wy)"
    windows = rearrange(region, f"(y wy) (x wx) -> (y x) {order}", wy=window, wx=window)
    return torch.where(windows[:, None] == windows[:, :, None], 0.0, -100.0)
