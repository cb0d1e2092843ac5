"""How prompts and impressions of an image reach the networks: as context tokens, as one vector, and by FiLM in the coarse network.

Our definition of what LPFM's abstract leaves open. FiLM: Perez et al., AAAI 2018.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pathorestore.hub import Pretrained
from pathorestore.models.contrastive import THETA_DIM, Impression
from pathorestore.models.pformer import MULTIPLE_PX, Restormer, RestormerConfig
from pathorestore.models.swinir import SwinIR, SwinIRConfig
from pathorestore.models.text import Text

_PATCH_PX = 16


_TINY_RESTORMER = RestormerConfig(dim=12, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 2, 4, 4), gamma=2.0, hidden_multiple=8)


class Guidance(NamedTuple):
    """What networks are told: context b n d, for cross-attention, and a vector b v."""

    context: Tensor
    vector: Tensor


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Sizes of a `PromptFusion`. text_dim, image_dim, degradation_dim: of what comes in. context_dim: of what goes out.

    grid: image tokens are averaged to so many a side; 0 leaves them out.
    """

    text_dim: int = 64
    image_dim: int = 128
    degradation_dim: int = 32
    context_dim: int = 64
    grid: int = 4

    def __post_init__(self) -> None:
        if min(self.text_dim, self.image_dim, self.degradation_dim, self.context_dim) < 1 or self.grid < 0:
            raise ValueError(f"sizes must be at least 1, and grid 0; got {self}")

    @property
    def vector_dim(self) -> int:
        """Of `told`."""
        return self.text_dim + THETA_DIM + self.degradation_dim + 1

    @classmethod
    def tiny(cls) -> Self:
        """For the tiny encoders."""
        return cls()

    @classmethod
    def base(cls) -> Self:
        """For the base encoders and U-Net."""
        return cls(text_dim=256, image_dim=768, degradation_dim=128, context_dim=128, grid=8)

    @classmethod
    def paper(cls) -> Self:
        """For the U-Net of Stable Diffusion 2.1; with its text tower, text_dim is 1024."""
        return cls(text_dim=512, image_dim=1536, degradation_dim=128, context_dim=1024, grid=8)

    @classmethod
    def nano(cls) -> Self:
        """For tests."""
        return cls(text_dim=16, image_dim=16, degradation_dim=8, context_dim=16, grid=2)


def told(text: Text, impression: Impression | None, *, degradation_dim: int, known: Tensor | None = None) -> Tensor:
    """The vector that networks are told: pooled text, theta, degradation, and whether these two are known, else zeros.

    known: b, bool, whose impression counts; all unless given.
    """
    nothing = text.pooled.new_zeros(len(text.pooled), THETA_DIM + degradation_dim + 1)
    if impression is None:
        return torch.cat([text.pooled, nothing], dim=1)
    seen = torch.cat([impression.theta, impression.degradation, torch.ones_like(impression.theta[:, :1])], dim=1)
    return torch.cat([text.pooled, seen if known is None else torch.where(known[:, None], seen, nothing)], dim=1)


class PromptFusion(nn.Module, Pretrained):
    """Text and impression -> `Guidance`. Without an impression learned tokens and zeros stand for it: the prompt-only path.

    Text as wide as the context goes through as it is at first, as a U-Net expects it that has met this text encoder.
    """

    def __init__(self, config: FusionConfig):
        super().__init__()
        self.config = config
        self.text = nn.Linear(config.text_dim, config.context_dim)
        self.image = nn.Linear(config.image_dim, config.context_dim)
        self.nothing = nn.Parameter(0.02 * torch.randn(1, config.grid**2, config.context_dim))
        self.kinds = nn.Parameter(0.02 * torch.randn(2, config.context_dim))
        if config.text_dim == config.context_dim:
            nn.init.eye_(self.text.weight)
            nn.init.zeros_(self.text.bias)
            with torch.no_grad():
                self.kinds[0] = 0

    def forward(self, text: Text, impression: Impression | None = None, *, known: Tensor | None = None) -> Guidance:
        """impression: of square or other images, whose tokens lie row by row, see `averaged`. known: b, bool, whose impression counts."""
        image = self.nothing.expand(len(text.pooled), -1, -1)
        if impression is not None and self.config.grid:
            seen = self.image(impression.tokens)
            image = seen if known is None else torch.where(known[:, None, None], seen, image)
        context = torch.cat([self.text(text.tokens) + self.kinds[0], image + self.kinds[1]], dim=1)
        return Guidance(context, told(text, impression, degradation_dim=self.config.degradation_dim, known=known))

    def averaged(self, impression: Impression, image: Tensor) -> Impression:
        """The impression of images b 3 h w with grid x grid tokens, whatever their size."""
        if self.config.grid == 0:
            return impression._replace(tokens=impression.tokens[:, :0])
        rows = image.shape[-2] // _PATCH_PX
        tokens = rearrange(impression.tokens, "b (y x) d -> b d y x", y=rows)
        pooled = F.adaptive_avg_pool2d(tokens, self.config.grid)
        return impression._replace(tokens=pooled.flatten(2).transpose(1, 2))


