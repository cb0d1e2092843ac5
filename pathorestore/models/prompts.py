"""The three prompts of MoP and the `Prompter` that makes them from one degraded image (arXiv 2503.12399, sec. 3.2, fig. 2)."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.functional.edges import canny
from pathorestore.hub import Pretrained
from pathorestore.models.defocus import DefocusEstimator
from pathorestore.models.encoders import Embedding, PathologyEncoder
from pathorestore.models.optics_prompt import NoOptics, OpticsPrompt
from pathorestore.nn.attention import TokenAttention

_NO_OPTICS = NoOptics()
_GRID = 8  # the defocus prompt is pooled to 8 x 8 tokens for the pathology prompt's cross-attention


class Prompts(NamedTuple):
    """What the restoration stages are told about an image.

    pathology: restored pathology prompt P_P, b d. edge: defocus-weighted edge prompt P_E, b C_e h w at the working resolution of the fine
    stage.
    defocus_um: signed distance to focus, b. ctf: contrast-transfer value, b. optics: hints for the coarse stage, b c h w, c = 0 without an
    optics prompt. defocus: defocus prompt P_D averaged over the image, b c_D. degraded_pathology: the embedding before it was restored,
    P_LP, b d; routers of ablations look at these two.
    """

    pathology: Tensor
    edge: Tensor
    defocus_um: Tensor
    ctf: Tensor
    optics: Tensor
    defocus: Tensor
    degraded_pathology: Tensor


@dataclass(frozen=True, kw_only=True)
class PathologyPromptConfig:
    """Sizes of a `PathologyPrompt`.

    encoder_dim: the encoder's width; defocus_dim: channels of P_D; width, layers, heads, ffn_ratio: of the blocks.
    mode: "tokens" restores the class vector and the patch tokens, "vector" the class vector alone, "paper_gap" is the figure taken
    literally: the
    class vector against one pooled defocus token.
    """

    encoder_dim: int = 192
    defocus_dim: int = 128
    width: int = 192
    layers: int = 2
    heads: int = 4
    ffn_ratio: int = 2
    mode: Literal["tokens", "vector", "paper_gap"] = "tokens"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be divisible by heads; got width={self.width}, heads={self.heads}")
        if self.mode not in ("tokens", "vector", "paper_gap"):
            raise ValueError(f"mode must be tokens, vector or paper_gap; got {self.mode!r}")

    @classmethod
    def tiny(cls) -> "PathologyPromptConfig":
        """For `TinyEncoderConfig.tiny()` and `DefocusEstimatorConfig.tiny()`."""
        return cls()

    @classmethod
    def base(cls) -> "PathologyPromptConfig":
        """For a ViT-B class encoder (768) and `DefocusEstimatorConfig.base()`."""
        return cls(encoder_dim=768, defocus_dim=256, width=384, layers=3, heads=6, ffn_ratio=4)

    @classmethod
    def paper(cls) -> "PathologyPromptConfig":
        """For Prov-GigaPath (1536) and ResNet-34; the paper leaves depth and width open, the released code has 2 layers of 512."""
        return cls(encoder_dim=1536, defocus_dim=512, width=512, layers=2, heads=8, ffn_ratio=4)


class PathologyPrompt(nn.Module, Pretrained):
    """Restores the embedding of a degraded image towards that of the sharp one, looking at the defocus prompt.

    Stacked blocks of self-attention, cross-attention to the defocus tokens and a feed-forward network, added to the embedding through a
    zero-initialised projection: untrained, it returns its input. Images of a batch never see each other.
    """

    def __init__(self, config: PathologyPromptConfig):
        super().__init__()
        self.config = config
        self.in_proj = nn.Linear(config.encoder_dim, config.width)
        self.blocks = nn.ModuleList(_PromptBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.out_proj = nn.Linear(config.width, config.encoder_dim)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)
        self.positions: Tensor
        self.register_buffer("positions", _sincos_grid(config.defocus_dim, _GRID), persistent=False)

    def forward(self, embedding: Embedding, defocus_features: Tensor) -> Embedding:
        """Restored embedding of the same shapes. defocus_features: P_D, b c h w."""
        tokens = embedding.cls[:, None]
        if self.config.mode == "tokens":
            tokens = torch.cat([tokens, embedding.tokens], dim=1)
        context = self._defocus_tokens(defocus_features)
        x = self.in_proj(tokens)
        for block in self.blocks:
            x = block(x, context)
        restored = tokens + self.out_proj(self.norm(x))
        kept = embedding.tokens if self.config.mode != "tokens" else restored[:, 1:]
        return Embedding(restored[:, 0], kept)

    def _defocus_tokens(self, features: Tensor) -> Tensor:
        if self.config.mode == "paper_gap":
            return features.mean(dim=(2, 3))[:, None]
        return F.adaptive_avg_pool2d(features, _GRID).flatten(2).transpose(1, 2) + self.positions


class _PromptBlock(nn.Module):
    def __init__(self, config: PathologyPromptConfig):
        super().__init__()
        width, context = config.width, config.defocus_dim
        self.norm_self, self.norm_cross, self.norm_context, self.norm_ffn = (nn.LayerNorm(n) for n in (width, width, context, width))
        self.self_attention = TokenAttention(width, context_dim=width, heads=config.heads)
        self.cross_attention = TokenAttention(width, context_dim=context, heads=config.heads)
        self.ffn = nn.Sequential(nn.Linear(width, config.ffn_ratio * width), nn.GELU(), nn.Linear(config.ffn_ratio * width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, normed)
        x = x + self.cross_attention(self.norm_cross(x), self.norm_context(context))
        return x + self.ffn(self.norm_ffn(x))


def _sincos_grid(dim: int, side: int) -> Tensor:
    """Fixed two-dimensional sine-cosine positions, side^2 x dim: half the channels for rows, half for columns."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(dim // 4) / (dim // 4))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    grid = torch.cat([rows, columns], dim=2).reshape(side * side, -1)
    return F.pad(grid, (0, dim - grid.shape[1]))


