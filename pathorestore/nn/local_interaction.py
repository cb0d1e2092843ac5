"""Each feature among its neighbours: attention of a pixel to itself, to the mean around it and to the eight beside it."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_SIDE = 3
_CENTRE = _SIDE * _SIDE // 2


class LocalFeatureInteractor(nn.Module):
    """Attention of every feature of b c h w to ten tokens: itself, the mean of its 3 x 3 window, its eight neighbours.

    The feature itself has projections of its own, the others share theirs. Borders are reflected, replicated where a side is one pixel.
    heads must divide dim. Differentiable throughout; time and memory are linear in the number of pixels.
    Source: ISTE (Towards Arbitrary-scale Histopathology Image Super-resolution), local feature interactor. The root of the width divides
    the scores, as attention has it; the paper's formula divides what comes out, which the last projection absorbs.
    """

    def __init__(self, dim: int, *, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        self.heads = heads
        self.query = nn.Conv2d(dim, dim, 1)
        self.own = nn.Conv2d(dim, 2 * dim, 1)
        self.around = nn.Conv2d(dim, 2 * dim, 1)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        padded = F.pad(features, (1, 1, 1, 1), mode="reflect" if min(height, width) > 1 else "replicate")
        # projecting commutes with choosing neighbours and with taking means: it is done once for each pixel
        window = rearrange(F.unfold(self.around(padded), _SIDE), "b (c t) n -> b c t n", t=_SIDE * _SIDE)
        beside = torch.cat([window[:, :, :_CENTRE], window[:, :, _CENTRE + 1 :]], dim=2)
        tokens = torch.cat([self.own(features).flatten(2)[:, :, None], window.mean(dim=2, keepdim=True), beside], dim=2)
        keys, values = rearrange(tokens, "b (kv head d) t n -> kv b n head t d", kv=2, head=self.heads)
        query = rearrange(self.query(features), "b (head d) h w -> b (h w) head 1 d", head=self.heads)
        mixed = F.scaled_dot_product_attention(query, keys, values)
        return self.out(rearrange(mixed, "b (h w) head 1 d -> b (head d) h w", h=height))
