"""How different a restored image looks by networks that were trained on photographs: LPIPS and DISTS, as torchmetrics computes them.

Their trunks need ImageNet weights, which are neither shipped nor downloaded: a user puts the file into torch's cache, and without it the
metric says so and gives no number.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pathorestore._torchvision import ensure_torchvision
from pathorestore.metrics.availability import Availability
from pathorestore.metrics.cached_weights import cached_file, check_tensors, require, weights_available

Trunk = Literal["alex", "vgg", "squeeze"]

# torchvision's enumeration of the weights of each trunk, and the shortest side that its pooling leaves a pixel of
_TRUNKS = {"alex": ("AlexNet_Weights", 31), "vgg": ("VGG16_Weights", 16), "squeeze": ("SqueezeNet1_1_Weights", 17)}


class Lpips:
    """Learned perceptual image patch similarity: 0 for equal images, larger for ones that look more different.

    net: the trunk; "alex" is what the source recommends as a metric. Source: Zhang, Isola, Efros, Shechtman, Wang, CVPR 2018, eq. 1,
    version 0.1 of its weights.
    """

    def __init__(self, net: Trunk = "alex") -> None:
        if net not in _TRUNKS:
            raise ValueError(f"net must be one of {', '.join(_TRUNKS)}; got {net!r}")
        self.net = net
        self._network: nn.Module | None = None

    def available(self) -> Availability:
        """Whether torchvision and the trunk's weights are here. Never reaches for the network."""
        return _trunk_available(self.net)

    def __call__(self, restored: Tensor, clean: Tensor) -> Tensor:
        """The distance of each image, b, of images b 3 h w on the scale [0, 1], clipped to it.

        Raises RuntimeError with the remedy if it is not available, ValueError if the shapes differ or a side is too short for the trunk.
        """
        x, y = _pair(restored, clean, smallest_px=_TRUNKS[self.net][1])
        if self._network is None:
            require("LPIPS", self.available())
            check_tensors(cached_file(_url(self.net)))
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            self._network = LearnedPerceptualImagePatchSimilarity(net_type=self.net).net
        with torch.no_grad():
            return self._network.to(x.device)(x, y, normalize=True).reshape(len(x))


class Dists:
    """Deep image structure and texture similarity: 0 for equal images, larger for more different ones; forgives the course of a texture.

    At the size the images come in; the source's own evaluation first reduces the shorter side to 256 px.
    Source: Ding, Ma, Wang, Simoncelli, IEEE Trans. Pattern Anal. Mach. Intell. 44 (2022) 2567-2581, eq. 10.
    """

    def __init__(self) -> None:
        self._network: nn.Module | None = None

    def available(self) -> Availability:
        """Whether torchvision, a torchmetrics that has DISTS, and the weights of VGG-16 are here. Never reaches for the network."""
        found = _trunk_available("vgg")
        if not found.ok:
            return found
        try:
            import torchmetrics.functional.image.dists as torchmetrics_dists
        except ImportError:
            return Availability(ok=False, reason='this torchmetrics has no DISTS; install a newer one: pip install "torchmetrics>=1.9"')
        del torchmetrics_dists
        return found

    def __call__(self, restored: Tensor, clean: Tensor) -> Tensor:
        """The distance of each image, b, of images b 3 h w on the scale [0, 1], clipped to it.

        Raises RuntimeError with the remedy if it is not available, and ValueError if the shapes differ or a side is shorter than 16 px.
        """
        x, y = _pair(restored, clean, smallest_px=_TRUNKS["vgg"][1])
        if self._network is None:
            require("DISTS", self.available())
            check_tensors(cached_file(_url("vgg")))
            from torchmetrics.functional.image.dists import DISTSNetwork

            self._network = DISTSNetwork(load_weights=True).eval()
        with torch.no_grad():
            # its other branch computes in inference mode, whose tensors are barred from later use in training
            return self._network.to(x.device)(x, y, require_grad=True).reshape(len(x))


def _url(net: Trunk) -> str:
    """Where torchvision would download the trunk's ImageNet weights from. torchvision must be installed."""
    import torchvision

    address: str = getattr(torchvision.models, _TRUNKS[net][0]).DEFAULT.url
    return address


def _trunk_available(net: Trunk) -> Availability:
    """Whether torchvision would find the trunk's weights in torch's cache, and so not download them."""
    if ensure_torchvision() is None:
        return Availability(ok=False, reason="torchvision is not installed; install it with: pip install torchvision")
    return weights_available(_url(net), name=f"the ImageNet weights of the {net} trunk")


def _pair(restored: Tensor, clean: Tensor, *, smallest_px: int) -> tuple[Tensor, Tensor]:
    """Both images in [0, 1], float32."""
    if restored.ndim != 4 or restored.shape[1] != 3 or restored.shape != clean.shape:
        raise ValueError(f"restored and clean must both be b 3 h w of one shape; got {tuple(restored.shape)} and {tuple(clean.shape)}")
    if min(restored.shape[-2:]) < smallest_px:
        raise ValueError(f"images of {tuple(restored.shape[-2:])} px are too small; expected sides of at least {smallest_px} px")
    return restored.detach().float().clamp(0, 1), clean.detach().float().clamp(0, 1)
