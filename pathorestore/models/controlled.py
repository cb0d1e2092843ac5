"""A latent diffusion U-Net and the branch that controls it by a condition latent.

ControlNet: Zhang, Rao and Agrawala, Adding conditional control to text-to-image diffusion models, ICCV 2023, sec. 3. The condition enters
as in DiffBIR (Lin et al., ECCV 2024): concatenated with the state at the branch's first convolution. Both networks are those of diffusers.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from pathorestore._diffusers import load_diffusers
from pathorestore.hub import Pretrained


@dataclass(frozen=True, kw_only=True)
class UNetLevels:
    """What a U-Net and its control branch have in common.

    channels: of a latent. widths: of each level, of half the side each. layers: residual blocks of a level. heads: of the attention of
    each level. attention: whether a level attends to itself and the context. context_dim: width of a context token. groups: of the
    normalisation. linear: attention projects by linear layers, else by 1x1 convolutions. vector_dim: of a vector that is added to the
    embedding of the step, see `LatentUNet`; 0 for none.
    """

    channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    heads: tuple[int, ...] = (5, 10, 20, 20)
    attention: tuple[bool, ...] = (True, True, True, False)
    context_dim: int = 1024
    groups: int = 32
    linear: bool = True
    vector_dim: int = 0

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.heads) == len(self.attention):
            raise ValueError(f"widths, heads and attention need one entry for each level; got {self}")
        if (
            not self.widths
            or min(*self.widths, *self.heads, self.channels, self.layers, self.context_dim, self.groups) < 1
            or self.vector_dim < 0
        ):
            raise ValueError(f"there must be a level, and sizes of at least 1; got {self}")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads or width % self.groups:
                raise ValueError(f"heads={heads} and groups={self.groups} must divide the width {width} of their level")

    @property
    def multiple(self) -> int:
        """Sides of a latent must be multiples of this."""
        return int(2 ** (len(self.widths) - 1))

    @classmethod
    def paper(cls) -> Self:
        """Those of Stable Diffusion 2.1-base: 865,910,724 parameters, of a control branch 363,153,280."""
        return cls()

    @classmethod
    def tiny(cls) -> Self:
        """2.1 M parameters, of a control branch 0.9 M; for laptops, and latents of 8 channels."""
        widths = (64, 64, 64)
        return cls(channels=8, widths=widths, layers=1, heads=(4, 4, 4), attention=(False, True, True), context_dim=64, groups=16)

    @classmethod
    def base(cls) -> Self:
        """32.5 M parameters, of a control branch 14.2 M; for one GPU, and latents of 8 channels."""
        return cls(channels=8, widths=(128, 192, 256), layers=2, heads=(4, 6, 8), attention=(False, True, True), context_dim=128)

    @classmethod
    def nano(cls) -> Self:
        """For tests."""
        return cls(widths=(16, 32), layers=1, heads=(2, 2), attention=(False, True), context_dim=16, groups=8)


@dataclass(frozen=True, kw_only=True)
class LatentUNetConfig(UNetLevels):
    """Sizes of a `LatentUNet`: `UNetLevels`, and the tokens of its null context, 77 as CLIP has them."""

    context_tokens: int = 77


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig(UNetLevels):
    """Sizes of a `ControlNet`: the `UNetLevels` of its U-Net, and the channels of the latents that control it."""

    condition_channels: int = 4

    @classmethod
    def tiny(cls) -> Self:
        """The branch of that U-Net."""
        return replace(super().tiny(), condition_channels=8)

    @classmethod
    def base(cls) -> Self:
        """The branch of that U-Net."""
        return replace(super().base(), condition_channels=8)


class Residuals(NamedTuple):
    """What a control branch adds to the U-Net: to each of its skips, and to its middle."""

    skips: tuple[Tensor, ...]
    middle: Tensor


class LatentUNet(nn.Module, Pretrained):
    """Predicts the noise in latents b channels h w at steps t, integers b, given a context b n context_dim and a vector b vector_dim.

    The vector goes through two linear layers, the last one zero at first, to the embedding of the step.

    null_context: 1 n context_dim, the context of nothing in particular, saved with the weights so that no text tower is needed. It is drawn
    at random here; that of Stable Diffusion is its empty prompt.
    """

    null_context: Tensor

    def __init__(self, config: LatentUNetConfig):
        super().__init__()
        self.config = config
        self.model = load_diffusers().UNet2DConditionModel(
            in_channels=config.channels,
            out_channels=config.channels,
            up_block_types=tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention)),
            **_sizes(config),
        )
        _quiet_vector(self.model)
        self.register_buffer("null_context", torch.randn(1, config.context_tokens, config.context_dim))

    def forward(
        self,
        state: Tensor,
        t: Tensor,
        *,
        context: Tensor | None = None,
        vector: Tensor | None = None,
        control: Residuals | None = None,
    ) -> Tensor:
        predicted: Tensor = self.model(
            state,
            t,
            class_labels=_vector(self.config, vector, len(state)),
            encoder_hidden_states=self.context(len(state)) if context is None else context,
            down_block_additional_residuals=control and control.skips,
            mid_block_additional_residual=control and control.middle,
        ).sample
        return predicted

    def context(self, batch: int) -> Tensor:
        """The null context for a batch, b n context_dim."""
        return self.null_context.expand(batch, -1, -1)


class ControlNet(nn.Module, Pretrained):
    """A copy of a U-Net's encoder and middle that sees a condition latent too; behind zero convolutions, so that it adds nothing at first.

    A convolution of a concatenation is the sum of two: the condition's, without a bias and zero at first, is added to that of the state.
    """

    def __init__(self, config: ControlNetConfig):
        super().__init__()
        self.config = config
        # diffusers embeds condition images of full size; that module, made as small as can be, gives way to a convolution of latents
        self.model = load_diffusers().ControlNetModel(
            in_channels=config.channels, conditioning_embedding_out_channels=(1,), **_sizes(config)
        )
        condition = nn.Conv2d(config.condition_channels, config.widths[0], 3, padding=1, bias=False)
        nn.init.zeros_(condition.weight)
        self.model.controlnet_cond_embedding = condition
        _quiet_vector(self.model)

    @classmethod
    def from_unet(cls, unet: LatentUNet, *, condition_channels: int | None = None) -> Self:
        """A branch for a U-Net, with copies of its weights. condition_channels: as many as a latent has unless told otherwise."""
        sizes = {field.name: getattr(unet.config, field.name) for field in fields(UNetLevels)}
        branch = cls(ControlNetConfig(**sizes, condition_channels=condition_channels or unet.config.channels))
        own = branch.model.state_dict()
        shared = {name: tensor for name, tensor in unet.model.state_dict().items() if name in own}
        branch.model.load_state_dict({**own, **shared})
        return branch

    def forward(self, state: Tensor, t: Tensor, condition: Tensor, context: Tensor, *, vector: Tensor | None = None) -> Residuals:
        told = _vector(self.config, vector, len(state))
        found = self.model(state, t, encoder_hidden_states=context, controlnet_cond=condition, class_labels=told)
        return Residuals(tuple(found.down_block_res_samples), found.mid_block_res_sample)


class ControlledUNet(nn.Module):
    """A U-Net under the control of a branch: the noise in latents b channels h w at steps t, b, given condition latents of their size.

    context: b n context_dim, for both; the null context unless given. vector: b vector_dim, for both, see `LatentUNet`.
    Raises ValueError for parts of different sizes.
    """

    def __init__(self, unet: LatentUNet, control: ControlNet):
        super().__init__()
        unlike = [field.name for field in fields(UNetLevels) if getattr(unet.config, field.name) != getattr(control.config, field.name)]
        if unlike:
            raise ValueError(f"the control branch is of another size than the U-Net: {', '.join(unlike)}; make it by ControlNet.from_unet")
        self.unet, self.control = unet, control

    def forward(
        self, state: Tensor, t: Tensor, condition: Tensor, *, context: Tensor | None = None, vector: Tensor | None = None
    ) -> Tensor:
        context = self.unet.context(len(state)) if context is None else context
        control = self.control(state, t, condition, context, vector=vector)
        predicted: Tensor = self.unet(state, t, context=context, vector=vector, control=control)
        return predicted


def _sizes(config: UNetLevels) -> dict[str, object]:
    """What diffusers calls the sizes that a U-Net and its control branch have in common."""
    return {
        "down_block_types": tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention),
        "block_out_channels": config.widths,
        "layers_per_block": config.layers,
        # the number of heads, whatever diffusers calls it
        "attention_head_dim": config.heads,
        "cross_attention_dim": config.context_dim,
        "norm_num_groups": config.groups,
        "use_linear_projection": config.linear,
        "class_embed_type": "projection" if config.vector_dim else None,
        "projection_class_embeddings_input_dim": config.vector_dim or None,
    }


def _quiet_vector(model: nn.Module) -> None:
    """Let the vector add nothing at first."""
    embedding = cast(Any, model).class_embedding
    if embedding is not None:
        for parameter in embedding.linear_2.parameters():
            nn.init.zeros_(parameter)


def _vector(config: UNetLevels, vector: Tensor | None, batch: int) -> Tensor | None:
    """The vector as diffusers takes it. Raises ValueError where one is missing, in vain or of another width."""
    if (vector is None) != (config.vector_dim == 0) or (vector is not None and vector.shape != (batch, config.vector_dim)):
        got = "none" if vector is None else tuple(vector.shape)
        raise ValueError(f"expected a vector of shape {(batch, config.vector_dim) if config.vector_dim else 'none'}; got {got}")
    return vector
