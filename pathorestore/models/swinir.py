"""SwinIR: windowed self-attention with convolutions around it, as an encoder of features or as a restoration network.

SwinIR: Liang et al., ICCV workshops 2021, sec. 3. Window attention, shift and mask: Liu et al., ICCV 2021, sec. 3.2. Written from the
equations. Parameters bear the published names, so that published checkpoints load by name; see `without_published_buffers`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pathorestore.hub import Pretrained
from pathorestore.image import pad_to, round_up
from pathorestore.nn.swin import WindowAttention, shift_mask

Upsampler = Literal["none", "nearest+conv"]

PUBLISHED_BUFFERS = ("attn_mask", "relative_position_index")
"""Endings of the tensors that published SwinIR files hold beside the parameters: constants, which this package computes."""

# mean of the DIV2K photographs, which SwinIR's restoration networks subtract
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


@dataclass(frozen=True, kw_only=True)
class SwinIRConfig:
    """Sizes of a `SwinIR`.

    embed: width of the body. blocks: Swin layers of each residual group. heads, window, mlp_ratio: of every layer. features: channels of
    the convolution behind the body; None leaves it out, for a head of one's own. unshuffle: the body works on a grid that is coarser by
    this factor. upsampler: "none" returns features; "nearest+conv" undoes the unshuffling by doublings and returns an image of
    out_channels (unused by "none"). drop_path: rate at which the last layer's branches are skipped in training, rising linearly from 0
    at the first. mean, std: what the network subtracts from its input and divides it by; mean for all channels or each. skip: the image
    that "nearest+conv" makes is added to the input, at first as nothing; published networks that unshuffle do without.
    """

    embed: int = 180
    blocks: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    heads: int = 6
    window: int = 8
    mlp_ratio: int = 2
    in_channels: int = 3
    features: int | None = 64
    unshuffle: int = 1
    upsampler: Upsampler = "none"
    out_channels: int = 3
    drop_path: float = 0.1
    mean: tuple[float, ...] = (0.5,)
    std: float = 0.5
    skip: bool = False

    def __post_init__(self) -> None:
        sizes = (self.embed, self.heads, self.mlp_ratio, self.in_channels, self.out_channels, self.unshuffle, *self.blocks)
        if not self.blocks or min(sizes) < 1 or (self.features is not None and self.features < 1):
            raise ValueError(f"widths, heads, blocks, features and unshuffle must be at least 1, of at least one group; got {self}")
        if self.embed % self.heads:
            raise ValueError(f"embed={self.embed} must be a multiple of heads={self.heads}; change either")
        if self.window < 2:
            raise ValueError(f"window={self.window} must be at least 2: a window of one pixel has nothing to attend to")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path} must be at least 0 and below 1")
        self._check_normalisation()
        self._check_upsampler()

    def _check_normalisation(self) -> None:
        if len(self.mean) not in (1, self.in_channels):
            raise ValueError(f"mean holds {len(self.mean)} values; expected 1 or in_channels={self.in_channels}")
        if self.std <= 0:
            raise ValueError(f"std={self.std} must be positive")

    def _check_upsampler(self) -> None:
        if self.upsampler not in ("none", "nearest+conv"):
            raise ValueError(f"upsampler must be none or nearest+conv; got {self.upsampler!r}")
        if self.skip and (self.upsampler == "none" or self.in_channels != self.out_channels):
            raise ValueError(f"skip adds an image to the input; it needs upsampler='nearest+conv' and as many channels, got {self}")
        if self.upsampler == "none":
            if self.unshuffle != 1:
                raise ValueError(
                    f"unshuffle={self.unshuffle} without an upsampler gives a map smaller than the image; "
                    "set unshuffle=1 or upsampler='nearest+conv'"
                )
            return
        if self.features is None:
            raise ValueError("upsampler='nearest+conv' works on features, got None; expected a number of channels such as 64")
        if self.unshuffle & (self.unshuffle - 1):
            raise ValueError(f"upsampler='nearest+conv' doubles, so unshuffle must be a power of two; got {self.unshuffle}")
        if len(self.mean) not in (1, self.out_channels):
            raise ValueError(f"mean of {len(self.mean)} values cannot be added to out_channels={self.out_channels}; expected as many, or 1")

    @property
    def multiple(self) -> int:
        """Images are padded to a multiple of this: a whole number of windows on the unshuffled grid."""
        return self.window * self.unshuffle

    @property
    def width(self) -> int:
        """Channels of the network's output."""
        if self.upsampler == "nearest+conv":
            return self.out_channels
        return self.embed if self.features is None else self.features

    @classmethod
    def tiny(cls) -> "SwinIRConfig":
        """0.22 M parameters, 32 features: the encoder of a tiny ISTE."""
        return cls(embed=48, blocks=(2, 2, 2), features=32, drop_path=0.0)

    @classmethod
    def base(cls) -> "SwinIRConfig":
        """1.69 M parameters, 64 features."""
        return cls(embed=96, blocks=(4, 4, 4, 4))

    @classmethod
    def paper(cls) -> "SwinIRConfig":
        """The encoder of ISTE: SwinIR's classical size without its upsampler, 64 features; 11,603,044 parameters."""
        return cls()

    @classmethod
    def restoration(cls) -> "SwinIRConfig":
        """The restoration module of Histo-Diffusion, as DiffBIR's: eight groups on a grid unshuffled by 8; 15,792,587 parameters."""
        return cls(blocks=(6,) * 8, unshuffle=8, upsampler="nearest+conv", mean=_DIV2K_MEAN, std=1.0)

    @classmethod
    def tiny_restoration(cls) -> "SwinIRConfig":
        """0.48 M parameters: a restoration module on a grid unshuffled by 4, with a skip, without which it is long behind its input."""
        sizes = cls(embed=60, blocks=(2,) * 4, features=32, unshuffle=4, upsampler="nearest+conv", drop_path=0.0, mean=_DIV2K_MEAN, std=1.0)
        return replace(sizes, skip=True)

    @classmethod
    def base_restoration(cls) -> "SwinIRConfig":
        """1.84 M parameters: the same, larger."""
        sizes = cls(embed=96, blocks=(4,) * 4, unshuffle=4, upsampler="nearest+conv", mean=_DIV2K_MEAN, std=1.0)
        return replace(sizes, skip=True)


