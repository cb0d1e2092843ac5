"""P-former, the coarse stage: a Restormer whose feed-forward networks are mixtures of experts gated by the pathology prompt.

Restormer: Zamir et al., CVPR 2022. P-former: Mixture of Prompts, arXiv 2503.12399, sec. 3.3 and eq. 3. Written from the equations.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.hub import Pretrained
from pathorestore.image import pad_to, round_up
from pathorestore.nn.experts import ExpertFeedForward, Gate, MoeImpl
from pathorestore.nn.restormer import GDFN, Downsample, TransposedAttentionBlock, Upsample

MULTIPLE_PX = 8


@dataclass(frozen=True, kw_only=True)
class RestormerConfig:
    """Sizes of a `Restormer`.

    dim: channels at full resolution, doubled per level. blocks: of levels 1-3 and the latent. gamma: feed-forward expansion.
    hidden_multiple: hidden channels are rounded up to a multiple of it; 1 keeps int(gamma * channels), which is what published weights
    need, 16 keeps depthwise convolutions on the CPU's fast path. hint_channels: what it is shown beside the image, see `OpticsPrompt`.
    """

    dim: int = 48
    blocks: tuple[int, int, int, int] = (4, 6, 6, 8)
    refinement: int = 4
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    gamma: float = 2.66
    hidden_multiple: int = 1
    hint_channels: int = 0

    def __post_init__(self) -> None:
        if self.hint_channels < 0:
            raise ValueError(f"hint_channels must be at least 0, got {self.hint_channels}")
        if self.dim < 1 or min(*self.blocks, *self.heads) < 1 or self.refinement < 0:
            raise ValueError(f"dim, blocks and heads must be at least 1; got {self}")
        for level, heads in enumerate(self.heads):
            if (self.dim << level) % heads:
                raise ValueError(
                    f"level {level + 1} has {self.dim << level} channels, which its {heads} heads do not divide; change dim or heads"
                )

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Channels of each level in order of execution: three down, the latent, three up, the refinement."""
        one, two, three, four = (self.dim << level for level in range(4))
        return (one, two, three, four, three, two, two, two)

    def hidden(self, channels: int) -> int:
        """Hidden channels of the feed-forward network at a level of `channels`."""
        return round_up(int(self.gamma * channels), self.hidden_multiple)

    @classmethod
    def tiny(cls) -> "RestormerConfig":
        """The width and depth of `PFormerConfig.tiny()`, for comparison."""
        return cls(dim=16, blocks=(1, 1, 1, 2), refinement=1, gamma=2.0, hidden_multiple=16)

    @classmethod
    def base(cls) -> "RestormerConfig":
        """The width and depth of `PFormerConfig.base()`."""
        return cls(dim=32, blocks=(2, 3, 3, 4), refinement=2, hidden_multiple=16)

    @classmethod
    def paper(cls) -> "RestormerConfig":
        """Restormer as published (table 7 of its supplement; 26,126,644 parameters)."""
        return cls()


