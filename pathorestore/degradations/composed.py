"""Degradations named by what they do: blur, lost resolution, noise and compression, each alone or several at once, and their vector."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pathorestore.degradations.blind_recipes import check_recipe, shrunk
from pathorestore.degradations.blind_stages import GaussianBlur, GaussianNoise, Jpeg, Resize, Size, Stage
from pathorestore.degradations.recipes import Range, Uniform

Fault = Literal["blur", "downscale", "noise", "jpeg"]
FAULTS: tuple[Fault, ...] = get_args(Fault)


@dataclass(frozen=True, kw_only=True)
class Composed:
    """Blur, averaging to fewer pixels, noise and JPEG in this order and at the size of the input, each with a probability of its own; ours.

    identity_probability: of none of them. sigma_px: of the blur, along one axis, and along the other too with `isotropic_probability`.
    downscale: how many times smaller. noise_levels: of 255. quality: of JPEG. Where fewer pixels were kept, noise and JPEG meet these, and
    the image is enlarged last.
    """

    name: str = "composed"
    identity_probability: float = 0.1
    blur_probability: float = 0.5
    downscale_probability: float = 0.5
    noise_probability: float = 0.5
    jpeg_probability: float = 0.3
    sigma_px: Range = (0.6, 3.0)
    isotropic_probability: float = 0.7
    downscale: Range = (1.5, 4.0)
    noise_levels: Range = (3.0, 25.0)
    quality: Range = (20, 80)
    kernel_side_px: int = 25

    def __post_init__(self) -> None:
        check_recipe(self)

    @classmethod
    def any(cls) -> "Composed":
        """Everything that can happen, in any company."""
        return cls()

    @classmethod
    def wide(cls) -> "Composed":
        """The same, from slight to hopeless: for encoders that are to tell degradations apart."""
        return cls(name="wide", sigma_px=(0.6, 6.0), downscale=(1.5, 6.0), noise_levels=(2.0, 30.0), quality=(10, 80), kernel_side_px=41)

    @classmethod
    def only(cls, fault: Fault) -> "Composed":
        """Always this one, alone. Raises ValueError for an unknown one."""
        if fault not in FAULTS:
            raise ValueError(f"fault={fault!r} is unknown; expected one of {', '.join(FAULTS)}")
        never = cls(
            name=fault,
            identity_probability=0.0,
            blur_probability=0.0,
            downscale_probability=0.0,
            noise_probability=0.0,
            jpeg_probability=0.0,
        )
        return replace(never, **{f"{fault}_probability": 1.0})  # type: ignore[arg-type]

    def plan(self, size_px: Size, generator: torch.Generator) -> tuple[Stage, ...]:
        draw = Uniform(generator)
        if draw.happens(self.identity_probability):
            return ()
        stages: list[Stage] = []
        if draw.happens(self.blur_probability):
            along, isotropic = draw(self.sigma_px), draw.happens(self.isotropic_probability)
            across, angle = (along, 0.0) if isotropic else (draw(self.sigma_px), draw((-math.pi, math.pi)))
            stages.append(GaussianBlur(sigma_px=(along, across), angle=angle, side_px=self.kernel_side_px))
        smaller = draw.happens(self.downscale_probability)
        if smaller:
            stages.append(Resize(to_px=shrunk(size_px, draw(self.downscale)), kind="averaged"))
        if draw.happens(self.noise_probability):
            stages.append(GaussianNoise(deviation=draw(self.noise_levels) / 255))
        if draw.happens(self.jpeg_probability):
            stages.append(Jpeg(quality=draw.integer(self.quality)))
        if smaller:
            stages.append(Resize(to_px=size_px, kind="averaged"))
        return tuple(stages)


class Theta(NamedTuple):
    """What was done to images, n each. downscale: at least 1. noise_std: on the scale [0, 1]. jpeg_quality: 100 for none."""

    blur_sigma_x_px: Tensor
    blur_sigma_y_px: Tensor
    downscale: Tensor
    noise_std: Tensor
    jpeg_quality: Tensor

    @classmethod
    def of(cls, parameters: Sequence[Mapping[str, Any]]) -> "Theta":
        """From what `degrade_blind` or `summary` tell, float32."""
        return cls(*(torch.tensor([float(one[name]) for one in parameters]) for name in cls._fields))

    def normalised(self) -> Tensor:
        """The same as n 5, zero for an untouched image and about one for a bad one: sigma / 3, log2 of the scale / 2, noise / 25 levels.

        Of quality q it is (100 - q) / 80.
        """
        scaled = (
            self.blur_sigma_x_px / _WORST.blur_sigma_x_px,
            self.blur_sigma_y_px / _WORST.blur_sigma_y_px,
            self.downscale.clamp(min=1).log2() / _WORST.downscale.log2(),
            self.noise_std / _WORST.noise_std,
            (100 - self.jpeg_quality) / (100 - _WORST.jpeg_quality),
        )
        return torch.stack([one.to(self.downscale) for one in scaled], dim=1)

    @classmethod
    def from_normalised(cls, vector: Tensor) -> "Theta":
        """Back from n 5; what lies below zero means an untouched image. Raises ValueError for another shape."""
        if vector.ndim != 2 or vector.shape[1] != len(cls._fields):
            raise ValueError(f"expected a vector n {len(cls._fields)}; got {tuple(vector.shape)}")
        x, y, scale, noise, jpeg = vector.clamp(min=0).unbind(1)
        worst = [one.to(vector) for one in _WORST]
        return cls(x * worst[0], y * worst[1], 2 ** (scale * worst[2].log2()), noise * worst[3], 100 - jpeg * (100 - worst[4]))


_WORST = Theta(torch.tensor(3.0), torch.tensor(3.0), torch.tensor(4.0), torch.tensor(25 / 255), torch.tensor(20.0))
