"""Named recipes of blind degradation: which steps, in which order, with numbers drawn from which ranges.

A recipe plans the stages of one image; `blind.degrade_blind` runs them. Noise is in 8-bit grey levels, sigma in pixels of the image that
the blur meets, quality that of JPEG. A range (a, a) fixes a value.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Protocol, get_args

import torch

from pathorestore.degradations.blind_stages import (
    CorrelatedNoise,
    EightBit,
    GaussianBlur,
    GaussianNoise,
    Jpeg,
    PlateauBlur,
    PoissonNoise,
    Resize,
    SincBlur,
    Size,
    Stage,
    Subsample,
)
from pathorestore.degradations.recipes import Range, Uniform
from pathorestore.degradations.resize import Interpolation

_KINDS: tuple[Interpolation, ...] = ("linear", "cubic", "area")


class Recipe(Protocol):
    """Plans the stages for an image of a size."""

    @property
    def name(self) -> str:
        """The preset that it was made from."""
        ...

    def plan(self, size_px: Size, generator: torch.Generator) -> tuple[Stage, ...]:
        """Draw the stages for an image of height and width `size_px`. Raises ValueError where nothing would be left of it."""
        ...


@dataclass(frozen=True, kw_only=True)
class OneRound:
    """Blur, shrink, add noise, compress, enlarge to the size of the input: the degradation that DiffBIR took over from face restoration.

    kernel_side_px: fixed and odd. sigma_px: one for both axes with `isotropic_probability`, else one for each and an angle in [-pi, pi].
    downscale: how many times it shrinks. interpolation: by which it shrinks and is enlarged. noise_levels: for each pixel and channel.
    """

    name: str = "diffbir"
    kernel_side_px: int = 41
    sigma_px: Range = (0.1, 12.0)
    isotropic_probability: float = 0.5
    downscale: Range = (1.0, 12.0)
    interpolation: Interpolation = "linear"
    noise_levels: Range = (0.0, 15.0)
    quality: Range = (30, 100)
    jpeg_probability: float = 1.0

    def __post_init__(self) -> None:
        check_recipe(self)
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f"interpolation={self.interpolation!r} must be one of {', '.join(get_args(Interpolation))}")

    @classmethod
    def diffbir(cls) -> "OneRound":
        """Lin et al. 2023 (first version), which Histo-Diffusion trains on: strong."""
        return cls()

    @classmethod
    def histo_light(cls) -> "OneRound":
        """`diffbir` with ranges of our own, closer to the levels of a slide: sigma to 4 px, shrunk to 1/8, noise to 8, quality from 60."""
        return cls(name="histo_light", sigma_px=(0.1, 4.0), downscale=(1.0, 8.0), noise_levels=(0.0, 8.0), quality=(60, 100))

    @classmethod
    def pyramid(cls) -> "OneRound":
        """Of our own: as the levels of a slide are made, by averaging, with little noise and JPEG on every other image.

        Sigma to 2 px, shrunk to 1/6, noise to 3, quality from 70.
        """
        return cls(
            name="pyramid",
            sigma_px=(0.0, 2.0),
            isotropic_probability=1.0,
            downscale=(1.0, 6.0),
            interpolation="averaged",
            noise_levels=(0.0, 3.0),
            quality=(70, 100),
            jpeg_probability=0.5,
        )

    def plan(self, size_px: Size, generator: torch.Generator) -> tuple[Stage, ...]:
        draw = Uniform(generator)
        along = draw(self.sigma_px)
        isotropic = draw.happens(self.isotropic_probability)
        sigma_px = (along, along if isotropic else draw(self.sigma_px))
        angle = 0.0 if isotropic else draw((-math.pi, math.pi))
        return (
            GaussianBlur(sigma_px=sigma_px, angle=angle, side_px=self.kernel_side_px),
            Resize(to_px=shrunk(size_px, draw(self.downscale)), kind=self.interpolation),
            GaussianNoise(deviation=draw(self.noise_levels) / 255),
            *_jpeg(draw, self.quality, self.jpeg_probability),
            Resize(to_px=size_px, kind=self.interpolation),
        )


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Two blurs, two reductions, noise and JPEG in random order, then a final JPEG: BSRGAN's degradation to 1 / scale of the size.

    halving_probability: at scale 4, the image is halved first and the rest is that of scale 2. blur: factor on every sigma below.
    A blur has, with `anisotropic_probability`, a covariance of eigenvalues U(0, 4 + scale) px^2 at an angle in [0, pi], else a sigma of
    U(0, 2 + 0.2 scale) px; its side is odd, from side_px. The first reduction shrinks by U(1, 2 scale) with `random_resize_probability`,
    else keeps one pixel of each block after a Gaussian of sigma U(0.1, 0.6 scale) px; the second brings the final size and never
    comes before the first. Interpolation is linear, cubic or area. noise_shares: of colour, grey and correlated noise.
    The camera's sensor model, the seventh operation of the paper, is left out.
    """

    name: str = "bsrgan"
    scale: float
    halving_probability: float = 0.25
    blur: float = 1.0
    anisotropic_probability: float = 0.5
    side_px: Range = (7, 25)
    random_resize_probability: float = 0.75
    noise_levels: Range = (2.0, 25.0)
    noise_shares: tuple[float, float, float] = (0.4, 0.4, 0.2)
    quality: Range = (30, 95)
    jpeg_probability: float = 0.9
    final_jpeg_probability: float = 1.0

    def __post_init__(self) -> None:
        check_recipe(self)

    @classmethod
    def bsrgan(cls, scale: float) -> "Shuffled":
        """Zhang et al. 2021, without the sensor model; any scale >= 1."""
        return cls(scale=scale)

    def plan(self, size_px: Size, generator: torch.Generator) -> tuple[Stage, ...]:
        draw, scale = Uniform(generator), self.scale
        target = _target(size_px, scale)
        stages: list[Stage] = []
        if scale == 4 and draw.happens(self.halving_probability):
            size_px, scale = shrunk(size_px, 2), 2
            stages.append(Resize(to_px=size_px, kind=_kind(draw)))
        order = [("blur", "blur", "shrink", "fit", "noise", "jpeg")[i] for i in torch.randperm(6, generator=generator).tolist()]
        first, second = sorted((order.index("shrink"), order.index("fit")))
        order[first], order[second] = "shrink", "fit"
        for step in order:
            if step == "blur":
                stages.append(self._blur(draw, scale))
            elif step == "shrink":
                stages.append(self._shrink(draw, size_px, scale))
            elif step == "fit":
                stages.append(Resize(to_px=target, kind=_kind(draw)))
            elif step == "noise":
                stages.append(self._noise(draw))
            else:
                stages += _jpeg(draw, self.quality, self.jpeg_probability)
        return (*stages, *_jpeg(draw, self.quality, self.final_jpeg_probability))

    def _blur(self, draw: Uniform, scale: float) -> Stage:
        side_px = _odd(draw, self.side_px)
        if not draw.happens(self.anisotropic_probability):
            sigma = self.blur * draw((0, 2 + 0.2 * scale))
            return GaussianBlur(sigma_px=(sigma, sigma), side_px=side_px)
        along, across = (self.blur * math.sqrt(draw((0, 4 + scale))) for _ in range(2))
        return GaussianBlur(sigma_px=(along, across), angle=draw((0, math.pi)), side_px=side_px)

    def _shrink(self, draw: Uniform, size_px: Size, scale: float) -> Stage:
        if draw.happens(self.random_resize_probability):
            return Resize(to_px=shrunk(size_px, draw((1, 2 * scale))), kind=_kind(draw))
        return Subsample(from_px=size_px, to_px=shrunk(size_px, scale), sigma_px=self.blur * draw((0.1, 0.6 * scale)))

    def _noise(self, draw: Uniform) -> Stage:
        deviation = draw(self.noise_levels) / 255
        kind = draw.index(self.noise_shares)
        return (
            CorrelatedNoise(deviation=deviation, mixing=_mixing(draw)) if kind == 2 else GaussianNoise(deviation=deviation, grey=kind == 1)
        )


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of Real-ESRGAN: blur, resize, noise, JPEG.

    sinc_probability: of a low-pass in place of the blur; else one of six kernels by `kernel_shares`: Gaussian, generalised Gaussian and
    plateau, of each the isotropic one first, then the anisotropic one at an angle in [-pi, pi]. side_px: odd sides. resize_shares: enlarge,
    shrink or keep, by a factor from `resize` above or below 1. Noise is Gaussian with `gaussian_probability`, else Poisson; either is grey
    with `grey_probability`.
    """

    blur_probability: float = 1.0
    sinc_probability: float = 0.1
    kernel_shares: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    side_px: Range = (7, 21)
    sigma_px: Range = (0.2, 3.0)
    gaussian_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    resize_shares: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize: Range = (0.15, 1.5)
    gaussian_probability: float = 0.5
    noise_levels: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)
    grey_probability: float = 0.4
    quality: Range = (30, 95)
    jpeg_probability: float = 1.0

    def __post_init__(self) -> None:
        check_recipe(self)
        if len(self.kernel_shares) != 6 or not 0 < self.resize[0] <= 1 <= self.resize[1]:
            raise ValueError(
                f"kernel_shares={self.kernel_shares} must be six numbers and resize={self.resize} a range of positive factors around 1"
            )

    def plan_blur(self, draw: Uniform) -> tuple[Stage, ...]:
        """One kernel, or none."""
        if not draw.happens(self.blur_probability):
            return ()
        side_px = _odd(draw, self.side_px)
        if draw.happens(self.sinc_probability):
            # a small kernel cannot hold the longest waves
            return (SincBlur(cutoff=draw((math.pi / 3 if side_px < 13 else math.pi / 5, math.pi)), side_px=side_px),)
        family, anisotropic = divmod(draw.index(self.kernel_shares), 2)
        along = draw(self.sigma_px)
        sigma_px = (along, draw(self.sigma_px) if anisotropic else along)
        angle = draw((-math.pi, math.pi)) if anisotropic else 0.0
        if family == 2:
            return (PlateauBlur(sigma_px=sigma_px, angle=angle, beta=draw(self.plateau_beta), side_px=side_px),)
        beta = draw(self.gaussian_beta) if family == 1 else 1.0
        return (GaussianBlur(sigma_px=sigma_px, angle=angle, beta=beta, side_px=side_px),)

    def plan_resize(self, draw: Uniform, size_px: Size) -> Resize:
        """To a random multiple of height and width `size_px`."""
        low, high = self.resize
        factor = draw(((1, high), (low, 1), (1, 1))[draw.index(self.resize_shares)])
        return Resize(to_px=shrunk(size_px, 1 / factor), kind=_kind(draw))

    def plan_noise(self, draw: Uniform) -> Stage:
        """Gaussian or Poisson noise, in colour or grey."""
        grey = draw.happens(self.grey_probability)
        if draw.happens(self.gaussian_probability):
            return GaussianNoise(deviation=draw(self.noise_levels) / 255, grey=grey)
        return PoissonNoise(scale=draw(self.poisson_scale), grey=grey)


def _second_round() -> Round:
    return Round(
        blur_probability=0.8,
        sigma_px=(0.2, 1.5),
        resize_shares=(0.3, 0.4, 0.3),
        resize=(0.3, 1.2),
        noise_levels=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
    )


@dataclass(frozen=True, kw_only=True)
class TwoRounds:
    """Real-ESRGAN's degradation to 1 / scale of the size: two rounds, the second ending with the final size and JPEG in random order.

    The first round resizes relative to the input, the second to the final size. The final resize is followed by a low-pass with
    `final_sinc_probability`; the result has 8 bits. Targets are not sharpened: that is meant for photographs.
    """

    name: str = "realesrgan"
    scale: float
    first: Round = field(default_factory=Round)
    second: Round = field(default_factory=_second_round)
    final_sinc_probability: float = 0.8

    def __post_init__(self) -> None:
        check_recipe(self)

    @classmethod
    def realesrgan(cls, scale: float) -> "TwoRounds":
        """Wang et al. 2021; any scale >= 1."""
        return cls(scale=scale)

    def plan(self, size_px: Size, generator: torch.Generator) -> tuple[Stage, ...]:
        draw, target = Uniform(generator), _target(size_px, self.scale)
        first = (*self.first.plan_blur(draw), self.first.plan_resize(draw, size_px), self.first.plan_noise(draw))
        between = _jpeg(draw, self.first.quality, self.first.jpeg_probability)
        second = (*self.second.plan_blur(draw), self.second.plan_resize(draw, target), self.second.plan_noise(draw))
        fit: list[Stage] = [Resize(to_px=target, kind=_kind(draw))]
        if draw.happens(self.final_sinc_probability):
            fit.append(SincBlur(cutoff=draw((math.pi / 3, math.pi)), side_px=_odd(draw, self.second.side_px)))
        jpeg = _jpeg(draw, self.second.quality, self.second.jpeg_probability)
        last = [*fit, *jpeg] if draw.happens(0.5) else [*jpeg, *fit]
        return (*first, *between, *second, *last, EightBit())


def shrunk(size_px: Size, factor: float) -> Size:
    """Height and width divided by a factor, rounded, at least one pixel."""
    return max(1, round(size_px[0] / factor)), max(1, round(size_px[1] / factor))


def _target(size_px: Size, scale: float) -> Size:
    if min(size_px) < scale:
        raise ValueError(f"nothing is left of an image of {tuple(size_px)} px at scale={scale}; give at least {math.ceil(scale)} px a side")
    return shrunk(size_px, scale)


def _jpeg(draw: Uniform, quality: Range, probability: float) -> list[Stage]:
    return [Jpeg(quality=draw.integer(quality))] if draw.happens(probability) else []


def _kind(draw: Uniform) -> Interpolation:
    return _KINDS[draw.index((1, 1, 1))]


def _odd(draw: Uniform, span: Range) -> int:
    return 2 * draw.integer(((span[0] - 1) / 2, (span[1] - 1) / 2)) + 1


def _mixing(draw: Uniform) -> list[list[float]]:
    """A random 3 x 3 covariance of trace 3: uniform eigenvalues, uniform orientation."""
    values = torch.tensor([draw((0, 1)) for _ in range(3)], dtype=torch.float64) + 1e-6
    axes, _ = torch.linalg.qr(draw.normal(3, 3).double())
    mixing: list[list[float]] = ((axes * (3 * values / values.sum())) @ axes.T).tolist()
    return mixing


_LOWEST = {"downscale": 1.0, "quality": 1.0, "side_px": 1.0}


def check_recipe(recipe: object) -> None:
    """Raise ValueError for a setting that cannot be drawn from or done."""
    for one in fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, one.name)
        if one.name.endswith("_probability") and not 0 <= value <= 1:
            raise ValueError(f"{one.name}={value} must lie in [0, 1]")
        if one.name.endswith("_shares") and (min(value) < 0 or sum(value) <= 0):
            raise ValueError(f"{one.name}={value} must not be negative, and one of them more than 0")
        if one.type is Range and not (len(value) == 2 and _LOWEST.get(one.name, 0) <= value[0] <= value[1] < math.inf):
            raise ValueError(
                f"{one.name}={value} must be a range (low, high) with {_LOWEST.get(one.name, 0):g} <= low <= high; repeat a value to fix it"
            )
        if one.name.endswith("side_px") and any(side % 2 != 1 for side in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{one.name}={value} must be odd, so that a kernel has a central pixel")
        if one.name == "quality" and value[1] > 100:
            raise ValueError(f"quality={value} must end at 100 or below")
        if one.name.endswith("beta") and value[0] <= 0:
            raise ValueError(f"{one.name}={value} must be positive; (1, 1) is the Gaussian's exponent")
        if one.name == "scale" and not 1 <= value < math.inf:
            raise ValueError(f"scale={value} must be at least 1; these recipes make images smaller")
        if one.name == "blur" and not 0 <= value < math.inf:
            raise ValueError(f"blur={value} must not be negative; 1 is the paper's, 0 none")
