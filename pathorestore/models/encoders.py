"""Pathology encoders: what turns an image into the embedding that the pathology prompt restores.

Foundation-model weights are never shipped: `TimmEncoder` wraps any timm ViT that the user may load (Prov-GigaPath, UNI, ...),
`TinyEncoder` is our own small network, trained by self-supervision, which needs no download.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore._torchvision import ensure_torchvision
from pathorestore.hub import Pretrained, load_strictly, load_weights

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
Fit = Literal["centercrop224", "resize224", "native"]


class Embedding(NamedTuple):
    """cls: one vector per image, b d. tokens: patch tokens b n d in row-major order (n = 0 for encoders that give none)."""

    cls: Tensor
    tokens: Tensor


@runtime_checkable
class PathologyEncoder(Protocol):
    """Any callable from images b 3 h w in [0, 1] to an `Embedding` of width `dim`. It brings its own resizing and normalisation."""

    dim: int

    def __call__(self, image: Tensor) -> Embedding:
        """Embed a batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class TinyEncoderConfig:
    """Sizes of a `TinyEncoder`. widths, blocks: per stage at strides 4, 8, 16; the last width is the embedding's."""

    widths: tuple[int, ...] = (48, 96, 192)
    blocks: tuple[int, ...] = (1, 2, 3)
    mlp_ratio: int = 2

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks) or len(self.widths) != 3 or min(*self.widths, *self.blocks, self.mlp_ratio) < 1:
            raise ValueError(f"three stages of at least one block and channel expected; got widths={self.widths}, blocks={self.blocks}")

    @classmethod
    def tiny(cls) -> "TinyEncoderConfig":
        """0.7 M parameters, 192-wide."""
        return cls()

    @classmethod
    def base(cls) -> "TinyEncoderConfig":
        """10.8 M parameters, 768-wide: what the other `base()` presets expect."""
        return cls(widths=(96, 192, 768), blocks=(2, 3, 4))

    @classmethod
    def paper(cls) -> "TinyEncoderConfig":
        """1536-wide, what the other `paper()` presets expect; the paper itself uses a foundation model, see `TimmEncoder.gigapath`."""
        return cls(widths=(192, 384, 1536), blocks=(2, 4, 6))


class TinyEncoder(nn.Module, Pretrained):
    """A small convolutional encoder: one token per 16 x 16 px and their mean. Takes images of at least 16 px a side as they are."""

    def __init__(self, config: TinyEncoderConfig):
        super().__init__()
        self.config = config
        self.dim = config.widths[-1]
        stages: list[nn.Module] = [nn.Conv2d(3, config.widths[0], 4, stride=4)]
        for index, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            stages += [_MixBlock(width, config.mlp_ratio) for _ in range(blocks)]
            if index + 1 < len(config.widths):
                stages += [nn.GroupNorm(1, width), nn.Conv2d(width, config.widths[index + 1], 2, stride=2)]
        self.trunk = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(self.dim)

    def forward(self, image: Tensor) -> Embedding:
        tokens = self.trunk(2 * image - 1).flatten(2).transpose(1, 2)
        tokens = self.norm(tokens)
        return Embedding(tokens.mean(dim=1), tokens)


