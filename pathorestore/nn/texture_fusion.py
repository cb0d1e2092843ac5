"""Self-texture fusion (STF of ISTE): a query takes the texture of its most similar key; exact, in memory that does not grow with the keys.

The definition compares every query with every key: N x N numbers, 275 GB for a 64 px tile at x8. Two facts make it small.

* Queries are sampled from the low-resolution map by nearest neighbour, so only h w of them differ. S, t, A and F_STF are functions of
  the query alone: compute them once for each low-resolution cell, then scatter with `Match.at` or plain indexing.
* A maximum can be taken block by block. `streamed_similarity` keeps one running (maximum, index) pair a query; keys are regenerated for
  each block and dropped. The matched textures are regenerated too: A = keys_at(match.index), one row a query.

Exactness. The last bits of a matrix product depend on its shape: blocks of 1 or 7 keys, or of a few queries, take another kernel than
large ones (float32, MKL). Here every product is QUERY_BLOCK x d times d x KEY_BLOCK, aligned to a fixed grid and padded with zeros at the
ends, whatever `key_chunk` says. So every `key_chunk` gives the same bits, by construction. That a query also finds the same bits beside
other queries, and a key at another place, rests on the kernel treating the rows of one shape alike: no library promises it, the tests
hold it. Against one N x N product the score differs by rounding (below 1e-6 in float32), and so may the index where two different keys
are as similar as that. A graphics processor has other bits than a CPU; there TF32 must be off for 1e-6 to hold.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUERY_BLOCK = 256
KEY_BLOCK = 512

Keys = Callable[[int, int], Tensor]
"""keys(start, stop): the rows start to stop of the keys, (stop - start) d."""
KeysAt = Callable[[Tensor], Tensor]
"""keys_at(index m): the keys of these indices, m d."""


# no NamedTuple: there `index` is a method
@dataclass(frozen=True, eq=False)
class Match:
    """The best key of each query: its cosine similarity, n, about [-1, 1], and its index among the keys, n, int64."""

    score: Tensor
    index: Tensor

    def at(self, cells: Tensor) -> "Match":
        """The matches of the queries `cells`, integers of any shape: from one row a low-resolution cell to one row a point."""
        return Match(self.score[cells], self.index[cells])


def unit(vectors: Tensor) -> Tensor:
    """Rows of ... d scaled to length 1; a row of zeros stays zeros, with a finite gradient. Half precision becomes float32.

    Any positive finite scale is safe: the division by the largest entry comes first, so that no square overflows or vanishes.
    """
    vectors = vectors if vectors.dtype in (torch.float32, torch.float64) else vectors.float()
    # a constant for autograd: the direction does not depend on the scale, so the gradient is whole without it
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1)
    # one entry is now 1 or -1, so only a row of zeros is shorter than 1
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp(min=1)


def naive_similarity(queries: Tensor, keys: Tensor) -> Match:
    """S_i = max_j cos(q_i, k_j) and t_i = its first argmax from the whole n m matrix: the definition, and the oracle of the tests.

    queries n d; keys m d.
    """
    score, index = (unit(queries) @ unit(keys).T).max(dim=1)
    return Match(score, index)


@torch.no_grad()
def streamed_similarity(queries: Tensor, count: int, keys: Keys, *, key_chunk: int = 8192) -> Match:
    """The same match with no n m matrix and no store of keys; no gradient (see `differentiable_similarity`).

    queries n d, distinct ones if the caller knows them. keys(start, stop) makes the rows start to stop of `count` keys; it is called
    with ascending, adjacent ranges, once each. key_chunk: the most keys made at a time, rounded down to a multiple of KEY_BLOCK but at
    least one block; a matter of memory alone, the result is the same to the bit if `keys` gives the same rows for any ranges.
    Among equal similarities the first index wins. A NaN among the keys reaches the scores, as in the definition.
    Memory beside the result: n d + about 3 key_chunk d numbers. Raises ValueError for no keys, no chunk, or rows of another shape.
    """
    if count < 1 or key_chunk < 1:
        raise ValueError(f"count and key_chunk must be at least 1, got count={count}, key_chunk={key_chunk}")
    size, width = queries.shape
    rows = unit(_padded(queries, QUERY_BLOCK))
    best = Match(rows.new_full((len(rows),), -math.inf), torch.zeros(len(rows), dtype=torch.long, device=rows.device))
    step = max(KEY_BLOCK, key_chunk // KEY_BLOCK * KEY_BLOCK)
    for start in range(0, count, step):
        stop = min(start + step, count)
        made = keys(start, stop)
        if made.shape != (stop - start, width):
            raise ValueError(f"keys({start}, {stop}) must be ({stop - start}, {width}) like the queries, got {tuple(made.shape)}")
        for first in range(start, stop, KEY_BLOCK):
            block = made[first - start : first - start + KEY_BLOCK]
            _improve(best, rows, unit(_padded(block, KEY_BLOCK)).to(rows.dtype), first=first, valid=len(block))
    return Match(best.score[:size], best.index[:size])


def _padded(rows: Tensor, block: int) -> Tensor:
    """Rows of zeros behind `rows`, up to a multiple of `block`; always row after row in memory, as sums differ in bits by layout too."""
    return F.pad(rows, (0, 0, 0, -len(rows) % block)).contiguous()


def _improve(best: Match, rows: Tensor, block: Tensor, *, first: int, valid: int) -> None:
    """Take the keys first to first + valid into the running match, in place; the rest of the block is padding."""
    with torch.autocast(rows.device.type, enabled=False):
        for low in range(0, len(rows), QUERY_BLOCK):
            part = slice(low, low + QUERY_BLOCK)
            score, index = (rows[part] @ block.T)[:, :valid].max(dim=1)
            held = best.score[part]
            # strictly better, so that the first of equal keys stays; NaN is carried because no comparison would ever show it
            better = (score > held) | (score.isnan() & ~held.isnan())
            best.score[part] = torch.where(better, score, held)
            best.index[part] = torch.where(better, index + first, best.index[part])


def smallest_stride(height: int, width: int, *, max_keys: int) -> int:
    """The smallest stride at which a height x width grid of keys has at most max_keys left."""
    if min(height, width, max_keys) < 1:
        raise ValueError(f"height, width and max_keys must be at least 1, got {height}, {width} and {max_keys}")
    stride = max(1, math.isqrt(height * width // max_keys))
    while -(-height // stride) * -(-width // stride) > max_keys:
        stride += 1
    return stride


def strided_index(height: int, width: int, *, stride: int, device: torch.device | None = None) -> Tensor:
    """Flat row-major indices of every stride-th row and column of a height x width grid, m, ascending. Stride 1 is the whole grid.

    Both axes are thinned alike: a stride over the flat index would keep all rows and few columns of a grid whose width it divides.
    """
    if min(height, width, stride) < 1:
        raise ValueError(f"height, width and stride must be at least 1, got {height}, {width} and {stride}")
    row, column = torch.arange(0, height, stride, device=device), torch.arange(0, width, stride, device=device)
    return (row[:, None] * width + column[None, :]).flatten()


def sampled_similarity(queries: Tensor, index: Tensor, keys_at: KeysAt, *, key_chunk: int = 8192) -> Match:
    """`streamed_similarity` among the keys `index` alone, m, for example `strided_index`; the match counts in the full grid.

    keys_at(index) makes the keys of any indices. With the whole grid as index this is the full search, so fewer keys are an
    approximation: each score is at most the full one.
    """
    match = streamed_similarity(queries, len(index), lambda start, stop: keys_at(index[start:stop]), key_chunk=key_chunk)
    return Match(match.score, index[match.index])


def differentiable_similarity(queries: Tensor, keys: Tensor) -> Match:
    """The match for training, where the keys are the sampled points and are held anyway: queries n d, keys m d.

    The index is searched without a gradient; the score is then one dot product a query, with gradients to both vectors. That is the
    gradient of the maximum away from ties, without an n m matrix kept for it. Gather the texture with `texture[match.index]`: its
    gradient flows through the gather to V, none through the index.
    """
    index = streamed_similarity(queries, len(keys), lambda start, stop: keys[start:stop], key_chunk=len(keys)).index
    return Match((unit(queries) * unit(keys[index])).sum(dim=-1), index)


class TextureFusion(nn.Module):
    """F_STF = q + Z S with Z = MLP([q, A]) (ISTE, arXiv 2401.15613; one linear layer in the authors' code). n d -> n d.

    query n d; score n, S_i; texture n d, the row A_i = V[t_i] of the best key. Any leading shape works.
    Row by row: with one row a low-resolution cell, index the result by the cell of each point.
    dim: d. layers: linear maps 2d -> d -> ... -> d without bias, ReLU between; 1 is the linear fusion. Raises ValueError below 1.
    """

    def __init__(self, dim: int, layers: int = 1):
        super().__init__()
        if dim < 1 or layers < 1:
            raise ValueError(f"dim and layers must be at least 1, got dim={dim}, layers={layers}")
        parts: list[nn.Module] = [nn.Linear(2 * dim, dim, bias=False)]
        for _ in range(layers - 1):
            parts += [nn.ReLU(), nn.Linear(dim, dim, bias=False)]
        self.fuse = nn.Sequential(*parts)

    def forward(self, query: Tensor, score: Tensor, texture: Tensor) -> Tensor:
        fused: Tensor = self.fuse(torch.cat([query, texture], dim=-1))
        return query + fused * score.to(fused.dtype)[..., None]
