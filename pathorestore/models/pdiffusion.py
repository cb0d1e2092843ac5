"""P-diffusion, the fine stage's network: ResShift's U-Net told about edges and pathology (MoP, arXiv 2503.12399, sec. 3.4).

Everything that does not change from step to step is computed once, by `condition`.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from pathorestore.hub import Pretrained
from pathorestore.models.latent import SpaceName, UnshuffleSpace, WorkingSpace
from pathorestore.models.prompts import Prompts
from pathorestore.models.unet import UNet, UNetConfig
from pathorestore.nn.attention import TokenAttention
from pathorestore.nn.conditioning import zeroed


@dataclass(frozen=True, kw_only=True)
class PDiffusionConfig:
    """Sizes of a `PDiffusion`.

    unet: its trunk. space, factor: where it works; "latent" needs the autoencoder that the caller brings.
    prompt_dim: width of the pathology prompt; context_tokens, context_dim: the tokens it becomes; null_token: one more, learned, on which
    attention can rest. edge_channels: C_e. predict: "clean" gives x_0 itself (paper), "residual" adds it to the coarse state, which trains
    faster when small.
    see_degraded: whether the degraded image is a condition beside the coarse one.
    """

    unet: UNetConfig
    space: SpaceName = "unshuffle"
    factor: int = 4
    prompt_dim: int = 192
    context_tokens: int = 8
    context_dim: int = 768
    null_token: bool = True
    edge_channels: int = 32
    head_dim: int = 32
    predict: Literal["clean", "residual"] = "clean"
    see_degraded: bool = False

    def __post_init__(self) -> None:
        if self.context_tokens < 1 or self.factor < 1:
            raise ValueError(f"context_tokens and factor must be at least 1; got {self.context_tokens} and {self.factor}")
        if self.space == "pixel" and self.factor != 1:
            raise ValueError(f"pixel space has factor 1, got {self.factor}")
        conditions = 2 if self.see_degraded else 1
        if self.unet.in_channels != (1 + conditions) * self.unet.out_channels:
            raise ValueError(
                f"the U-Net takes the state and {conditions} condition(s) of {self.unet.out_channels} channels each: "
                f"in_channels must be {(1 + conditions) * self.unet.out_channels}, got {self.unet.in_channels}"
            )

    @classmethod
    def tiny(cls) -> "PDiffusionConfig":
        """1.5 M parameters, unshuffled by 4; one step of a 256 px tile takes some 50 ms on two CPU cores."""
        return cls(unet=UNetConfig.tiny(), context_tokens=4, context_dim=64, edge_channels=16, predict="residual")

    @classmethod
    def base(cls) -> "PDiffusionConfig":
        """20 M parameters, unshuffled by 4."""
        return cls(unet=UNetConfig.base(), prompt_dim=768, context_dim=512, predict="residual")

    @classmethod
    def paper(cls) -> "PDiffusionConfig":
        """ResShift's size, unshuffled by 4 (the paper does not state its space), Prov-GigaPath's prompt."""
        return cls(unet=replace(UNetConfig.paper(), in_channels=96, out_channels=48), prompt_dim=1536)


class Conditions(NamedTuple):
    """What all steps share.

    images: condition states b c h w. base: the state that a residual prediction is added to. edge: W_e P_E, b c h w.
    down, up: keys and values of the pathology tokens for the two cross-attentions.
    """

    images: Tensor
    base: Tensor
    edge: Tensor
    down: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]


class PDiffusion(nn.Module, Pretrained):
    """Predicts the clean state from a noisy one, the coarse image and the prompts; injections start at zero and change nothing."""

    def __init__(self, config: PDiffusionConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        width = config.unet.channels
        if config.predict == "residual":
            zeroed(
                cast(nn.Conv2d, self.unet.out[2])
            )  # untrained, it predicts the coarse image: hundreds of steps are not spent on finding that out
        # the fusion conv1x1(concat(h, P_E)) as two terms, so that the edge term is computed once for all steps
        self.fuse_state = zeroed(nn.Conv2d(width, width, 1))
        self.fuse_edge = zeroed(nn.Conv2d(config.edge_channels, width, 1, bias=False))
        self.to_tokens = nn.Linear(config.prompt_dim, config.context_tokens * config.context_dim)
        self.null = nn.Parameter(torch.randn(int(config.null_token), config.context_dim) * 0.02)
        self.cross_down = _CrossAttention(self.unet.deepest_width, config)
        self.cross_up = _CrossAttention(self.unet.deepest_width, config)

    @property
    def multiple_px(self) -> int:
        """Image sides must be multiples of this."""
        return self.config.unet.multiple * self.config.factor

    def own_space(self) -> WorkingSpace:
        """The working space that the configuration names. Raises ValueError for "latent", whose autoencoder only the caller has."""
        if self.config.space == "latent":
            raise ValueError(
                "this P-diffusion works in an autoencoder's latent space; build AutoencoderSpace(autoencoder, ...) and pass it as space"
            )
        return UnshuffleSpace(self.config.factor)

    def context(self, pathology: Tensor) -> Tensor:
        """Context tokens b k d of the pathology prompt b prompt_dim, the null token last."""
        tokens = rearrange(self.to_tokens(pathology), "b (k d) -> b k d", k=self.config.context_tokens)
        return torch.cat([tokens, self.null.expand(len(tokens), -1, -1)], dim=1)

    def condition(self, coarse: Tensor, degraded: Tensor, prompts: Prompts) -> Conditions:
        """Compute what every step needs from the coarse and degraded states b c h w and the prompts."""
        context = self.context(prompts.pathology)
        images = torch.cat([coarse, degraded], dim=1) if self.config.see_degraded else coarse
        edge = self.fuse_edge(prompts.edge)
        return Conditions(images, coarse, edge, self.cross_down.keys_values(context), self.cross_up.keys_values(context))

    def forward(self, scaled_state: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Predicted clean state b c h w. t: steps 1..T, b; the network itself counts from 0."""
        stem = self.unet.input_blocks[0][0](torch.cat([scaled_state, conditions.images], dim=1))  # type: ignore[index]
        stem = stem + self.fuse_state(stem) + conditions.edge
        inject = _Prompted(self.cross_down, self.cross_up, conditions)
        clean: Tensor = self.unet.run(stem, self.unet.embed_time(t - 1), inject)
        # under autocast the network answers in half precision; the chain goes on in the state's own
        clean = clean.to(conditions.base.dtype)
        return clean + conditions.base if self.config.predict == "residual" else clean


class _CrossAttention(nn.Module):
    """x + Wo Attn(Wq GN x, Wk LN ctx, Wv LN ctx), Wo zero at the start. b c h w."""

    def __init__(self, channels: int, config: PDiffusionConfig):
        super().__init__()
        self.norm = nn.GroupNorm(config.unet.groups, channels)
        self.norm_context = nn.LayerNorm(config.context_dim)
        heads = max(1, channels // config.head_dim)
        self.attention = TokenAttention(channels, context_dim=config.context_dim, heads=heads, head_dim=config.head_dim, bias=False)
        nn.init.zeros_(self.attention.out.weight)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention.keys_values(self.norm_context(context))

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        return x + rearrange(self.attention.attend(tokens, keys_values), "b (h w) c -> b c h w", h=x.shape[-2])


class _Prompted(NamedTuple):
    """The injection of the pathology prompt into the U-Net."""

    cross_down: _CrossAttention
    cross_up: _CrossAttention
    conditions: Conditions

    def down(self, h: Tensor) -> Tensor:
        return self.cross_down(h, self.conditions.down)

    def up(self, h: Tensor) -> Tensor:
        return self.cross_up(h, self.conditions.up)