class SwinIR(nn.Module, Pretrained):
    """Images b c h w in [0, 1] of any size -> features b `config.width` h w, or images as `config.upsampler` says, unclamped.

    Images are padded at the right and bottom to whole windows, and the result is cropped. film: for each residual group gamma and beta,
    b (2 embed), and what it gives becomes (1 + gamma) x + beta. Raises ValueError for another number of channels.
    """

    mean: Tensor

    def __init__(self, config: SwinIRConfig):
        super().__init__()
        self.config = config
        rates = iter(torch.linspace(0, config.drop_path, sum(config.blocks), device="cpu").tolist())
        first = nn.Conv2d(config.in_channels * config.unshuffle**2, config.embed, 3, padding=1)
        self.conv_first = first if config.unshuffle == 1 else nn.Sequential(nn.PixelUnshuffle(config.unshuffle), first)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(config.embed)})
        self.layers = nn.ModuleList(ResidualSwinGroup(config, [next(rates) for _ in range(depth)]) for depth in config.blocks)
        self.norm = nn.LayerNorm(config.embed)
        self.conv_after_body = nn.Conv2d(config.embed, config.embed, 3, padding=1)
        if config.features is not None:
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(config.embed, config.features, 3, padding=1), nn.LeakyReLU(0.01))
        if config.features is not None and config.upsampler == "nearest+conv":
            for name in self._doublings():
                self.add_module(name, nn.Conv2d(config.features, config.features, 3, padding=1))
            self.conv_hr = nn.Conv2d(config.features, config.features, 3, padding=1)
            self.conv_last = nn.Conv2d(config.features, config.out_channels, 3, padding=1)
        self.register_buffer("mean", torch.tensor(config.mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.apply(_initialise)
        if config.skip:
            for parameter in self.conv_last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor, *, film: Sequence[Tensor] | None = None) -> Tensor:
        height, width = image.shape[-2:]
        if image.shape[1] != self.config.in_channels:
            raise ValueError(f"the image has {image.shape[1]} channels; expected in_channels={self.config.in_channels}, as b c h w")
        padded = pad_to(image, round_up(height, self.config.multiple), round_up(width, self.config.multiple))
        shallow = self.conv_first((padded - self.mean) / self.config.std)
        x = shallow + self.conv_after_body(self._body(shallow, film))
        if self.config.features is not None:
            x = self.conv_before_upsample(x)
        if self.config.upsampler == "nearest+conv":
            x = self._reconstruct(x) + (padded if self.config.skip else self.mean)
        return x[..., :height, :width]

    def _body(self, shallow: Tensor, film: Sequence[Tensor] | None) -> Tensor:
        x = self.patch_embed["norm"](rearrange(shallow, "b c h w -> b h w c"))
        for number, group in enumerate(self.layers):
            x = group(x)
            if film is not None:
                gamma, beta = film[number][:, None, None].chunk(2, dim=-1)
                x = (1 + gamma) * x + beta
        return rearrange(self.norm(x), "b h w c -> b c h w")

    def _reconstruct(self, x: Tensor) -> Tensor:
        """Features on the unshuffled grid -> image less the mean: doublings by nearest neighbour and convolution, then two convolutions."""
        for name in self._doublings():
            x = F.leaky_relu(self.get_submodule(name)(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2)) * self.config.std

    def _doublings(self) -> list[str]:
        return [f"conv_up{number}" for number in range(1, self.config.unshuffle.bit_length())]


class ResidualSwinGroup(nn.Module):
    """Swin layers, plain and shifted in turn, then a 3x3 convolution, added to the input (SwinIR's RSTB). b h w c -> same."""

    def __init__(self, config: SwinIRConfig, drop_paths: list[float]):
        super().__init__()
        layers = [SwinTransformerLayer(config, shift=config.window // 2 * (i % 2), drop_path=rate) for i, rate in enumerate(drop_paths)]
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(layers)})
        self.conv = nn.Conv2d(config.embed, config.embed, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.residual_group["blocks"].children():
            h = layer(h)
        return x + rearrange(self.conv(rearrange(h, "b h w c -> b c h w")), "b c h w -> b h w c")


class SwinTransformerLayer(nn.Module):
    """x + WMSA(LN x), then x + MLP(LN x), on b h w c with h and w multiples of the window. shift: displacement of the windows.

    The windows are displaced on every map, also on one of a single window, since published weights never met the exception.
    """

    def __init__(self, config: SwinIRConfig, *, shift: int, drop_path: float):
        super().__init__()
        self.window, self.shift = config.window, shift
        self.norm1 = nn.LayerNorm(config.embed)
        self.attn = WindowAttention(config.embed, window=config.window, heads=config.heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(config.embed)
        hidden = config.mlp_ratio * config.embed
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(config.embed, hidden), "fc2": nn.Linear(hidden, config.embed)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        h = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2)) if self.shift else x
        tokens = rearrange(h, "b (y wy) (x wx) c -> (b y x) (wy wx) c", wy=self.window, wx=self.window)
        mask = shift_mask(height, width, self.window, self.shift, "correct").to(x.device) if self.shift else None
        tokens = self.attn(tokens, mask)
        h = rearrange(tokens, "(b y x) (wy wx) c -> b (y wy) (x wx) c", y=height // self.window, x=width // self.window, wy=self.window)
        return torch.roll(h, (self.shift, self.shift), dims=(1, 2)) if self.shift else h


class DropPath(nn.Module):
    """In training, replaces a whole sample of b ... by zeros at `rate` and scales the others by 1 / (1 - rate); else returns it.

    Stochastic depth: Huang et al., ECCV 2016. Draws from torch's global generator, as nn.Dropout does.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return x * F.dropout(x.new_ones(len(x), *(1 for _ in x.shape[1:])), self.rate)


def without_published_buffers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published SwinIR state dict without its attention masks and position indices, ready for `pathorestore.hub.load_strictly`."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(PUBLISHED_BUFFERS)}


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
