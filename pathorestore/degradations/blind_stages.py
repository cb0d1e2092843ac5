"""The single steps of blind degradations: each holds the numbers that were drawn for it, says them, and does its work on one image.

An image is 1 3 h w in [0, 1], before and after every stage. What a stage draws itself (noise) comes from the generator, a CPU generator.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pathorestore.degradations import acquisition, kernels
from pathorestore.degradations.resize import Interpolation, resized, sampled
from pathorestore.functional.color import luminance

Size = tuple[int, int]
# grey levels of an 8-bit image, the photons that a white pixel counts at scale 1
_PHOTONS = 256


class Stage(ABC):
    """One step: image 1 3 h w in, image out."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor: ...

    def facts(self) -> dict[str, Any]:
        """What was drawn for it, ready for JSON."""
        values = asdict(self)  # type: ignore[call-overload]
        return {"stage": self.name} | {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def spread_px2(self) -> tuple[float, float]:
        """Variance along y and x, in px^2 of the image that comes in, that it adds to a point."""
        return 0.0, 0.0

    def noise_variance(self) -> float:
        """Variance of the noise that it adds, on the scale of the image."""
        return 0.0

    def size_px(self, before: Size) -> Size:
        """Height and width of what comes out."""
        return before


class Blur(Stage):
    """Filter with a kernel."""

    @abstractmethod
    def kernel(self) -> Tensor:
        """The weights k k."""

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return kernels.filtered(image, self.kernel()).clamp(0, 1)

    def spread_px2(self) -> tuple[float, float]:
        return kernels.spread_px2(self.kernel())


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Blur):
    """A Gaussian, isotropic, anisotropic or generalised; see `kernels.generalised_gaussian_kernel`."""

    name: ClassVar[str] = "gaussian_blur"
    sigma_px: tuple[float, float]
    angle: float = 0.0
    beta: float = 1.0
    side_px: int

    def kernel(self) -> Tensor:
        return kernels.generalised_gaussian_kernel(self.sigma_px, angle=self.angle, beta=self.beta, side_px=self.side_px)


@dataclass(frozen=True, kw_only=True)
class PlateauBlur(Blur):
    """See `kernels.plateau_kernel`."""

    name: ClassVar[str] = "plateau_blur"
    sigma_px: tuple[float, float]
    angle: float = 0.0
    beta: float
    side_px: int

    def kernel(self) -> Tensor:
        return kernels.plateau_kernel(self.sigma_px, angle=self.angle, beta=self.beta, side_px=self.side_px)


@dataclass(frozen=True, kw_only=True)
class SincBlur(Blur):
    """See `kernels.sinc_kernel`. It leaves low frequencies alone, so that it has no spread of its own."""

    name: ClassVar[str] = "sinc_blur"
    cutoff: float
    side_px: int

    def kernel(self) -> Tensor:
        return kernels.sinc_kernel(self.cutoff, side_px=self.side_px)

    def spread_px2(self) -> tuple[float, float]:
        return 0.0, 0.0


@dataclass(frozen=True, kw_only=True)
class Resize(Stage):
    """Interpolate to another size; see `resize.sampled`."""

    name: ClassVar[str] = "resize"
    to_px: Size
    kind: Interpolation

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return sampled(image, self.to_px, kind=self.kind)

    def size_px(self, before: Size) -> Size:
        return self.to_px


@dataclass(frozen=True, kw_only=True)
class Subsample(Stage):
    """Keep one pixel out of each block, the upper left, after a Gaussian that lies over the centre of the block, where that pixel belongs.

    from_px, to_px: height and width before and after.
    """

    name: ClassVar[str] = "subsample"
    from_px: Size
    to_px: Size
    sigma_px: float
    side_px: int = 25

    def kernel(self) -> Tensor:
        """The Gaussian k k; larger than `side_px` where a block is."""
        centre_y, centre_x = ((before / after - 1) / 2 for before, after in zip(self.from_px, self.to_px, strict=True))
        side_px = max(self.side_px, 4 * math.ceil(max(centre_y, centre_x)) + 1)
        return kernels.gaussian_kernel((self.sigma_px, self.sigma_px), side_px=side_px, centre_px=(centre_y, centre_x))

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return F.interpolate(kernels.filtered(image, self.kernel()).clamp(0, 1), size=self.to_px, mode="nearest")

    def spread_px2(self) -> tuple[float, float]:
        return kernels.spread_px2(self.kernel())

    def size_px(self, before: Size) -> Size:
        return self.to_px


@dataclass(frozen=True, kw_only=True)
class RestoreSize(Stage):
    """Bicubic, to the size that the image had at first; see `resize.resized`."""

    name: ClassVar[str] = "restore_size"
    to_px: Size

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return resized(image, self.to_px)

    def size_px(self, before: Size) -> Size:
        return self.to_px


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Stage):
    """Normal noise of a standard deviation, drawn for each pixel and channel, or for each pixel (grey); clipped."""

    name: ClassVar[str] = "gaussian_noise"
    deviation: float
    grey: bool = False

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        flat = torch.zeros_like(image[:, :1] if self.grey else image)
        return (image + acquisition.read_noise(flat, deviation=self.deviation, generator=generator)).clamp(0, 1)

    def noise_variance(self) -> float:
        return self.deviation**2


@dataclass(frozen=True, kw_only=True)
class CorrelatedNoise(Stage):
    """Normal noise whose channels vary together: covariance deviation^2 M, with `mixing` M 3 3 positive and of trace 3; clipped."""

    name: ClassVar[str] = "correlated_noise"
    deviation: float
    mixing: list[list[float]]

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        white = acquisition.read_noise(torch.zeros_like(image), deviation=self.deviation, generator=generator)
        values, vectors = torch.linalg.eigh(torch.tensor(self.mixing, dtype=torch.float64))
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return (image + torch.einsum("ij,bjhw->bihw", root.to(white), white)).clamp(0, 1)

    def noise_variance(self) -> float:
        return self.deviation**2


@dataclass(frozen=True, kw_only=True)
class PoissonNoise(Stage):
    """The deviation of a photon count from its mean, times `scale`; a white pixel counts 256 photons. Clipped.

    With grey the luminance is counted, and its deviation added to each channel. Variance: scale^2 image / 256.
    """

    name: ClassVar[str] = "poisson_noise"
    scale: float
    grey: bool = False

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        mean = (luminance(image) if self.grey else image).cpu() * _PHOTONS
        deviation = (torch.poisson(mean, generator=generator) - mean) / _PHOTONS
        return (image + self.scale * deviation.to(image)).clamp(0, 1)

    def noise_variance(self) -> float:
        # at half intensity
        return self.scale**2 * 0.5 / _PHOTONS


@dataclass(frozen=True, kw_only=True)
class Jpeg(Stage):
    """Through an 8-bit JPEG file of a quality in 1..100; see `acquisition.compress`."""

    name: ClassVar[str] = "jpeg"
    quality: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return acquisition.compress(image, quality=self.quality)


@dataclass(frozen=True, kw_only=True)
class EightBit(Stage):
    """Round to the 256 levels of a file."""

    name: ClassVar[str] = "eight_bit"

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return acquisition.quantise(image)
