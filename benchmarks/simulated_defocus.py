"""Simulated defocus as a measuring bench: image pairs, the classical methods at their best, and rows of results."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.degradations.optical import Degraded, degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.degradations.slab import relative_transfer
from pathorestore.functional.color import linear_to_srgb, srgb_to_linear
from pathorestore.functional.optics import transfer, wiener
from pathorestore.metrics.fidelity import psnr, ssim
from pathorestore.metrics.nuclei import CachedSegmenter, NucleiSegmenter, Watershed, nuclei_difference

DEGRADED, UNSHARP, WIENER = "degraded", "unsharp mask", "Wiener, PSF known"
Z_UM = (0.8, 1.6, 2.4, 3.2)
SIGMAS_PX = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0)
AMOUNTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
NOISE_TO_SIGNAL = tuple(10 ** (exponent / 4) for exponent in range(-20, 1))
_MARGIN_PX = 64

Method = Callable[[Degraded], Tensor]


class Fields(Protocol):
    """Names and sharp images 1 3 h w, which can be gone through again and again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is simulated. setting: of the simulator. seed: of its noise, each image and distance having a stream of its own."""

    setting: Setting
    z_um: tuple[float, ...] = Z_UM
    seed: int = 0

    def pairs(self, fields: Fields, *, note: str = "") -> Iterator[tuple[str, float, Degraded]]:
        """Each image at each distance."""
        bar = tqdm(total=len(fields) * len(self.z_um), desc=note, disable=not note)
        for index, (name, sharp) in enumerate(fields):
            for z_um in self.z_um:
                yield name, z_um, degrade(sharp, torch.tensor([z_um]), setting=self.setting, generator=self._generator(index, z_um))
                bar.update()
        bar.close()

    def _generator(self, index: int, z_um: float) -> torch.Generator:
        # hashed, because torch's CPU generator takes only the low 32 bits of its seed
        key = hashlib.sha256(f"{self.seed} {index} {z_um:.6f}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:4], "big"))


# --- the methods beside ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class UnsharpMask:
    """image + amount (image - blurred image), on sRGB values or in linear light."""

    sigma_px: float
    amount: float
    linear: bool

    def __call__(self, pair: Degraded) -> Tensor:
        image = srgb_to_linear(pair.degraded) if self.linear else pair.degraded
        return self.sharpen(image, gaussian_blur(image, sigma_px=self.sigma_px))

    def sharpen(self, image: Tensor, blurred: Tensor) -> Tensor:
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
        return self.sharpen(pair, *self.prepare(pair))

    def prepare(self, pair: Degraded) -> tuple[Tensor, Tensor]:
        """The padded image in linear light and its transfer function."""
        height, width = pair.degraded.shape[-2:]
        rows, columns = min(_MARGIN_PX, height - 1), min(_MARGIN_PX, width - 1)
        light = srgb_to_linear(F.pad(pair.degraded, (columns, columns, rows, rows), mode="reflect"))
        respond = relative_transfer if self.from_scan else transfer
        return light, respond(pair.defocus_um, pair.parameters[0].optics, (light.shape[-2], light.shape[-1]))

    def sharpen(self, pair: Degraded, light: Tensor, response: Tensor) -> Tensor:
        height, width = pair.degraded.shape[-2:]
        top, left = (light.shape[-2] - height) // 2, (light.shape[-1] - width) // 2
        sharpened = wiener(light, response, self.noise_to_signal)[..., top : top + height, left : left + width]
        return linear_to_srgb(sharpened.clamp(0, 1))

    def __str__(self) -> str:
        return f"noise-to-signal {self.noise_to_signal:.2g}"


def unsharp_tries(pair: Degraded) -> Iterator[tuple[UnsharpMask, Tensor]]:
    """Every unsharp mask of the grid, the one that does nothing among them."""
    for linear in (False, True):
        image = srgb_to_linear(pair.degraded) if linear else pair.degraded
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


def tune(study: Study, fields: Fields, *, note: str = "") -> dict[float, dict[str, UnsharpMask | KnownWiener]]:
    """For each distance, the unsharp mask and the Wiener filter with the highest mean PSNR over the images."""
    totals: dict[tuple[float, str], dict[Any, float]] = defaultdict(lambda: defaultdict(float))
    for _, z_um, pair in study.pairs(fields, note=note):
        families = {UNSHARP: unsharp_tries(pair), WIENER: wiener_tries(pair, from_scan=study.setting.from_scan)}
        for family, tries in families.items():
            for method, image in tries:
                totals[z_um, family][method] += psnr(image, pair.clean).item()
    return {z_um: {name: max(totals[z_um, name], key=totals[z_um, name].__getitem__) for name in (UNSHARP, WIENER)} for z_um in study.z_um}


# --- measuring ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image, restored by one method. nuclei: how many the differences (see `nuclei_difference`) are a mean of; NaN without any."""

    image: str
    z_um: float
    method: str
    psnr_db: float
    ssim: float
    nuclei: int
    l1_intensity: float
    l1_texture: float
    intensity: tuple[float, ...]
    texture: tuple[float, ...]


def measure(
    study: Study, fields: Fields, tuned: Mapping[float, Mapping[str, Any]], restorers: Mapping[str, Method], *, note: str = ""
) -> list[Row]:
    """A row for each image, distance and method."""
    segmenter = CachedSegmenter(Watershed(), size=2)
    rows = []
    for name, z_um, pair in study.pairs(fields, note=note):
        methods: dict[str, Method] = {DEGRADED: lambda pair: pair.degraded, **tuned[z_um], **restorers}
        rows += [_row(name, z_um, label, method(pair), pair, segmenter) for label, method in methods.items()]
    return rows


def _row(name: str, z_um: float, method: str, restored: Tensor, pair: Degraded, segmenter: NucleiSegmenter) -> Row:
    nuclei = nuclei_difference(restored, pair.clean, segmenter=segmenter)
    return Row(
        image=name,
        z_um=z_um,
        method=method,
        psnr_db=psnr(restored, pair.clean).item(),
        ssim=ssim(restored, pair.clean).item(),
        nuclei=int(nuclei.nuclei),
        l1_intensity=nuclei.l1_intensity.item(),
        l1_texture=nuclei.l1_texture.item(),
        intensity=tuple(nuclei.intensity[0].tolist()),
        texture=tuple(nuclei.texture[0].tolist()),
    )
