"""A contrastive encoder: what is shown, whatever its stain and quality, and what was done to it, whatever is shown.

Our reading of the encoder of LPFM, of which only the abstract is known: one trunk, two projection heads. Content is what views of one patch
have in common (InfoNCE; van den Oord et al., arXiv 1807.03748), degradation what patches have in common that suffered alike (supervised
contrast; Khosla et al., NeurIPS 2020), with a regression of its parameters.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.degradations.composed import Theta
from pathorestore.hub import Pretrained
from pathorestore.models.encoders import Embedding, TinyEncoder, TinyEncoderConfig

THETA_DIM = len(Theta._fields)


@dataclass(frozen=True, kw_only=True)
class ContrastiveEncoderConfig:
    """Sizes of a `ContrastiveEncoder`. hidden: of its heads. content_dim, degradation_dim: of what these give."""

    trunk: TinyEncoderConfig = field(default_factory=lambda: TinyEncoderConfig(widths=(32, 64, 128)))
    hidden: int = 128
    content_dim: int = 128
    degradation_dim: int = 32

    def __post_init__(self) -> None:
        if min(self.hidden, self.content_dim, self.degradation_dim) < 1:
            raise ValueError(f"widths must be at least 1; got {self}")

    @classmethod
    def tiny(cls) -> Self:
        """0.4 M parameters."""
        return cls()

    @classmethod
    def base(cls) -> Self:
        """A trunk of 10.8 M parameters, 768-wide."""
        return cls(trunk=TinyEncoderConfig.base(), hidden=768, content_dim=128, degradation_dim=128)

    @classmethod
    def paper(cls) -> Self:
        """The trunk at its largest, 1536-wide; the paper's own is not known."""
        return cls(trunk=TinyEncoderConfig.paper(), hidden=1536, content_dim=128, degradation_dim=128)

    @classmethod
    def nano(cls) -> Self:
        """For tests."""
        return cls(trunk=TinyEncoderConfig(widths=(8, 12, 16), blocks=(1, 1, 1)), hidden=16, content_dim=8, degradation_dim=8)


class Impression(NamedTuple):
    """What the encoder says of images b 3 h w. content b c and degradation b d: unit vectors; theta b 5: see `Theta.normalised`.

    tokens: b n w, of patches of 16 x 16 px in row-major order.
    """

    tokens: Tensor
    content: Tensor
    degradation: Tensor
    theta: Tensor


class ContrastiveEncoder(nn.Module, Pretrained):
    """A `TinyEncoder` as the trunk, and heads on the mean and the spread of its tokens. Takes images of at least 16 px a side as they are.

    `trunk` alone is a `PathologyEncoder`, for other systems' prompts; `estimate` tells how degraded images are.
    """

    def __init__(self, config: ContrastiveEncoderConfig):
        super().__init__()
        self.config = config
        self.trunk = TinyEncoder(config.trunk)
        self.content = _head(2 * self.dim, config.hidden, config.content_dim)
        self.degradation = _head(2 * self.dim, config.hidden, config.degradation_dim)
        self.theta = _head(2 * self.dim, config.hidden, THETA_DIM)

    @property
    def dim(self) -> int:
        """Width of the trunk's tokens."""
        return self.trunk.dim

    def forward(self, image: Tensor) -> Impression:
        found: Embedding = self.trunk(image)
        # an image of one token has no spread, whose root would have no slope at zero
        spread = (found.tokens.var(dim=1, correction=0) + 1e-6).sqrt()
        pooled = torch.cat([found.cls, spread], dim=1)
        content, degradation = (F.normalize(head(pooled), dim=1) for head in (self.content, self.degradation))
        return Impression(found.tokens, content, degradation, self.theta(pooled))

    @torch.no_grad()
    def estimate(self, image: Tensor) -> Theta:
        """What was done to images b 3 h w in [0, 1], in its own units."""
        return Theta.from_normalised(self(image).theta)


def _head(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
