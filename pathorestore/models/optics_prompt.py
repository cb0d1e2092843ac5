"""The optics prompt: what the degraded image looks like through inverse filters of the objective, as hints for the coarse stage.

Not in the Mixture of Prompts paper. It has no parameters to learn: the objective's own numbers fix the filters.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.degradations.slab import relative_transfer
from pathorestore.functional.color import linear_to_srgb, srgb_to_linear
from pathorestore.functional.optics import Optics, transfer, wiener
from pathorestore.hub import Pretrained

_LOWEST, _HIGHEST = -0.5, 1.5  # an inverse filter rings; beyond this it says nothing that a network should hear


@dataclass(frozen=True, kw_only=True)
class OpticsPromptConfig:
    """The filters of an `OpticsPrompt` and how the estimated defocus picks among them.

    weighting: "all" gives the image filtered for every node, whatever the estimate. "estimated" gives for every node the change that its
    filter makes, times the node's weight at the estimated distance; the weights are hats over 0 and the nodes and sum to 1. "chosen"
    gives one change: that of the filter for the estimated distance itself, the transfer function interpolated between nodes.
    nodes_um: distances to focus that the filters undo, rising; 0 is a node of its own, at which nothing is to be done.
    noise_to_signal: K of the Wiener filter; 3e-3 suits images with next to no noise, 3e-2 the noise and compression of scanners. optics: of
    the images; its focal_shift_um, if any, is what the filters take for axial colour. from_scan: as `Setting` has it, the clean image was
    itself taken in focus through these optics, so filters undo the quotient OTF(z) / OTF(0); False undoes all of OTF(z), the objective's
    own limit included. pad_px: mirrored rim around the image that keeps its far sides apart.
    """

    weighting: Literal["all", "estimated", "chosen"] = "all"
    nodes_um: tuple[float, ...] = (0.6, 1.2, 1.8, 2.4, 3.2, 4.2)
    noise_to_signal: float = 3e-3
    optics: Optics = field(default_factory=Optics)
    from_scan: bool = False
    pad_px: int = 32

    def __post_init__(self) -> None:
        if self.weighting not in ("all", "estimated", "chosen"):
            raise ValueError(f"weighting must be all, estimated or chosen; got {self.weighting!r}")
        ladder = (0.0, *self.nodes_um)
        if len(ladder) < 2 or not all(low < high < math.inf for low, high in zip(ladder[:-1], self.nodes_um, strict=True)):
            raise ValueError(f"nodes_um must be positive distances in um that rise, such as (0.6, 1.2); got {self.nodes_um}")
        if not 0 < self.noise_to_signal < math.inf:
            raise ValueError(f"noise_to_signal must be positive, since a transfer function has zeros; got {self.noise_to_signal}")
        if len(self.optics.wavelengths_um) != 3:
            raise ValueError(f"optics needs a wavelength for each of R, G, B; got wavelengths_um={self.optics.wavelengths_um}")
        if self.pad_px < 0:
            raise ValueError(f"pad_px must be at least 0, got {self.pad_px}")

    @property
    def channels(self) -> int:
        """Channels of the hints: R, G, B of each node, or of the one chosen filter."""
        return 3 if self.weighting == "chosen" else 3 * len(self.nodes_um)

    @classmethod
    def tiny(cls) -> "OpticsPromptConfig":
        """The one chosen filter, 3 channels, from closer nodes and gentler on noise: the cheapest. It trusts the estimator."""
        return cls(weighting="chosen", nodes_um=tuple(round(0.3 * step, 1) for step in range(1, 17)), noise_to_signal=3e-2)

    @classmethod
    def base(cls) -> "OpticsPromptConfig":
        """A bank of six filters, 18 channels, silent but for the two neighbours of the estimate."""
        return cls(weighting="estimated", noise_to_signal=3e-2)

    @classmethod
    def paper(cls) -> "OpticsPromptConfig":
        """The whole bank, 18 channels, whatever the estimate says; the paper itself has no optics prompt."""
        return cls()


class NoOptics(nn.Module):
    """The optics prompt that gives no hints."""

    channels = 0

    def forward(self, degraded: Tensor, defocus_um: Tensor) -> Tensor:
        """Hints b 0 h w."""
        del defocus_um
        return degraded[:, :0]


class OpticsPrompt(nn.Module, Pretrained):
    """Degraded images b 3 h w in [0, 1] and their estimated defocus b in um -> hints b c h w, float32; the sign of the defocus is not used.

    Filtered in linear light, each channel for its own wavelength, encoded to sRGB (odd below zero) and clamped to [-0.5, 1.5]; what
    "estimated" and "chosen" subtract, the degraded image, lies within [0, 1]. Channels: R, G, B of the first node, of the second, ...
    Distances beyond the last node are taken for the last node's.

    Reach: inverse filters have no end, so a hint depends on the whole image and no halo makes tiles exact. At NA 0.75 and 0.25 um/px nine
    tenths of a filter's absolute weight lie within 16 px for 0.6 um, 39 px for 2.4 um and 72 px for 4.2 um (K = 3e-3; 9, 22 and 43 px for
    3e-2). So near to a tile's edges the mirrored rim stands in for what is not seen, which an overlap blends away.
    """

    def __init__(self, config: OpticsPromptConfig):
        super().__init__()
        self.config = config

    @property
    def channels(self) -> int:
        """Channels of the hints."""
        return self.config.channels

    def weights(self, defocus_um: Tensor) -> Tensor:
        """Weights b n+1 of focus and of the n nodes at the given distances b: hats, at most two of them not zero, that sum to 1."""
        ladder = torch.tensor((0.0, *self.config.nodes_um), device=defocus_um.device)
        distance = defocus_um.float().abs().clamp(max=self.config.nodes_um[-1])[:, None]
        # how far each gap between neighbours has been crossed, 1 for those that lie behind
        crossed = ((distance - ladder[:-1]) / ladder.diff()).clamp(0, 1)
        return F.pad(crossed, (1, 0), value=1.0) - F.pad(crossed, (0, 1))

    def forward(self, degraded: Tensor, defocus_um: Tensor) -> Tensor:
        with torch.autocast(degraded.device.type, enabled=False):
            return self._hints(degraded.float(), defocus_um)

    def _hints(self, degraded: Tensor, defocus_um: Tensor) -> Tensor:
        rim_px = self.config.pad_px
        padded = _with_rim(degraded, rim_px)
        responses = _responses(self.config, (padded.shape[-2], padded.shape[-1]), str(degraded.device))
        light = srgb_to_linear(padded)[:, None]
        height, width = degraded.shape[-2:]

        def filtered(response: Tensor) -> Tensor:
            sharpened = wiener(light, response, self.config.noise_to_signal)
            return _encode(sharpened[..., rim_px : rim_px + height, rim_px : rim_px + width])

        if self.config.weighting == "all":
            return filtered(responses[1:]).flatten(1, 2)
        weights = self.weights(defocus_um)
        if self.config.weighting == "chosen":
            return filtered(torch.einsum("bn,nchw->bchw", weights, responses)[:, None])[:, 0] - degraded
        # of all nodes only an image's two neighbours speak, so only they are computed
        weight, node = weights.topk(2, dim=1)
        spoken = weight[..., None, None, None] * (filtered(responses[node]) - degraded[:, None])
        nodes = torch.zeros(*weights.shape, *degraded.shape[1:], device=degraded.device)
        return nodes.scatter(1, node[..., None, None, None].expand_as(spoken), spoken)[:, 1:].flatten(1, 2)


@lru_cache(maxsize=4)  # whole images make large ones
def _responses(config: OpticsPromptConfig, size_px: tuple[int, int], device: str) -> Tensor:
    """Transfer functions n+1 3 h w//2+1 that the filters undo: 1 everywhere in focus, then the nodes'."""
    # a validation loop may ask first, and what inference mode makes is of no use to training
    with torch.inference_mode(mode=False), torch.no_grad():
        respond = relative_transfer if config.from_scan else transfer
        nodes = respond(torch.tensor(config.nodes_um), config.optics, size_px)
        return torch.cat([torch.ones_like(nodes[:1]), nodes]).to(device)


