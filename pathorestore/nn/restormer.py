"""The transposed-attention block: channel LayerNorm, MDTA and GDFN (Zamir et al., Restormer, CVPR 2022, sec. 3)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of every pixel, biased variance, eps 1e-5, affine. b c h w -> b c h w."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = _Affine(channels)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        variance, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
        scale = torch.rsqrt(variance + 1e-5)
        weight, bias = self.body.weight[:, None, None].to(wide.dtype), self.body.bias[:, None, None].to(wide.dtype)
        return torch.addcmul(bias, (wide - mean) * scale, weight).to(x.dtype)


class _Affine(nn.Module):
    """Holds weight and bias one level down, where the published checkpoints keep them (`norm1.body.weight`)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))


class MDTA(nn.Module):
    """Multi-Dconv head transposed attention: a (c/heads) x (c/heads) attention between channels. b c h w -> b c h w."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def attention_map(self, q: Tensor, k: Tensor) -> Tensor:
        """softmax(norm(q) norm(k)^T * temperature) for q, k of b heads d n; b heads d d, rows sum to one."""
        # normalising the small product instead of the two long operands saves two passes over the image
        scores = q @ k.transpose(-2, -1)
        norms = q.norm(dim=-1).clamp_min(1e-12)[..., :, None] * k.norm(dim=-1).clamp_min(1e-12)[..., None, :]
        return (scores / norms * self.temperature).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv_dwconv(self.qkv(x)), "b (qkv head d) h w -> qkv b head d (h w)", qkv=3, head=self.heads)
        mixed = self.attention_map(q, k) @ v
        return self.project_out(rearrange(mixed, "b head d (h w) -> b (head d) h w", h=x.shape[-2]))


class GDFN(nn.Module):
    """Gated-Dconv feed-forward: gelu(u1) * u2 after a depthwise convolution. b c h w -> b c h w. hidden: channels of each half."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(first) * second)


class TransposedAttentionBlock(nn.Module):
    """x + MDTA(LN x), then x + FFN(LN x); `ffn` is any module b c h w -> b c h w, possibly taking a prompt signal as second argument."""

    def __init__(self, channels: int, heads: int, ffn: nn.Module):
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.attn = MDTA(channels, heads)
        self.norm2 = ChannelNorm(channels)
        self.ffn = ffn

    def forward(self, x: Tensor, *signal: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x), *signal)


class Downsample(nn.Module):
    """Halve the resolution and double the channels: conv3x3 c -> c/2, then pixel unshuffle."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Upsample(nn.Module):
    """Double the resolution and halve the channels: conv3x3 c -> 2c, then pixel shuffle."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels * 2, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)
