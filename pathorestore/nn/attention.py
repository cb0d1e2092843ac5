"""Attention over tokens: self- and cross-attention with several heads."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class TokenAttention(nn.Module):
    """Multi-head attention from tokens b n dim to context tokens b m context_dim; pass the same tensor twice for self-attention."""

    def __init__(self, dim: int, *, context_dim: int, heads: int, head_dim: int | None = None, bias: bool = True):
        super().__init__()
        if head_dim is None and dim % heads:
            raise ValueError(f"dim={dim} is not divisible by heads={heads}")
        self.heads = heads
        inner = heads * (head_dim or dim // heads)
        self.q = nn.Linear(dim, inner, bias=bias)
        self.k = nn.Linear(context_dim, inner, bias=bias)
        self.v = nn.Linear(context_dim, inner, bias=bias)
        self.out = nn.Linear(inner, dim, bias=bias)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values b heads m d of a context; reusable while the context stays the same."""
        return self._split(self.k(context)), self._split(self.v(context))

    def attend(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        """Attention of tokens b n dim over precomputed keys and values; b n dim."""
        mixed = F.scaled_dot_product_attention(self._split(self.q(x)), *keys_values)
        return self.out(rearrange(mixed, "b head n d -> b n (head d)"))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.attend(x, self.keys_values(context))

    def _split(self, tokens: Tensor) -> Tensor:
        return rearrange(tokens, "b n (head d) -> b head n d", head=self.heads)
