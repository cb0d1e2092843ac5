"""The defocus estimator: a residual network of output stride 8 that reads distance to focus and contrast transfer from one image.

Mixture of Prompts (arXiv 2503.12399), sec. 3.2 and table 6. Parameter names are those of torchvision's and timm's ResNets, so that their
state dicts load unchanged; `fc` is the contrast-transfer head and `fc2` the distance head.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.functional.edges import minmax_stretch
from pathorestore.hub import Pretrained

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


_CHOICES = {
    "output_stride": (8, 32),
    "padding_mode": ("replicate", "zeros"),
    "norm": ("minmax", "percentile", "imagenet"),
    "ctf_activation": ("none", "sigmoid"),
}


@dataclass(frozen=True, kw_only=True)
class DefocusEstimatorConfig:
    """Sizes of a `DefocusEstimator`. blocks, widths: per stage; output_stride: 8 (dense prompt) or 32 (the stock network).

    norm: what the input goes through: "minmax" stretches each image to its own range (MoP's code), "percentile" does so between the 0.5
    and 99.5 percentiles, "imagenet" subtracts and divides by ImageNet's statistics. signed: whether distances below focus are negative.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    output_stride: Literal[8, 32] = 8
    padding_mode: Literal["replicate", "zeros"] = "replicate"
    norm: Literal["minmax", "percentile", "imagenet"] = "minmax"
    ctf_activation: Literal["none", "sigmoid"] = "none"
    signed: bool = True

    def __post_init__(self) -> None:
        if len(self.blocks) != 4 or len(self.widths) != 4 or min(*self.blocks, *self.widths) < 1:
            raise ValueError(f"a ResNet has four stages of at least one block and channel; got blocks={self.blocks}, widths={self.widths}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    @classmethod
    def tiny(cls) -> "DefocusEstimatorConfig":
        """0.31 M parameters, for laptops and tests; P_D has 128 channels."""
        return cls(blocks=(1, 1, 1, 1), widths=(16, 32, 64, 128))

    @classmethod
    def base(cls) -> "DefocusEstimatorConfig":
        """2.8 M parameters; P_D has 256 channels."""
        return cls(blocks=(2, 2, 2, 2), widths=(32, 64, 128, 256))

    @classmethod
    def paper(cls) -> "DefocusEstimatorConfig":
        """ResNet-34, the backbone that the paper names (its released code builds a ResNet-18); 21,285,698 parameters."""
        return cls()


class DefocusEstimate(NamedTuple):
    """What an image tells about its focus.

    features: the defocus prompt P_D, b c h/8 w/8. defocus_um: distance to best focus, b, signed if the configuration says so.
    ctf: contrast-transfer value in about [0, 1], b.
    """

    features: Tensor
    defocus_um: Tensor
    ctf: Tensor


class DefocusEstimator(nn.Module, Pretrained):
    """Estimates defocus from images b 3 h w in [0, 1], any size of at least 32 px."""

    def __init__(self, config: DefocusEstimatorConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, padding_mode=config.padding_mode, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], config.blocks[0], stride=1)
        self.layer2 = self._stage(widths[0], widths[1], config.blocks[1], stride=2)
        # strides carry no weights: a dense prompt costs resolution only, and stock checkpoints still fit
        late = 2 if config.output_stride == 32 else 1
        self.layer3 = self._stage(widths[1], widths[2], config.blocks[2], stride=late)
        self.layer4 = self._stage(widths[2], widths[3], config.blocks[3], stride=late)
        self.fc = nn.Linear(widths[3], 1)
        self.fc2 = nn.Linear(widths[3], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def dim(self) -> int:
        """Channels of the defocus prompt."""
        return self.config.widths[-1]

    @staticmethod
    def _stage(c_in: int, c_out: int, blocks: int, *, stride: int) -> nn.Sequential:
        return nn.Sequential(_BasicBlock(c_in, c_out, stride), *(_BasicBlock(c_out, c_out, 1) for _ in range(blocks - 1)))

    def features(self, image: Tensor) -> Tensor:
        """The defocus prompt P_D, b c h/8 w/8 (h/32 for output stride 32)."""
        x = F.relu(self.bn1(self.conv1(self._normalise(image))))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, image: Tensor) -> DefocusEstimate:
        features = self.features(image)
        pooled = features.mean(dim=(2, 3))
        ctf = self.fc(pooled)[:, 0]
        ctf = ctf.sigmoid() if self.config.ctf_activation == "sigmoid" else ctf
        return DefocusEstimate(features, self.fc2(pooled)[:, 0], ctf)

    def distance_map(self, image: Tensor) -> Tensor:
        """Local distance in um, b 1 h/8 w/8: the distance head as a 1x1 convolution on P_D; its mean is `defocus_um` exactly."""
        return F.conv2d(self.features(image), self.fc2.weight[:, :, None, None], self.fc2.bias)

    def heat_map(self, image: Tensor) -> Tensor:
        """Absolute local distance to focus in um at image size, b 1 h w (paper, fig. 4)."""
        return F.interpolate(self.distance_map(image), size=image.shape[-2:], mode="bilinear", align_corners=False).abs()

    def _normalise(self, image: Tensor) -> Tensor:
        if self.config.norm == "minmax":
            return minmax_stretch(image)
        if self.config.norm == "percentile":
            flat = image.flatten(1)
            low, high = (flat.quantile(q, dim=1)[:, None, None, None] for q in (0.005, 0.995))
            return ((image - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        mean, std = (image.new_tensor(v)[:, None, None] for v in (_IMAGENET_MEAN, _IMAGENET_STD))
        return (image - mean) / std


class _BasicBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = (
            nn.Identity()
            if stride == 1 and c_in == c_out
            else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        return F.relu(h + self.downsample(x))
