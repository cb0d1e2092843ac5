"""The graded degradations that no-reference metrics are fitted to and judged by: five kinds at five levels each, and level 0, untouched.

Images are float tensors throughout, as the metrics see them. The blurs are not those of `data.iqa.Blur`, on whose bytes, reflected border
and own scale CLIP-IQA's heads were trained: the Gaussian is that of the simulated acquisition, borders are replicated. The embedded
parameters of NIQE and BRISQUE rest on these here; a change asks for a new fit.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pathorestore.degradations import acquisition
from pathorestore.degradations.optical import degrade
from pathorestore.degradations.recipes import Setting

STEPS = 5


class Degradation(NamedTuple):
    """name and unit for readers; strengths: of levels 1 to 5; apply: image 1 3 h w in [0, 1], strength and generator to such an image."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Tensor, float, torch.Generator], Tensor]


class Variant(NamedTuple):
    """An image 1 3 h w at a level of a degradation; the sharp one is level 0 and has no name."""

    degradation: str
    level: int
    image: Tensor


def variants(sharp: Tensor, generator: torch.Generator) -> Iterator[Variant]:
    """The sharp image 1 3 h w and its 25 degraded versions, one at a time."""
    yield Variant("", 0, sharp)
    for one in DEGRADATIONS:
        for level, strength in enumerate(one.strengths, start=1):
            yield Variant(one.name, level, one.apply(sharp, strength, generator).clamp(0, 1))


def level_score(level: int) -> float:
    """What BRISQUE learns to say of a level: its rank, 0 for the sharp image, 100 for the highest."""
    return 100.0 * level / STEPS


def _gaussian(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return acquisition.gaussian_blur(image, sigma_px=strength)


def _box(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    side = int(strength)
    return F.avg_pool2d(F.pad(image, (side // 2,) * 4, mode="replicate"), side, stride=1)


def _defocus(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return degrade(image, torch.tensor([strength]), setting=Setting.ideal(), generator=generator).degraded


def _noise(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return acquisition.read_noise(image, deviation=strength / 255, generator=generator)


def _jpeg(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return acquisition.compress(image, quality=int(strength))


DEGRADATIONS = (
    Degradation("gaussian", "px", (0.6, 1.0, 1.6, 2.5, 4.0), _gaussian),
    Degradation("box", "px", (3, 5, 7, 11, 15), _box),
    Degradation("defocus", "um", (0.64, 1.28, 1.92, 2.56, 3.2), _defocus),
    Degradation("noise", "grey levels", (2, 5, 10, 20, 40), _noise),
    Degradation("jpeg", "quality", (75, 50, 30, 15, 7), _jpeg),
)
