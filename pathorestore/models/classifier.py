"""A classifier of images: any network that timm knows by name, with its own resizing and normalisation."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore._torchvision import ensure_torchvision
from pathorestore.hub import Pretrained, WeightsError, load_strictly, load_weights
from pathorestore.models.encoders import IMAGENET


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What a `Classifier` is. name: of timm. classes: in the order of its outputs; of two, the second is the positive one.

    side_px: images are brought to this side. mean, std: per channel, of the images that the network expects.
    """

    name: str = "resnet18"
    classes: tuple[str, ...] = ("negative", "positive")
    side_px: int = 256
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    def __post_init__(self) -> None:
        if len(set(self.classes)) < max(2, len(self.classes)) or not all(name and name == name.strip() for name in self.classes):
            raise ValueError(f"classes={self.classes} must be two or more different names, as the column label has them")
        if self.side_px < 16 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"side_px={self.side_px} must be at least 16, mean={self.mean} and std={self.std} three numbers each, std > 0")


class Classifier(nn.Module, Pretrained):
    """A timm network with its own resizing and normalisation: images b 3 h w in [0, 1] to logits b k. Building one downloads nothing."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.network = _network(config)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    @classmethod
    def create(
        cls,
        name: str,
        classes: Sequence[str],
        *,
        side_px: int = 256,
        pretrained: bool = False,
        checkpoint: Path | None = None,
        fresh_head: bool = True,
    ) -> "Classifier":
        """A network by its timm name, normalising as timm says; random, or with weights.

        pretrained: fetch timm's weights from the hub; nothing is downloaded otherwise. checkpoint: a file of weights instead, safetensors
        or torch.save's, of which nothing but tensors is read. fresh_head: the last layer stays random where the file's is of other classes
        or missing; False refuses such a file. Raises ValueError for an unknown name or both sources, WeightsError for a file of another
        network.
        """
        if pretrained and checkpoint is not None:
            raise ValueError("pretrained and checkpoint both name weights; leave one of them out")
        known = _described(name)
        config = ClassifierConfig(name=name, classes=tuple(classes), side_px=side_px, mean=tuple(known.mean), std=tuple(known.std))
        built = cls(config)
        if pretrained:
            built.network = _network(config, pretrained=True)
        if checkpoint is not None:
            _load_body(built.network, Path(checkpoint), heads=known.classifier, fresh_head=fresh_head)
        return built

    def forward(self, image: Tensor) -> Tensor:
        return self.network((to_side(image, self.config.side_px) - self.mean) / self.std)

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Probabilities b k on the CPU of images b 3 h w, which may be elsewhere than the network."""
        return self(image.to(self.mean.device)).float().softmax(dim=1).cpu()


def to_side(image: Tensor, side_px: int) -> Tensor:
    """An image b 3 h w brought to side_px x side_px: the shorter side resized (bicubic, antialiased), what sticks out cut off evenly."""
    height, width = image.shape[-2:]
    if (height, width) == (side_px, side_px):
        return image
    scale = side_px / min(height, width)
    size = (max(side_px, round(height * scale)), max(side_px, round(width * scale)))
    image = F.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    top, left = ((length - side_px) // 2 for length in size)
    return image[..., top : top + side_px, left : left + side_px]


def _described(name: str) -> Any:
    """What timm says about a network. Raises ValueError with near names for one that it does not know; hub addresses are not names."""
    ensure_torchvision()
    import timm

    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if known is None:
        near = difflib.get_close_matches(name, timm.list_models(), n=3) or ["resnet18", "convnext_tiny", "vit_small_patch16_224"]
        raise ValueError(f"timm has no network {name!r}; near names are {', '.join(near)}; weights of your own go in as a checkpoint")
    return known


def _network(config: ClassifierConfig, *, pretrained: bool = False) -> nn.Module:
    options = {"img_size": config.side_px} if _described(config.name).fixed_input_size else {}
    import timm  # only now, for it imports torchvision, which is made importable above

    return timm.create_model(config.name, pretrained=pretrained, num_classes=len(config.classes), **options)


def _load_body(network: nn.Module, path: Path, *, heads: str | Sequence[str], fresh_head: bool) -> None:
    """Weights of a file into a network; all must fit, but for the last layer where it may be fresh."""
    state, expected = _tensors(path), network.state_dict()
    if fresh_head:
        starts = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
        last = {name: tensor for name, tensor in expected.items() if name.startswith(starts)}
        if any(name not in state or state[name].shape != tensor.shape for name, tensor in last.items()):
            state = {name: tensor for name, tensor in state.items() if not name.startswith(starts)} | last
    load_strictly(network, state, source=str(path))


def _tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from safetensors or a file of torch.save; nothing else is unpickled."""
    if path.suffix == ".safetensors" or not path.is_file():
        return load_weights(path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises almost anything at damaged bytes
        raise WeightsError(f"{path} is damaged, or holds more than tensors, which is not unpickled; save its state_dict") from error
    state = stored.get("state_dict", stored) if isinstance(stored, dict) else stored
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict; expected tensors by name, as timm's models save them")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}  # of DataParallel