@dataclass(frozen=True, kw_only=True)
class PFormerConfig(RestormerConfig):
    """Sizes of a `PFormer`: a Restormer's and the mixture's. prompt_dim: width of the pathology prompt. experts: n beside the main one.

    gate, moe_impl: see `ExpertFeedForward`. router_norm: normalise the prompt (without learned scale) before the routers.
    The routers see GAP(F) and the prompt; route_features=False hides the features, prompt_dim=0 the prompt.
    """

    prompt_dim: int = 1536
    experts: int = 3
    gate: Gate = "add"
    moe_impl: MoeImpl = "folded"
    router_norm: bool = True
    route_features: bool = True

    def __post_init__(self) -> None:
        RestormerConfig.__post_init__(self)
        if self.prompt_dim < 0:
            raise ValueError(f"prompt_dim must be at least 0, got {self.prompt_dim}")
        if self.prompt_dim == 0 and not self.route_features:
            raise ValueError("prompt_dim=0 and route_features=False leave the routers nothing to see; expected one of them otherwise")
        if self.experts < 1:
            raise ValueError(f"experts must be at least 1, got {self.experts}")
        if self.gate not in ("add", "mul", "add_split"):
            raise ValueError(f"gate must be add, mul or add_split; got {self.gate!r}")
        if self.moe_impl not in ("folded", "taps", "naive"):
            raise ValueError(f"moe_impl must be folded, taps or naive; got {self.moe_impl!r}")

    @classmethod
    def tiny(cls) -> "PFormerConfig":
        """0.85 M parameters for `TinyEncoderConfig.tiny()`: a 256 px tile in about half a second on two CPU cores."""
        return cls(dim=16, blocks=(1, 1, 1, 2), refinement=1, gamma=2.0, hidden_multiple=16, prompt_dim=192)

    @classmethod
    def base(cls) -> "PFormerConfig":
        """5.9 M parameters for a ViT-B class encoder."""
        return cls(dim=32, blocks=(2, 3, 3, 4), refinement=2, hidden_multiple=16, prompt_dim=768)

    @classmethod
    def paper(cls) -> "PFormerConfig":
        """Restormer's sizes with three experts and Prov-GigaPath's 1536-wide prompt (sec. 4.2; hidden width as Restormer's)."""
        return cls(router_norm=False)


