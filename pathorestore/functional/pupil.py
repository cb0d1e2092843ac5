"""The pupil of a microscope objective and the radial transfer function that follows from it.

Every pupil here is a disc with a phase that depends on the radius only, so its transfer function is real and depends on the radius only. It
is computed as a pair of Hankel transforms, pupil -> field -> transfer, with the slowly decaying edge wave of the aperture taken out and
added back in closed form; what is left falls off fast enough for a short quadrature.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_PANEL_NODES = 16
_PANEL_RADIANS = 24.0  # phase that 16 Gauss nodes integrate to better than 1e-7
_REACH_PER_SLOPE = 1.6
_MAX_REACH = 2048.0


@dataclass(frozen=True, kw_only=True)
class Optics:
    """A bright-field objective and the camera behind it.

    numerical_aperture: of the objective. pixel_um: camera pixel in the object plane. wavelengths_um: of the R, G, B channels.
    refractive_index: of the medium. spherical_waves: peak coefficient W_s of the balanced spherical term W_s (6 r^4 - 6 r^2 + 1).
    focal_shift_um: axial colour, added to the defocus of each channel. condenser_ratio: condenser aperture / objective aperture; 1 is the
    incoherent limit. paraxial: use the quadratic defocus phase instead of the exact one. Raises ValueError on impossible values.
    """

    numerical_aperture: float = 0.75
    pixel_um: float = 0.25
    wavelengths_um: tuple[float, ...] = (0.61, 0.54, 0.46)
    refractive_index: float = 1.0
    spherical_waves: float = 0.0
    focal_shift_um: tuple[float, ...] = (0.0, 0.0, 0.0)
    condenser_ratio: float = 1.0
    paraxial: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.numerical_aperture < self.refractive_index:
            raise ValueError(
                f"numerical_aperture={self.numerical_aperture} must lie between 0 and refractive_index={self.refractive_index}; "
                "an immersion objective needs refractive_index=1.515 (oil) or 1.33 (water)"
            )
        if not 0 < self.condenser_ratio <= 1:
            raise ValueError(f"condenser_ratio={self.condenser_ratio} must lie in (0, 1]; 1 is incoherent illumination")
        if self.pixel_um <= 0 or not self.wavelengths_um or min(self.wavelengths_um) <= 0:
            raise ValueError(
                f"pixel_um={self.pixel_um} and wavelengths_um={self.wavelengths_um} must be positive lengths in um, e.g. 0.25 and 0.55"
            )
        if len(self.focal_shift_um) != len(self.wavelengths_um):
            raise ValueError(f"focal_shift_um={self.focal_shift_um} needs one entry for each of wavelengths_um={self.wavelengths_um}")


def pupil_phase(radius: Tensor, defocus_um: Tensor, optics: Optics, wavelength_um: float) -> Tensor:
    """Phase in radians, b n, of the pupil at relative radii n in [0, 1] for defocus b in um (float64).

    Exact: 2 pi z (sqrt((n/lam)^2 - f^2) - n/lam); paraxial: -pi lam z f^2 / n, with f = radius NA / lam; plus the balanced spherical term
    2 pi W_s (6 r^4 - 6 r^2 + 1). Source: Goodman, Introduction to Fourier Optics, 3rd ed., secs. 3.10 and 6.4.
    """
    radius, defocus = radius.double(), defocus_um.double()[:, None]
    frequency, index = radius * (optics.numerical_aperture / wavelength_um), optics.refractive_index / wavelength_um
    if optics.paraxial:
        phase = -math.pi * frequency**2 / index * defocus
    else:
        phase = 2 * math.pi * defocus * ((index**2 - frequency**2).sqrt() - index)
    return phase + 2 * math.pi * optics.spherical_waves * (6 * radius**4 - 6 * radius**2 + 1)


def disc_overlap(shift: Tensor, condenser_ratio: float) -> Tensor:
    """Share of a disc of radius `condenser_ratio` that a unit disc at distance `shift` covers: the in-focus transfer function.

    For ratio 1 it is (2/pi)(acos s - s sqrt(1 - s^2)) with s = shift / 2.
    Source: Goodman, Introduction to Fourier Optics, 3rd ed., eq. 6-31.
    """
    small, distance = condenser_ratio, shift.double()
    gap = distance.clamp(min=max(1 - small, 1e-12), max=1 + small)
    cos_large = ((gap**2 + 1 - small**2) / (2 * gap)).clamp(-1, 1)
    cos_small = ((gap**2 + small**2 - 1) / (2 * gap * small)).clamp(-1, 1)
    kite = 0.5 * ((1 + small - gap) * (gap + 1 - small) * (gap - 1 + small) * (gap + 1 + small)).clamp(min=0).sqrt()
    area = cos_large.acos() + small**2 * cos_small.acos() - kite
    share = area / (math.pi * small**2)
    return torch.where(distance >= 1 + small, 0.0, torch.where(distance <= 1 - small, 1.0, share))


def _gauss_panels(stop: float, radians_per_unit: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, stop] that integrate oscillations of the given rate (composite Gauss-Legendre)."""
    import numpy as np

    node, weight = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(_PANEL_NODES))
    count = max(1, math.ceil(stop * radians_per_unit / _PANEL_RADIANS))
    half = stop / count / 2
    centres = (2 * torch.arange(count, dtype=torch.float64) + 1) * half
    return (centres[:, None] + half * node).reshape(-1), (half * weight).repeat(count)


# the dimensionless radius of the field is v = 2 pi r NA / lam; `reach` is the largest v that is followed