@dataclass(frozen=True, kw_only=True)
class PromptedSwinIRConfig:
    """Sizes of a `PromptedSwinIR`. vector_dim: of what it is told."""

    swinir: SwinIRConfig = field(default_factory=SwinIRConfig.tiny_restoration)
    vector_dim: int = field(default_factory=lambda: FusionConfig().vector_dim)

    def __post_init__(self) -> None:
        if self.vector_dim < 1 or self.swinir.upsampler == "none":
            raise ValueError(f"expected a vector, and a SwinIR that gives an image; got {self}")

    @property
    def multiple(self) -> int:
        """Sides of an image are padded to it."""
        return self.swinir.multiple

    @classmethod
    def tiny(cls) -> Self:
        """0.5 M parameters."""
        return cls()

    @classmethod
    def base(cls) -> Self:
        """2.1 M parameters, for the base encoders."""
        return cls(swinir=SwinIRConfig.base_restoration(), vector_dim=FusionConfig.base().vector_dim)

    @classmethod
    def paper(cls) -> Self:
        """The restoration module of Histo-Diffusion, told a vector."""
        return cls(swinir=SwinIRConfig.restoration(), vector_dim=FusionConfig.paper().vector_dim)


class PromptedCoarse(nn.Module, Pretrained):
    """A first stage that is told a vector: images b 3 h w in [0, 1] and vectors b v -> images of their size, unclamped.

    What it is made of has places where features become (1 + gamma) x + beta of the vector, zero at first: then it is the plain network.
    net: takes an image and `film`, see `SwinIR`. widths: channels at each place. Its config has `multiple` too, to which sides are padded.
    """

    def __init__(self, net: SwinIR | Restormer, *, vector_dim: int, widths: Iterable[int]):
        super().__init__()
        self.net = net
        self.film = nn.ModuleList(nn.Linear(vector_dim, 2 * width) for width in widths)
        for parameter in self.film.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        modulated: Tensor = self.net(image, film=[layer(vector) for layer in self.film])
        return modulated


class PromptedSwinIR(PromptedCoarse):
    """A SwinIR that is told a vector behind each residual group."""

    def __init__(self, config: PromptedSwinIRConfig):
        sizes = config.swinir
        super().__init__(SwinIR(sizes), vector_dim=config.vector_dim, widths=[sizes.embed] * len(sizes.blocks))
        self.config = config


@dataclass(frozen=True, kw_only=True)
class PromptedRestormerConfig:
    """Sizes of a `PromptedRestormer`. vector_dim: of what it is told."""

    restormer: RestormerConfig = _TINY_RESTORMER
    vector_dim: int = field(default_factory=lambda: FusionConfig().vector_dim)

    def __post_init__(self) -> None:
        if self.vector_dim < 1 or self.restormer.hint_channels:
            raise ValueError(f"expected a vector, and no hint_channels; got {self}")

    @property
    def multiple(self) -> int:
        """Sides of an image are padded to it."""
        return MULTIPLE_PX

    @classmethod
    def tiny(cls) -> Self:
        """0.5 M parameters."""
        return cls()

    @classmethod
    def base(cls) -> Self:
        """For the base encoders."""
        return cls(restormer=RestormerConfig.base(), vector_dim=FusionConfig.base().vector_dim)

    @classmethod
    def paper(cls) -> Self:
        """Restormer as published, which the published code has as its other coarse network, told a vector."""
        return cls(restormer=RestormerConfig.paper(), vector_dim=FusionConfig.paper().vector_dim)


class PromptedRestormer(PromptedCoarse):
    """A Restormer that is told a vector behind each level."""

    def __init__(self, config: PromptedRestormerConfig):
        super().__init__(Restormer(config.restormer), vector_dim=config.vector_dim, widths=config.restormer.level_widths)
        self.config = config
