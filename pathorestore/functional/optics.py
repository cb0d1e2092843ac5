"""Defocus in bright field: transfer functions, point spread functions and the CTF value, from the objective's own numbers.

Defocus is signed and in um; light is linear. A positive focal shift of a channel adds to its defocus.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pathorestore.functional.color import luminance, srgb_to_linear
from pathorestore.functional.pupil import Optics, pupil_phase, radial_transfer

__all__ = [
    "MeasuredCtf",
    "Optics",
    "PsfTable",
    "band_mtf",
    "blur",
    "ctf_value",
    "measured_ctf",
    "otf",
    "psf",
    "pupil_phase",
    "transfer",
    "wiener",
]

_NODES = 512
_USABLE_SHARE = 0.75


def frequency_grid(height_px: int, width_px: int, pixel_um: float) -> Tensor:
    """Radial frequency in cycles/um, h w//2+1, in the layout of `torch.fft.rfft2`."""
    rows = torch.fft.fftfreq(height_px, pixel_um)
    columns = torch.fft.rfftfreq(width_px, pixel_um)
    return torch.hypot(rows[:, None], columns)


def transfer(defocus_um: Tensor, optics: Optics, size_px: int | tuple[int, int]) -> Tensor:
    """Real transfer function b c h w//2+1 of a rotationally symmetric pupil, in the layout of `torch.fft.rfft2`; exactly 1 at [0, 0].

    size_px: side, or (height, width). The transfer function is evaluated at the frequencies of the pixel grid itself, so nothing aliases;
    what the objective passes beyond the camera's Nyquist frequency is dropped. See `pupil.radial_transfer` for the physics.
    """
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    grid = frequency_grid(height, width, optics.pixel_um).reshape(-1)
    channels = []
    for wavelength, shift_um in zip(optics.wavelengths_um, optics.focal_shift_um, strict=True):
        profile = radial_transfer(defocus_um + shift_um, optics, wavelength, nodes=_NODES)
        profile[:, 0] = 1  # the quadrature leaves out the light scattered farthest, which counts at zero frequency only
        position = (grid * (wavelength / optics.numerical_aperture / 2)).clamp(max=1).sqrt() * (_NODES - 1)
        lower = position.long().clamp(max=_NODES - 2)
        left = profile.index_select(1, lower)
        channels.append(torch.lerp(left, profile.index_select(1, lower + 1), (position - lower).expand_as(left)))
    return torch.stack(channels, 1).reshape(len(defocus_um), len(channels), height, width // 2 + 1).to(defocus_um.device)


def otf(defocus_um: Tensor, optics: Optics, size_px: int | tuple[int, int]) -> Tensor:
    """Complex optical transfer function b c h w//2+1, laid out as `torch.fft.rfft2` (DC at [0, 0]): `transfer` as complex numbers."""
    real = transfer(defocus_um, optics, size_px)
    return torch.complex(real, torch.zeros_like(real))


def psf(defocus_um: Tensor, optics: Optics, size_px: int) -> Tensor:
    """Point spread functions b c k k on the pixel grid, non-negative, each with sum 1; zero defocus gives the diffraction limit.

    size_px: odd side k. The kernel is the inverse transform of `otf` on a grid of twice the side, cropped; the faint negative ripple that
    the camera's Nyquist limit leaves is set to zero. Light that falls outside the kernel is redistributed by the normalisation.
    Raises ValueError if size_px is even.
    """
    if size_px % 2 == 0 or size_px < 1:
        raise ValueError(f"size_px={size_px} must be odd so that the kernel has a centre pixel; try {size_px + 1}")
    grid = 2 * size_px + 2
    kernel = torch.fft.irfft2(transfer(defocus_um, optics, grid), s=(grid, grid))
    half = size_px // 2
    kernel = kernel.roll((half, half), dims=(-2, -1))[..., :size_px, :size_px].clamp(min=0)
    total: Tensor = kernel.sum((-2, -1), keepdim=True)
    return kernel / total


class PsfTable:
    """Point spread functions from a table over signed defocus, linearly interpolated: for thousands of kernels of one objective."""

    def __init__(self, optics: Optics, size_px: int, max_defocus_um: float, nodes: int = 256) -> None:
        """Compute `nodes` kernels of odd side `size_px` between -max_defocus_um and max_defocus_um. Raises ValueError on an empty range."""
        if max_defocus_um <= 0 or nodes < 2:
            raise ValueError(f"max_defocus_um={max_defocus_um} must be positive and nodes={nodes} at least 2")
        self.optics, self.size_px, self.max_defocus_um = optics, size_px, max_defocus_um
        self.kernels = psf(torch.linspace(-max_defocus_um, max_defocus_um, nodes), optics, size_px)

    def __call__(self, defocus_um: Tensor) -> Tensor:
        """Kernels b c k k for defocus b in um, as `psf` gives them. Raises ValueError beyond the table's range."""
        if len(defocus_um) and defocus_um.abs().max().item() > self.max_defocus_um:
            raise ValueError(
                f"defocus of {defocus_um.abs().max().item():.3g} um lies outside the table; "
                f"make it with a larger max_defocus_um than {self.max_defocus_um}"
            )
        last = len(self.kernels) - 1
        position = (defocus_um / self.max_defocus_um + 1) * (last / 2)
        lower = position.long().clamp(0, last - 1)
        kernels = self.kernels.to(defocus_um.device)
        weight = (position - lower).to(kernels)[:, None, None, None]
        blend: Tensor = torch.lerp(kernels[lower], kernels[lower + 1], weight)
        return blend


def blur(image_linear: Tensor, transfer_function: Tensor) -> Tensor:
    """Circular convolution of an image b c h w in linear light with a transfer function b c h w//2+1; the caller pads and crops margins.

    Raises ValueError if the transfer function was made for another size.
    """
    height, width = image_linear.shape[-2:]
    if tuple(transfer_function.shape[-2:]) != (height, width // 2 + 1):
        raise ValueError(
            f"transfer function {tuple(transfer_function.shape)} does not fit an image of {height} x {width} px; "
            f"make it with size_px=({height}, {width})"
        )
    blurred: Tensor = torch.fft.irfft2(torch.fft.rfft2(image_linear) * transfer_function, s=(height, width))
    return blurred


def wiener(image_linear: Tensor, transfer_function: Tensor, noise_to_signal: float) -> Tensor:
    """Deblur an image b c h w in linear light whose transfer function H is known, by conj(H) / (|H|^2 + noise_to_signal).

    Scaled so that the gain at zero frequency is 1. Source: Gonzalez & Woods, Digital Image Processing, 4th ed., eq. 5-85.
    """
    inverse = transfer_function.conj() * (1 + noise_to_signal) / (transfer_function.abs() ** 2 + noise_to_signal)
    return blur(image_linear, inverse)


def band_mtf(defocus_um: Tensor, optics: Optics, wavelength_um: float = 0.55) -> Tensor:
    """Band-averaged relative MTF b, computed without a table: the mean over f of |OTF(f; z)| / |OTF(f; 0)|.

    f runs uniformly over [0.05, 0.5] min(cut-off, Nyquist). 1 at zero defocus whatever the aberration; axial colour is ignored.
    """
    cutoff = (1 + optics.condenser_ratio) * optics.numerical_aperture / wavelength_um
    band = torch.linspace(0.05, 0.5, 96, dtype=torch.float64) * min(cutoff, 0.5 / optics.pixel_um)
    defocus = torch.cat([torch.zeros(1), defocus_um.detach().cpu().float()])
    curve = radial_transfer(defocus, optics, wavelength_um, shift=band * wavelength_um / optics.numerical_aperture).double().abs()
    ratio = curve[1:] / curve[:1].clamp(min=1e-6)
    return (torch.trapezoid(ratio, dim=1) / (len(band) - 1)).float().to(defocus_um.device)


@lru_cache(maxsize=128)
def _ctf_table(optics: Optics, wavelength_um: float, reach_um: float, nodes: int) -> Tensor:
    return band_mtf(reach_um * torch.linspace(0, 1, nodes) ** 2, optics, wavelength_um)


def ctf_value(
    defocus_um: Tensor,
    numerical_aperture: float = 0.75,
    pixel_um: float = 0.25,
    wavelength_um: float = 0.55,
    *,
    refractive_index: float = 1.0,
    spherical_waves: float = 0.0,
    paraxial: bool = False,
    nodes: int = 256,
) -> Tensor:
    """The CTF value c(|z|) b in (0, 1]: band-averaged relative MTF of the objective at defocus b, in um; 1 in focus, falling with |z|.

    Read from a cached table of `nodes` entries by linear interpolation; `band_mtf` is the same without the table.
    """
    optics = Optics(
        numerical_aperture=numerical_aperture,
        pixel_um=pixel_um,
        wavelengths_um=(wavelength_um,),
        focal_shift_um=(0.0,),
        refractive_index=refractive_index,
        spherical_waves=spherical_waves,
        paraxial=paraxial,
    )
    distance = defocus_um.detach().abs().float()
    reach = 12.8
    while len(distance) and reach < distance.max().item():
        reach *= 2
    table = _ctf_table(optics, wavelength_um, reach, nodes).to(distance.device)
    node_um = reach * torch.linspace(0, 1, nodes, device=distance.device) ** 2
    lower = ((distance / reach).sqrt() * (nodes - 1)).long().clamp(max=nodes - 2)
    weight = (distance - node_um[lower]) / (node_um[lower + 1] - node_um[lower])
    return torch.lerp(table[lower], table[lower + 1], weight)


class MeasuredCtf(NamedTuple):
    """CTF values n of the planes of a stack, and whether each can be trusted (False on blank tiles)."""

    value: Tensor
    valid: Tensor


def _radial_power(image: Tensor, bins: int, optics: Optics) -> tuple[Tensor, Tensor]:
    """Radially averaged power spectrum n bins of the Hann-windowed linear luminance of n 3 h w, and the bins' frequencies in cycles/um."""
    light = luminance(srgb_to_linear(image))[:, 0]
    height, width = light.shape[-2:]
    window = torch.hann_window(height, device=light.device)[:, None] * torch.hann_window(width, device=light.device)
    mean = (light * window).sum((-2, -1), keepdim=True) / window.sum()
    power = torch.fft.rfft2((light - mean) * window).abs().double() ** 2
    frequency = frequency_grid(height, width, optics.pixel_um).to(light.device)
    nyquist = 0.5 / optics.pixel_um
    index = (frequency / nyquist * bins).long().reshape(-1)
    weight = (index < bins).double()
    index = index.clamp(max=bins - 1)
    count = torch.zeros(bins, dtype=torch.float64, device=light.device).index_add_(0, index, weight)
    total = torch.zeros(len(light), bins, dtype=torch.float64, device=light.device).index_add_(1, index, power.flatten(1) * weight)
    centre = (torch.arange(bins, device=light.device) + 0.5) / bins * nyquist
    return total / count.clamp(min=1), centre


def measured_ctf(planes: Tensor, reference: Tensor | None, optics: Optics) -> MeasuredCtf:
    """CTF values n of sRGB planes n 3 h w against the sharp reference 1 3 h w of the same field.

    Without a reference, the strongest plane at each frequency stands for it: the stack must hold the focus.

    The value is the mean over the band of `band_mtf` of sqrt((S_plane - N) / (S_reference - N)), S radially averaged power spectra of the
    Hann-windowed linear luminance, N each image's noise floor above 0.9 Nyquist; clipped to [0, 1]. Frequencies at which the reference
    holds more noise than detail are left out. Planes are marked invalid where these are more than a quarter of the band, or the reference
    holds less than four times its noise floor within the band: a blank tile has no contrast to lose.
    """
    bins = max(8, min(planes.shape[-2:]) // 2)
    power, frequency = _radial_power(planes, bins, optics)
    sharp = power.amax(dim=0, keepdim=True) if reference is None else _radial_power(reference, bins, optics)[0]
    nyquist = 0.5 / optics.pixel_um
    top = min((1 + optics.condenser_ratio) * optics.numerical_aperture / 0.55, nyquist)
    band = (frequency >= 0.05 * top) & (frequency <= 0.5 * top)
    floor_band = frequency > 0.9 * nyquist
    floor, sharp_floor = (spectrum[:, floor_band].mean(1, keepdim=True) for spectrum in (power, sharp))
    detail = (sharp - sharp_floor)[:, band]
    usable = detail >= sharp_floor
    ratio = (power - floor).clamp(min=0)[:, band] / detail.clamp(min=1e-12)
    value = (ratio.sqrt() * usable).sum(1) / usable.sum(1).clamp(min=1)
    valid = (sharp[:, band].mean(1) >= 4 * sharp_floor[:, 0].clamp(min=1e-12)) & (usable.double().mean(1) >= _USABLE_SHARE)
    return MeasuredCtf(value=value.clamp(0, 1).float(), valid=valid.expand(len(planes)))