@lru_cache(maxsize=32)
def _field_nodes(reach: float) -> tuple[Tensor, Tensor]:
    return _gauss_panels(reach, 4.0)


@lru_cache(maxsize=32)
def _pupil_nodes(reach: float) -> tuple[Tensor, Tensor]:
    return _gauss_panels(1.0, 2 * reach)


@lru_cache(maxsize=128)
def _pupil_to_field(reach: float, scale: float) -> Tensor:
    """Matrix of the Hankel transform of a pupil cut at the radius `scale`, from its values at `scale` times the pupil nodes."""
    field, _ = _field_nodes(reach)
    pupil, weight = _pupil_nodes(reach)
    kernel: Tensor = torch.special.bessel_j0(scale * pupil[:, None] * field) * (pupil * weight)[:, None] * scale**2
    return kernel.float()


@lru_cache(maxsize=128)
def _edge_wave(reach: float, condenser_ratio: float) -> Tensor:
    """Product of the fields that the rims of objective and condenser send out, in focus."""
    field, _ = _field_nodes(reach)
    product: Tensor = torch.special.bessel_j1(field) * torch.special.bessel_j1(condenser_ratio * field) * (condenser_ratio / field**2)
    return product.float()


def _field_to_transfer(reach: float, shift: Tensor) -> Tensor:
    """Matrix of the Hankel transform from the field's product to the transfer function at `shift`."""
    field, weight = _field_nodes(reach)
    kernel: Tensor = torch.special.bessel_j0(field[:, None] * shift.double()) * (field * weight)[:, None]
    return kernel.float()


@lru_cache(maxsize=32)
def _field_to_table(reach: float, nodes: int) -> Tensor:
    return _field_to_transfer(reach, table_radii(nodes))


@lru_cache(maxsize=32)
def _table_overlap(condenser_ratio: float, nodes: int) -> Tensor:
    return disc_overlap(table_radii(nodes), condenser_ratio)


def table_radii(nodes: int) -> Tensor:
    """Relative frequencies f lam / NA of the table: 2 u^2 for uniform u in [0, 1], dense where a defocused transfer function bends most."""
    return 2 * torch.linspace(0, 1, nodes, dtype=torch.float64) ** 2


def _phase_slope(optics: Optics, wavelength_um: float, defocus_um: float) -> float:
    """Upper bound of |d phase / d radius| over the pupil, in radians per pupil radius: the geometric blur disc's radius in units of v."""
    aperture, index = optics.numerical_aperture, optics.refractive_index
    tangent = aperture / index if optics.paraxial else aperture / math.sqrt(index**2 - aperture**2)
    return 2 * math.pi * (abs(defocus_um) * aperture / wavelength_um * tangent + 12 * abs(optics.spherical_waves))


def _reach(slope: float) -> float:
    """How far the field is followed: well beyond the geometric blur disc, rounded up so that few matrices are ever built."""
    wanted = _REACH_PER_SLOPE * slope + 64
    reach = 64.0 * 2 ** (math.ceil(2 * math.log2(wanted / 64)) / 2)
    if reach > _MAX_REACH:
        raise ValueError(
            f"the pupil phase turns by {slope:.0f} rad per radius, expected at most {_MAX_REACH / _REACH_PER_SLOPE - 64:.0f}; "
            "use a smaller |defocus_um|, a smaller numerical_aperture, or geometric optics"
        )
    return reach


def radial_transfer(defocus_um: Tensor, optics: Optics, wavelength_um: float, *, shift: Tensor | None = None, nodes: int = 512) -> Tensor:
    """Transfer function b n (float32) at relative frequencies `shift` = f lam / NA, or at `table_radii(nodes)`; 1 at zero frequency.

    It is Re TCC(f, 0) / TCC(0, 0), TCC(f, 0) = integral of S(q) P(q + f) conj P(q) over the condenser disc S: what a weakly absorbing
    object is imaged with. At condenser_ratio 1 it equals the incoherent OTF, the normalised autocorrelation of the pupil; it vanishes at
    shift >= 1 + condenser_ratio. Absolute error below 1e-3. Raises ValueError where the defocus is too strong to follow.
    Sources: Hopkins, Proc. R. Soc. A 217 (1953) 408-432 and 231 (1955) 91-103; Goodman, Introduction to Fourier Optics, ch. 6.
    """
    ratio = optics.condenser_ratio
    defocus = defocus_um.detach().cpu()
    reach = _reach(_phase_slope(optics, wavelength_um, defocus.abs().max().item()))
    nodes_of_pupil, _ = _pupil_nodes(reach)

    def field(scale: float) -> Tensor:
        phase = pupil_phase(scale * nodes_of_pupil, defocus, optics, wavelength_um)
        return torch.cat([phase.cos(), phase.sin()]).float() @ _pupil_to_field(reach, scale)

    whole = field(1.0)
    part = whole if ratio == 1 else field(ratio)
    spread = (whole * part).reshape(2, len(defocus), -1).sum(0)
    rim = pupil_phase(torch.tensor([ratio, 1.0]), defocus, optics, wavelength_um)
    coherence = (rim[:, 1] - rim[:, 0]).cos()[:, None]
    if shift is None:
        focus, matrix = _table_overlap(ratio, nodes), _field_to_table(reach, nodes)
    else:
        focus, matrix = disc_overlap(shift.cpu(), ratio), _field_to_transfer(reach, shift.cpu())
    rest = (spread - coherence.float() * _edge_wave(reach, ratio)) @ matrix * (2 / ratio**2)
    return torch.where(focus > 0, coherence * focus + rest, 0.0).float()