class _UShape(nn.Module):
    """The U of both networks: four levels of transposed-attention blocks around one feed-forward design, input added to the output."""

    def __init__(self, config: RestormerConfig, make_ffn: Callable[[int], nn.Module]):
        super().__init__()
        dims = [config.dim << level for level in range(4)]
        self._hint_channels = config.hint_channels

        def level(channels: int, blocks: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(TransposedAttentionBlock(channels, heads, make_ffn(channels)) for _ in range(blocks))

        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3 + config.hint_channels, dims[0], 3, padding=1, bias=False)})
        self.encoder_level1 = level(dims[0], config.blocks[0], config.heads[0])
        self.down1_2 = Downsample(dims[0])
        self.encoder_level2 = level(dims[1], config.blocks[1], config.heads[1])
        self.down2_3 = Downsample(dims[1])
        self.encoder_level3 = level(dims[2], config.blocks[2], config.heads[2])
        self.down3_4 = Downsample(dims[2])
        self.latent = level(dims[3], config.blocks[3], config.heads[3])
        self.up4_3 = Upsample(dims[3])
        self.reduce_chan_level3 = nn.Conv2d(dims[3], dims[2], 1, bias=False)
        self.decoder_level3 = level(dims[2], config.blocks[2], config.heads[2])
        self.up3_2 = Upsample(dims[2])
        self.reduce_chan_level2 = nn.Conv2d(dims[2], dims[1], 1, bias=False)
        self.decoder_level2 = level(dims[1], config.blocks[1], config.heads[1])
        self.up2_1 = Upsample(dims[1])
        # the last merge keeps all its channels, so that decoder 1 and the refinement are twice as wide as encoder 1
        self.decoder_level1 = level(dims[1], config.blocks[0], config.heads[0])
        self.refinement = level(dims[1], config.refinement, config.heads[0])
        self.output = nn.Conv2d(dims[1], 3, 3, padding=1, bias=False)
        # untrained, the network all but returns its input: hundreds of steps are not spent on finding that out
        nn.init.normal_(self.output.weight, std=1e-3)

    def run(
        self, image: Tensor, hints: Tensor | None, signals: Iterator[tuple[Tensor, ...]], film: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The network on an image of any size and its hints, which may be None or have no channels where the network takes none.

        signals: yields what each block's feed-forward network receives, in order of execution. film: for each level gamma and beta,
        concatenated, b 2 c. Raises ValueError for hints that do not fit.
        """
        height, width = image.shape[-2:]
        padded = pad_to(self._with_hints(image, hints), round_up(height, MULTIPLE_PX), round_up(width, MULTIPLE_PX))

        told = iter(film or ())

        def through(level: nn.Module, x: Tensor) -> Tensor:
            for block in level.children():
                x = block(x, *next(signals))
            if film is None:
                return x
            gamma, beta = next(told)[..., None, None].chunk(2, dim=1)
            return (1 + gamma) * x + beta

        enc1 = through(self.encoder_level1, self.patch_embed["proj"](padded))
        enc2 = through(self.encoder_level2, self.down1_2(enc1))
        enc3 = through(self.encoder_level3, self.down2_3(enc2))
        x = through(self.latent, self.down3_4(enc3))
        x = through(self.decoder_level3, self.reduce_chan_level3(torch.cat([self.up4_3(x), enc3], dim=1)))
        x = through(self.decoder_level2, self.reduce_chan_level2(torch.cat([self.up3_2(x), enc2], dim=1)))
        x = through(self.decoder_level1, torch.cat([self.up2_1(x), enc1], dim=1))
        restored = padded[:, :3] + self.output(through(self.refinement, x))
        return restored[..., :height, :width]

    def _with_hints(self, image: Tensor, hints: Tensor | None) -> Tensor:
        given = 0 if hints is None else hints.shape[1]
        if given != self._hint_channels:
            raise ValueError(
                f"{given} channels of hints were given to a network with hint_channels={self._hint_channels}; "
                "hand it the prompts' optics, from an optics prompt of as many channels"
            )
        if hints is None or given == 0:
            return image
        if hints.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"hints of {tuple(hints.shape[-2:])} px do not fit an image of {tuple(image.shape[-2:])} px; make them from it"
            )
        return torch.cat([image, hints.to(image.dtype)], dim=1)


class Restormer(_UShape, Pretrained):
    """Restormer: degraded images b 3 h w in [0, 1], and hints b c h w if any, -> restored images, unclamped.

    film: for each of `RestormerConfig.level_widths` gamma and beta of (1 + gamma) x + beta, concatenated, b 2 c. Published weights load by
    name.
    """

    def __init__(self, config: RestormerConfig):
        super().__init__(config, lambda channels: GDFN(channels, config.hidden(channels)))
        self.config = config

    def forward(self, degraded: Tensor, hints: Tensor | None = None, *, film: Sequence[Tensor] | None = None) -> Tensor:
        return self.run(degraded, hints, iter(lambda: (), None), film)


class PFormer(_UShape, Pretrained):
    """P-former: degraded images b 3 h w in [0, 1] and their pathology prompts b prompt_dim -> coarse images b 3 h w, unclamped.

    hints: b hint_channels h w, what an optics prompt makes of the degraded image. A network with prompt_dim=0 looks at no prompt.
    """

    def __init__(self, config: PFormerConfig):
        def make_ffn(channels: int) -> nn.Module:
            return ExpertFeedForward(
                channels,
                config.hidden(channels),
                experts=config.experts,
                prompt_dim=config.prompt_dim,
                gate=config.gate,
                moe_impl=config.moe_impl,
                route_features=config.route_features,
            )

        super().__init__(config, make_ffn)
        self.config: PFormerConfig = config

    def expert_layers(self) -> list[ExpertFeedForward]:
        """The mixtures in order of execution."""
        order = (
            "encoder_level1",
            "encoder_level2",
            "encoder_level3",
            "latent",
            "decoder_level3",
            "decoder_level2",
            "decoder_level1",
            "refinement",
        )
        return [block.ffn for name in order for block in getattr(self, name)]

    def prompt_logits(self, prompt: Tensor) -> list[Tensor]:
        """The prompt's share of every router's logits, one b n tensor a block; computed once per image."""
        if self.config.prompt_dim == 0:
            normed = prompt[:, :0]
        else:
            normed = F.layer_norm(prompt, prompt.shape[-1:]) if self.config.router_norm else prompt
        return [layer.prompt_logits(normed) for layer in self.expert_layers()]

    def forward(self, degraded: Tensor, pathology: Tensor, hints: Tensor | None = None) -> Tensor:
        return self.run(degraded, hints, iter([(logits,) for logits in self.prompt_logits(pathology)]))