def _with_rim(image: Tensor, rim_px: int) -> Tensor:
    """The image b c h w amid a mirrored rim, wider below and to the right where that makes a size that Fourier transforms like.

    Reflection cannot exceed the side minus one, so what remains is replicated.
    """
    height, width = image.shape[-2:]
    below, right = _fft_size(height + 2 * rim_px) - height - rim_px, _fft_size(width + 2 * rim_px) - width - rim_px
    rims = (rim_px, right, rim_px, below)
    most = (width - 1, width - 1, height - 1, height - 1)
    mirrored = [min(rim, limit) for rim, limit in zip(rims, most, strict=True)]
    rest = [rim - done for rim, done in zip(rims, mirrored, strict=True)]
    padded = F.pad(image, mirrored, mode="reflect")
    return F.pad(padded, rest, mode="replicate") if any(rest) else padded


@lru_cache(maxsize=256)
def _fft_size(length_px: int) -> int:
    """The smallest even length of at least `length_px` without prime factors above 5."""
    length = length_px + length_px % 2
    while 30**16 % length:  # large enough a power for any image: 2^16
        length += 2
    return length


def _encode(light: Tensor) -> Tensor:
    """The sRGB curve continued as an odd function below zero; clamped."""
    return torch.copysign(linear_to_srgb(light.abs()), light).clamp(_LOWEST, _HIGHEST)
