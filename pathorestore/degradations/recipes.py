"""Named settings of the focal-stack simulator: which nuisance varies, over which range, in which unit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pathorestore.functional.optics import Optics

Range = tuple[float, float]
_GREEN_UM = 0.54


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What one image was simulated with; units as in `Setting`.

    demosaic_phase -1: a camera without a colour filter array. quality 0: no compression. second_layer 0: no second tissue.
    """

    optics: Optics
    thickness_um: float
    layers: int
    focal_share: float
    tilt_um: float
    height_um: float
    height_scale_px: float
    second_layer: float
    second_layer_um: float
    glare: float
    saturation_loss: float
    gamma: float
    white_balance: tuple[float, float, float]
    noise_levels: float
    read_share: float
    demosaic_phase: int
    sharpening: float
    sharpening_px: float
    residual_blur_px: float
    motion_blur_px: float
    quality: int
    codec: str
    max_defocus_um: float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Ranges (low, high) that the simulator draws from uniformly, once per image.

    max_defocus_um: |z| when none is given. max_blur_px: keeps a drawn |z| below the point where the geometric blur disc has this radius.
    numerical_aperture, pixel_um, condenser_ratio, spherical_waves, refractive_index: see `Optics`; the aperture is raised to at least
    0.54 um / (4 pixel_um), so that objective and camera match. focal_shift_um: red comes to focus this far above green, blue below.
    from_scan: the sharp images were taken in focus through the optics, so zero defocus changes nothing; False blurs them as objects.
    thickness_um, layers, focal_share: the section is split into layers across its thickness, the one in focus holding about this share of
    the absorption. tilt_um, height_um, height_scale_px: height differences by tilt across the image and by a smooth random map (standard
    deviation, scale). second_layer, second_layer_probability, second_layer_um: strength 0..1 of an independent tissue at this distance from
    the first, above or below.
    glare, saturation_loss: share of light turned into a veil, of colour lost; both grow with |defocus|, from half the value to all at 5 um.
    gamma, white_balance: exponent on sRGB values, gain of a channel; the same in the degraded and in the clean image.
    noise_levels: standard deviation in 8-bit grey levels at half intensity, before demosaicing and sharpening; read_share: the part of its
    variance that does not depend on the signal. demosaic_probability: of a colour filter array. sharpening, sharpening_px: unsharp mask.
    residual_blur_px, motion_blur_px: further Gaussian blur (standard deviation) and linear blur (length).
    codec, quality, compression_probability: file compression, after all this.
    """

    max_defocus_um: float = 5.0
    max_blur_px: float = 32.0
    numerical_aperture: Range = (0.75, 0.75)
    pixel_um: Range = (0.25, 0.25)
    condenser_ratio: Range = (1.0, 1.0)
    spherical_waves: Range = (0.1, 0.1)
    focal_shift_um: Range = (0.3, 0.3)
    refractive_index: float = 1.0
    from_scan: bool = False
    thickness_um: Range = (0.0, 0.0)
    layers: int = 1
    focal_share: Range = (1.0, 1.0)
    tilt_um: Range = (0.0, 0.0)
    height_um: Range = (0.0, 0.0)
    height_scale_px: Range = (128.0, 128.0)
    second_layer: Range = (0.0, 0.0)
    second_layer_probability: float = 0.0
    second_layer_um: Range = (3.0, 3.0)
    glare: Range = (0.0, 0.0)
    saturation_loss: Range = (0.0, 0.0)
    gamma: Range = (1.0, 1.0)
    white_balance: Range = (1.0, 1.0)
    noise_levels: Range = (0.7, 0.7)
    read_share: Range = (0.0, 0.0)
    demosaic_probability: float = 0.0
    sharpening: Range = (0.0, 0.0)
    sharpening_px: Range = (1.0, 1.0)
    residual_blur_px: Range = (0.0, 0.0)
    motion_blur_px: Range = (0.0, 0.0)
    codec: str = "jpeg"
    quality: Range = (90.0, 90.0)
    compression_probability: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and not (len(value) == 2 and value[0] <= value[1]):
                raise ValueError(f"{field.name}={value} must be a range (low, high) with low <= high; repeat a value to fix it")
            if field.name.endswith("_probability") and not 0 <= value <= 1:
                raise ValueError(f"{field.name}={value} must lie in [0, 1]")
        if self.layers < 1 or self.max_defocus_um < 0 or self.max_blur_px <= 0:
            raise ValueError(
                f"layers={self.layers} must be >= 1, max_defocus_um={self.max_defocus_um} >= 0 and max_blur_px={self.max_blur_px} > 0"
            )
        if self.codec not in ("jpeg", "webp"):
            raise ValueError(f"codec={self.codec!r} is unknown; expected 'jpeg' or 'webp'")
        for aperture in self.numerical_aperture:
            Optics(numerical_aperture=aperture, refractive_index=self.refractive_index, pixel_um=self.pixel_um[0])

    @classmethod
    def ideal(cls) -> "Setting":
        """A flat thin section seen by a 20x / 0.75 objective at 0.25 um/px: only defocus, mild aberration, light shot noise and 8 bit."""
        return cls()

    @classmethod
    def scanner(cls) -> "Setting":
        """Everything that separates slide scanners from the ideal, randomised: what training should see."""
        return cls(
            max_defocus_um=8.0,
            numerical_aperture=(0.4, 0.95),
            pixel_um=(0.2, 0.5),
            condenser_ratio=(0.5, 1.0),
            spherical_waves=(-0.2, 0.2),
            focal_shift_um=(-0.4, 0.4),
            from_scan=True,
            thickness_um=(2.0, 6.0),
            layers=3,
            focal_share=(0.4, 0.9),
            tilt_um=(0.0, 1.0),
            height_um=(0.0, 0.5),
            height_scale_px=(64.0, 192.0),
            second_layer=(0.1, 0.6),
            second_layer_probability=0.3,
            second_layer_um=(2.0, 6.0),
            glare=(0.0, 0.08),
            saturation_loss=(0.0, 0.1),
            gamma=(0.85, 1.15),
            white_balance=(0.94, 1.06),
            noise_levels=(0.5, 4.0),
            read_share=(0.1, 0.7),
            demosaic_probability=0.5,
            sharpening=(0.0, 0.8),
            sharpening_px=(0.7, 2.0),
            quality=(60.0, 95.0),
            compression_probability=0.8,
        )

    @classmethod
    def shifted(cls) -> "Setting":
        """Optics, noise and file format outside `scanner`'s ranges: for evaluation, never for training."""
        return cls(
            max_defocus_um=8.0,
            numerical_aperture=(0.62, 0.68),
            pixel_um=(0.22, 0.28),
            condenser_ratio=(0.4, 0.45),
            spherical_waves=(0.3, 0.3),
            focal_shift_um=(0.45, 0.6),
            refractive_index=1.515,
            from_scan=True,
            thickness_um=(1.0, 1.8),
            layers=2,
            focal_share=(0.6, 0.7),
            tilt_um=(1.0, 1.5),
            height_um=(0.5, 0.7),
            height_scale_px=(200.0, 300.0),
            second_layer=(0.1, 0.3),
            second_layer_probability=0.2,
            second_layer_um=(7.0, 9.0),
            glare=(0.08, 0.1),
            saturation_loss=(0.1, 0.15),
            gamma=(1.2, 1.3),
            white_balance=(0.9, 1.1),
            noise_levels=(1.5, 3.0),
            read_share=(0.9, 1.0),
            sharpening=(0.0, 0.4),
            sharpening_px=(2.2, 2.5),
            residual_blur_px=(0.5, 1.0),
            motion_blur_px=(1.0, 3.0),
            codec="webp",
            quality=(50.0, 80.0),
            compression_probability=1.0,
        )

    def sample(self, generator: torch.Generator) -> Parameters:
        """Draw the parameters of one image."""
        draw = Uniform(generator)
        optics = self._sample_optics(draw)
        slope = optics.numerical_aperture / math.sqrt(optics.refractive_index**2 - optics.numerical_aperture**2)
        return Parameters(
            optics=optics,
            max_defocus_um=min(self.max_defocus_um, self.max_blur_px * optics.pixel_um / slope),
            thickness_um=draw(self.thickness_um),
            layers=self.layers,
            focal_share=draw(self.focal_share),
            tilt_um=draw(self.tilt_um),
            height_um=draw(self.height_um),
            height_scale_px=draw(self.height_scale_px),
            second_layer=draw(self.second_layer) * draw.happens(self.second_layer_probability),
            second_layer_um=draw(self.second_layer_um) * (1 if draw.happens(0.5) else -1),
            glare=draw(self.glare),
            saturation_loss=draw(self.saturation_loss),
            gamma=draw(self.gamma),
            white_balance=(draw(self.white_balance), draw(self.white_balance), draw(self.white_balance)),
            noise_levels=draw(self.noise_levels),
            read_share=draw(self.read_share),
            demosaic_phase=int(draw((0, 4))) % 4 if draw.happens(self.demosaic_probability) else -1,
            sharpening=draw(self.sharpening),
            sharpening_px=draw(self.sharpening_px),
            residual_blur_px=draw(self.residual_blur_px),
            motion_blur_px=draw(self.motion_blur_px),
            quality=round(draw(self.quality)) if draw.happens(self.compression_probability) else 0,
            codec=self.codec,
        )

    def _sample_optics(self, draw: "Uniform") -> Optics:
        pixel_um = draw(self.pixel_um)
        low, high = self.numerical_aperture
        shift = draw(self.focal_shift_um)
        return Optics(
            numerical_aperture=draw((min(high, max(low, _GREEN_UM / (4 * pixel_um))), high)),
            pixel_um=pixel_um,
            refractive_index=self.refractive_index,
            spherical_waves=draw(self.spherical_waves),
            focal_shift_um=(shift, 0.0, -shift),
            # steps of 0.05, so that the matrices of the transfer function are built once for each
            condenser_ratio=max(0.05, round(draw(self.condenser_ratio) * 20) / 20),
        )


class Uniform:
    """Uniform draws from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, span: Range) -> float:
        return span[0] + (span[1] - span[0]) * torch.rand((), generator=self._generator).item()

    def happens(self, probability: float) -> bool:
        return torch.rand((), generator=self._generator).item() < probability

    def integer(self, span: Range) -> int:
        """A whole number, both ends included."""
        return int(span[0]) + int(self((0, int(span[1]) - int(span[0]) + 1)))

    def index(self, weights: Sequence[float]) -> int:
        """An index of `weights`, with probability proportional to its weight."""
        level = self((0, sum(weights)))
        passed = [sum(weights[: i + 1]) <= level for i in range(len(weights))]
        return min(sum(passed), len(weights) - 1)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self._generator)