class _MixBlock(nn.Module):
    """Depthwise 7x7 mixing of space, then a pointwise MLP, as one residual."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.space = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.grow = nn.Conv2d(width, ratio * width, 1)
        self.shrink = nn.Conv2d(ratio * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shrink(F.gelu(self.grow(self.norm(self.space(x)))))


class TimmEncoder(nn.Module):
    """Wraps a timm ViT as a frozen pathology encoder with that model's own normalisation.

    model: a network whose `forward_features` gives b (prefix + n) d tokens. mean, std: its normalisation. fit: how images meet its input
    size: "centercrop224", "resize224" (bicubic, antialiased) or "native" (the model must accept dynamic sizes).
    """

    def __init__(
        self, model: nn.Module, *, mean: tuple[float, ...] = IMAGENET[0], std: tuple[float, ...] = IMAGENET[1], fit: Fit = "resize224"
    ):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.dim = int(model.num_features)  # type: ignore[arg-type]
        self.fit = fit
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    @classmethod
    def create(
        cls, name: str, *, checkpoint: str | None = None, pretrained: bool = False, fit: Fit = "resize224", **kwargs: object
    ) -> "TimmEncoder":
        """Build from a timm model name or `hf_hub:owner/name`; weights from a local `checkpoint` file or, if `pretrained`, from the hub.

        Nothing is downloaded unless `pretrained` is true. Further keywords go to `timm.create_model`.
        """
        ensure_torchvision()
        import timm

        options: dict[str, object] = {"num_classes": 0, **kwargs}
        model = timm.create_model(name, pretrained=pretrained, **options)
        if checkpoint is not None:
            load_strictly(model, _read_checkpoint(Path(checkpoint)), source=checkpoint)
        pretrained_cfg = getattr(model, "pretrained_cfg", {}) or {}
        return cls(model, mean=tuple(pretrained_cfg.get("mean", IMAGENET[0])), std=tuple(pretrained_cfg.get("std", IMAGENET[1])), fit=fit)

    @classmethod
    def gigapath(cls, *, fit: Fit = "centercrop224") -> "TimmEncoder":
        """Prov-GigaPath's tile encoder (1536-wide; gated weights, research use): needs the user's own access to its hub repository."""
        return cls.create("hf_hub:prov-gigapath/prov-gigapath", pretrained=True, fit=fit)

    @classmethod
    def uni(cls, *, fit: Fit = "resize224") -> "TimmEncoder":
        """UNI (ViT-L/16, 1024-wide; gated weights, non-commercial): needs the user's own access to its hub repository."""
        return cls.create("hf_hub:MahmoodLab/UNI", pretrained=True, fit=fit, init_values=1e-5, dynamic_img_size=True)

    def train(self, mode: bool = True) -> "TimmEncoder":  # noqa: FBT001, FBT002 - torch's own signature
        """Stay in evaluation mode whatever the parent does: the encoder is frozen."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Embedding:
        if self.fit == "centercrop224":
            side = min(224, *image.shape[-2:])
            top, left = ((length - side) // 2 for length in image.shape[-2:])
            image = image[..., top : top + side, left : left + side]
        if self.fit != "native" and image.shape[-2:] != (224, 224):
            image = F.interpolate(image, size=(224, 224), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        tokens = self.model.forward_features((image - self.mean) / self.std)  # type: ignore[operator]
        prefix = int(getattr(self.model, "num_prefix_tokens", 1))
        return Embedding(tokens[:, 0] if prefix else tokens.mean(dim=1), tokens[:, prefix:])


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors by name from safetensors or a file of torch.save; nothing else is unpickled."""
    if path.suffix == ".safetensors":
        return load_weights(path)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    state = stored.get("state_dict", stored) if isinstance(stored, dict) else stored
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict; expected tensors by name, as timm's models save them")
    return state


class ProjectionEncoder(nn.Module):
    """Wraps any frozen image tower that gives one vector per image, such as CONCH's `encode_image` or CLIP's image features.

    encode: images b 3 s s (normalised) -> b dim. side_px: the tower's input size. It yields no patch tokens.
    """

    def __init__(self, encode: nn.Module, *, dim: int, side_px: int, mean: tuple[float, ...] = CLIP[0], std: tuple[float, ...] = CLIP[1]):
        super().__init__()
        self.encode = encode.eval().requires_grad_(False)
        self.dim, self.side_px = dim, side_px
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Embedding:
        side = (self.side_px, self.side_px)
        image = F.interpolate(image, size=side, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        vector = self.encode((image - self.mean) / self.std)
        return Embedding(vector, vector.new_zeros(len(vector), 0, self.dim))
