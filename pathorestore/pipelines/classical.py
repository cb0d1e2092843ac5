"""The classical methods that a network must beat: an unsharp mask, and Wiener deconvolution that was told the exact optics."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.degradations.optical import Degraded
from pathorestore.degradations.slab import relative_transfer
from pathorestore.functional.color import linear_to_srgb, srgb_to_linear
from pathorestore.functional.optics import transfer, wiener

SIGMAS_PX = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0)
AMOUNTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
NOISE_TO_SIGNAL = tuple(10 ** (exponent / 4) for exponent in range(-20, 1))
_MARGIN_PX = 64


@dataclass(frozen=True, kw_only=True)
class UnsharpMask:
    """image + amount (image - blurred image), on sRGB values or in linear light."""

    sigma_px: float
    amount: float
    linear: bool

    def __call__(self, degraded: Tensor) -> Tensor:
        """Sharpen images b 3 h w in [0, 1]."""
        image = srgb_to_linear(degraded) if self.linear else degraded
        return self.sharpen(image, gaussian_blur(image, sigma_px=self.sigma_px))

    def sharpen(self, image: Tensor, blurred: Tensor) -> Tensor:
        """The same from an image in the mask's own scale and its blurred self, for who tries many amounts."""
        sharpened = torch.lerp(blurred, image, 1 + self.amount).clamp(0, 1)
        return linear_to_srgb(sharpened) if self.linear else sharpened

    def __str__(self) -> str:
        return f"sigma {self.sigma_px:g} px, amount {self.amount:g}, {'linear light' if self.linear else 'sRGB'}"


@dataclass(frozen=True, kw_only=True)
class KnownWiener:
    """Wiener deconvolution in linear light, with the very transfer function that the simulator used. from_scan: see `Setting`."""

    noise_to_signal: float
    from_scan: bool

    def __call__(self, pair: Degraded) -> Tensor:
        """Restore a simulated image."""
        return self.sharpen(pair, *self.prepare(pair))

    def prepare(self, pair: Degraded) -> tuple[Tensor, Tensor]:
        """The padded image in linear light and its transfer function."""
        height, width = pair.degraded.shape[-2:]
        rows, columns = min(_MARGIN_PX, height - 1), min(_MARGIN_PX, width - 1)
        light = srgb_to_linear(F.pad(pair.degraded, (columns, columns, rows, rows), mode="reflect"))
        respond = relative_transfer if self.from_scan else transfer
        return light, respond(pair.defocus_um, pair.parameters[0].optics, (light.shape[-2], light.shape[-1]))

    def sharpen(self, pair: Degraded, light: Tensor, response: Tensor) -> Tensor:
        """The same from what `prepare` gave, for who tries many ratios."""
        height, width = pair.degraded.shape[-2:]
        top, left = (light.shape[-2] - height) // 2, (light.shape[-1] - width) // 2
        sharpened = wiener(light, response, self.noise_to_signal)[..., top : top + height, left : left + width]
        return linear_to_srgb(sharpened.clamp(0, 1))

    def __str__(self) -> str:
        return f"noise-to-signal {self.noise_to_signal:.2g}"


def unsharp_tries(degraded: Tensor) -> Iterator[tuple[UnsharpMask, Tensor]]:
    """Every unsharp mask of the grid, the one that does nothing among them."""
    for linear in (False, True):
        image = srgb_to_linear(degraded) if linear else degraded
        for sigma in SIGMAS_PX:
            blurred = gaussian_blur(image, sigma_px=sigma)
            for amount in AMOUNTS:
                mask = UnsharpMask(sigma_px=sigma, amount=amount, linear=linear)
                yield mask, mask.sharpen(image, blurred)


def wiener_tries(pair: Degraded, *, from_scan: bool) -> Iterator[tuple[KnownWiener, Tensor]]:
    """Every noise-to-signal ratio of the grid."""
    prepared = KnownWiener(noise_to_signal=1.0, from_scan=from_scan).prepare(pair)
    for ratio in NOISE_TO_SIGNAL:
        method = KnownWiener(noise_to_signal=ratio, from_scan=from_scan)
        yield method, method.sharpen(pair, *prepared)