@dataclass(frozen=True, kw_only=True)
class EdgePromptConfig:
    """Sizes of an `EdgePrompt`.

    channels: C_e. factor: working resolution = image / factor (1 for pixel space, 4 for unshuffle and latent f4).
    confidence: what turns the defocus projection into a weight; the paper calls it a confidence and names no activation.
    weighted: False leaves the weight out and gives the convolved edges P_LE as they are (an ablation of the paper, table 5).
    """

    defocus_dim: int = 128
    channels: int = 16
    factor: int = 4
    confidence: Literal["sigmoid", "none"] = "sigmoid"
    weighted: bool = True

    def __post_init__(self) -> None:
        if min(self.defocus_dim, self.channels, self.factor) < 1:
            raise ValueError(f"defocus_dim, channels and factor must be at least 1; got {self}")

    @classmethod
    def tiny(cls) -> "EdgePromptConfig":
        """16 channels over `DefocusEstimatorConfig.tiny()`."""
        return cls()

    @classmethod
    def base(cls) -> "EdgePromptConfig":
        """32 channels over `DefocusEstimatorConfig.base()`."""
        return cls(defocus_dim=256, channels=32)

    @classmethod
    def paper(cls) -> "EdgePromptConfig":
        """Over ResNet-34; the paper does not state the channels."""
        return cls(defocus_dim=512, channels=32)


class EdgePrompt(nn.Module, Pretrained):
    """Canny edges weighted by how far the defocus prompt trusts them: P_E = conv(P_LE) * up(conf(conv(P_D)))."""

    def __init__(self, config: EdgePromptConfig):
        super().__init__()
        self.config = config
        self.unshuffle = nn.PixelUnshuffle(config.factor)
        self.edge_conv = nn.Conv2d(config.factor**2, config.channels, 3, padding=1)
        if config.weighted:
            self.defocus_conv = nn.Conv2d(config.defocus_dim, config.channels, 1)

    def forward(self, edges: Tensor, defocus_features: Tensor) -> Tensor:
        """edges: b 1 h w in {0, 1}, h and w multiples of the factor; defocus_features: P_D. Returns b C_e h/factor w/factor."""
        features = self.edge_conv(self.unshuffle(edges))
        if not self.config.weighted:
            return features
        confidence = self.defocus_conv(defocus_features)
        confidence = confidence.sigmoid() if self.config.confidence == "sigmoid" else confidence
        return features * F.interpolate(confidence, size=features.shape[-2:], mode="bilinear", align_corners=False)


class Prompter(nn.Module):
    """image -> prompts: the frozen encoder and estimator, the prompt restorer and the edge prompt, composed as in the paper's figure 2.

    optics: beyond the paper, an optics prompt for a coarse stage that takes its hints.
    """

    def __init__(
        self,
        encoder: PathologyEncoder,
        defocus: DefocusEstimator,
        pathology: PathologyPrompt,
        edge: EdgePrompt,
        optics: OpticsPrompt | NoOptics = _NO_OPTICS,
    ):
        super().__init__()
        width = encoder.dim
        if pathology.config.encoder_dim != width:
            raise ValueError(f"the encoder is {width} wide but the pathology prompt expects encoder_dim={pathology.config.encoder_dim}")
        for name, part in (("pathology", pathology), ("edge", edge)):
            if part.config.defocus_dim != defocus.dim:
                raise ValueError(
                    f"the estimator gives {defocus.dim} channels but the {name} prompt expects defocus_dim={part.config.defocus_dim}"
                )
        self.encoder, self.defocus, self.pathology, self.edge, self.optics = encoder, defocus, pathology, edge, optics
        self.train(self.training)

    @property
    def dim(self) -> int:
        """Width of the pathology prompt."""
        return self.encoder.dim

    def train(self, mode: bool = True) -> "Prompter":  # noqa: FBT001, FBT002 - torch's own signature
        """Only the edge prompt, which learns with the fine stage, ever leaves evaluation mode: batch statistics must not drift."""
        super().train(False)
        self.edge.train(mode)
        return self

    def forward(self, image: Tensor) -> Prompts:
        """Prompts of degraded images b 3 h w in [0, 1]; h and w multiples of the edge prompt's factor."""
        estimate = self.defocus(image)
        embedding = self.encoder(image)
        return Prompts(
            pathology=self.pathology(embedding, estimate.features).cls,
            edge=self.edge(canny(image), estimate.features),
            defocus_um=estimate.defocus_um,
            ctf=estimate.ctf,
            optics=self.optics(image, estimate.defocus_um),
            defocus=estimate.features.mean(dim=(2, 3)),
            degraded_pathology=embedding.cls,
        )
