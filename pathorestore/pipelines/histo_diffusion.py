"""Histo-Diffusion: image -> restoration module -> controlled latent diffusion, at any size.

Xu, Kapse and Prasanna, Histo-Diffusion: a diffusion super-resolution method for digital pathology, arXiv 2408.15218; what it leaves unsaid
follows DiffBIR (Lin et al., ECCV 2024), which it adapts.
"""

import math
import os
from dataclasses import dataclass
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from pathorestore.degradations.resize import resized
from pathorestore.functional.noise import NoiseField
from pathorestore.hub import ModelCard, Pretrained, load_parts, load_settings, locate, model_name, save_parts, weights_sha256
from pathorestore.image import check_image
from pathorestore.models.autoencoder import AutoencoderConfig, LatentAutoencoder
from pathorestore.models.controlled import ControlNet, LatentUNet, LatentUNetConfig
from pathorestore.models.stable_diffusion import load_stable_diffusion
from pathorestore.models.swinir import SwinIR, SwinIRConfig
from pathorestore.nn.implicit import Lattice, bicubic_on
from pathorestore.pipelines.batch import BadResult
from pathorestore.pipelines.controlled import ControlledSampler, SamplingSettings
from pathorestore.pipelines.enlarge import Size, target_size
from pathorestore.pipelines.restorer import Progress, silent

_SYSTEM = "HistoDiffusion"
_LONGEST_PX = 4096
_PARTS: dict[str, type[Pretrained]] = {
    "restoration": SwinIR,
    "autoencoder": LatentAutoencoder,
    "unet": LatentUNet,
    "control": ControlNet,
}


@dataclass(frozen=True, kw_only=True)
class HistoDiffusionConfig:
    """Sizes of a `HistoDiffusion` and how it works; its control branch is of the U-Net's size."""

    restoration: SwinIRConfig
    autoencoder: AutoencoderConfig
    unet: LatentUNetConfig
    settings: SamplingSettings

    @classmethod
    def paper(cls) -> "HistoDiffusionConfig":
        """The sizes of the paper: those of Stable Diffusion 2.1-base, and the restoration module of DiffBIR."""
        restoration, settings = SwinIRConfig.restoration(), SamplingSettings()
        return cls(restoration=restoration, autoencoder=AutoencoderConfig.paper(), unet=LatentUNetConfig.paper(), settings=settings)

    @classmethod
    def tiny(cls) -> "HistoDiffusionConfig":
        """5.2 M parameters, for laptops."""
        restoration, settings = SwinIRConfig.tiny_restoration(), SamplingSettings(tile_px=128, min_px=64)
        return cls(restoration=restoration, autoencoder=AutoencoderConfig.tiny(), unet=LatentUNetConfig.tiny(), settings=settings)

    @classmethod
    def base(cls) -> "HistoDiffusionConfig":
        """57 M parameters, for one GPU."""
        restoration, settings = SwinIRConfig.base_restoration(), SamplingSettings(tile_px=256, min_px=128)
        return cls(restoration=restoration, autoencoder=AutoencoderConfig.base(), unet=LatentUNetConfig.base(), settings=settings)

    @classmethod
    def nano(cls) -> "HistoDiffusionConfig":
        """For tests."""
        restoration = SwinIRConfig(
            embed=12, blocks=(2,), heads=2, window=2, features=8, unshuffle=4, upsampler="nearest+conv", drop_path=0.0, std=1.0
        )
        settings = SamplingSettings(steps=3, tile_px=32, min_px=16)
        return cls(restoration=restoration, autoencoder=AutoencoderConfig.nano(), unet=LatentUNetConfig.nano(), settings=settings)


class HistoDiffusion(nn.Module):
    """Enlarges images by any factor, or restores them at their size.

    restoration: the coarse stage, a `SwinIR` or what has its `config` too; nn.Identity() leaves it out, as the paper's ablation does.
    `upscale` takes whole images; `region` a part of one that is enlarged already. What the diffusion learns is `sampler.denoiser`, on
    latents of `sampler.autoencoder`.
    """

    def __init__(
        self,
        restoration: nn.Module,
        sampler: ControlledSampler,
        *,
        model_id: str = "custom",
        weights_hash: str = "none",
    ):
        super().__init__()
        self.restoration, self.sampler = restoration, sampler
        self.model_id, self.weights_sha256 = model_id, weights_hash

    @classmethod
    def of(cls, config: HistoDiffusionConfig) -> Self:
        """A system with initial weights, whose control branch starts as a copy of the U-Net."""
        unet = LatentUNet(config.unet)
        sampler = ControlledSampler(LatentAutoencoder(config.autoencoder), unet, ControlNet.from_unet(unet), config.settings)
        return cls(SwinIR(config.restoration), sampler)

    @classmethod
    def from_stable_diffusion(
        cls,
        folder: str | os.PathLike[str],
        *,
        restoration: SwinIR | None = None,
        control: ControlNet | None = None,
        null_context: Tensor | None = None,
        settings: SamplingSettings | None = None,
    ) -> Self:
        """A system on Stable Diffusion 2.1-base in a local folder (licence CreativeML Open RAIL++-M), see `load_stable_diffusion`.

        restoration, control: trained parts; without them it is the start of a training, with the paper's restoration module at its initial
        weights and a branch that adds nothing.
        """
        parts = load_stable_diffusion(folder, null_context=null_context)
        control = control or ControlNet.from_unet(parts.unet)
        sampler = ControlledSampler(parts.autoencoder, parts.unet, control, settings or SamplingSettings())
        return cls(restoration or SwinIR(SwinIRConfig.restoration()), sampler).eval()

    def with_settings(self, settings: SamplingSettings) -> "HistoDiffusion":
        """The same parts, working otherwise."""
        denoiser = self.sampler.denoiser
        words = {"guidance": self.sampler.guidance, "against": self.sampler.against}
        sampler = ControlledSampler(self.sampler.autoencoder, denoiser.unet, denoiser.control, settings, **words)
        sampler.train(self.training)
        return HistoDiffusion(self.restoration, sampler, model_id=self.model_id, weights_hash=self.weights_sha256).train(self.training)

    @property
    def settings(self) -> SamplingSettings:
        """How it works."""
        return self.sampler.settings

    @property
    def grid_px(self) -> int:
        """Parts of an image start at multiples of this, and end there or with the image: on tiles, and on windows of the coarse stage."""
        return math.lcm(self.sampler.grid_px, self._multiple_px)

    @torch.no_grad()
    def upscale(
        self,
        image: Tensor,
        *,
        scale: float | None = None,
        out_size: Size | None = None,
        seed: int = 0,
        progress: Progress = silent,
    ) -> Tensor:
        """Images b 3 h w in [0, 1], made `scale` times as large (rounded) or of `out_size` (height, width); clamped.

        Each image is as it would be alone. progress: steps of the sampler. Raises ValueError for anything but one of scale and out_size,
        for sizes below 1 px, and beyond 16 times; BadResult for values that are not finite.
        """
        working = self._enlarged(image, scale=scale, out_size=out_size)
        large, total = [], len(image) * self.settings.steps
        # one by one: kernels choose their order of summation by the size of a batch
        for index in range(len(image)):

            def step(done: int, steps: int, *, before: int = index) -> None:
                progress(before * steps + done, total)

            large.append(working.back(_finite(self.region(working.image[index : index + 1], seed=seed, progress=step))))
        return torch.cat(large)

    @torch.no_grad()
    def coarse(self, image: Tensor, *, scale: float | None = None, out_size: Size | None = None) -> Tensor:
        """What the restoration module alone makes of images; sizes and errors as for `upscale`."""
        working = self._enlarged(image, scale=scale, out_size=out_size)
        return torch.cat([working.back(_finite(self.coarse_region(one[None]))) for one in working.image])

    @torch.no_grad()
    def region(self, part: Tensor, *, origin_px: tuple[int, int] = (0, 0), seed: int = 0, progress: Progress = silent) -> Tensor:
        """Restore a part 1 3 h w, in [0, 1], of an image that has its final size already; clamped, NaN where it is not finite.

        origin_px: (y, x) of its corner in the image, multiples of `grid_px`; so must be its sides, unless it ends with the image. Noise and
        tiles are those of the whole image; far enough from the edges of a part the result is, too. Raises ValueError for an origin off the
        grid.
        """
        if any(place % self.grid_px for place in origin_px):
            raise ValueError(f"origin_px={origin_px} must be multiples of {self.grid_px}, where tiles and noise of the whole image lie")
        return _clamped(self.sampler(self._coarse(part), noise=NoiseField(seed, (origin_px,)), given=part, progress=progress))

    @torch.no_grad()
    def coarse_region(self, part: Tensor) -> Tensor:
        """What the restoration module alone makes of a part; clamped, NaN where it is not finite."""
        return _clamped(self._coarse(part))

    def save_pretrained(self, folder: str | os.PathLike[str], *, card: ModelCard | None = None, dtype: torch.dtype | None = None) -> None:
        """Write one sub-folder per part, and the settings. dtype: storage type of the weights, such as torch.float16.

        Raises ValueError for a coarse stage that is not its own, as under a prompt.
        """
        if not isinstance(self.restoration, SwinIR | nn.Identity):
            raise ValueError(f"a {type(self.restoration).__name__} is no part of a {_SYSTEM}; save the system that it belongs to")
        denoiser = self.sampler.denoiser
        parts: dict[str, Pretrained] = {"autoencoder": self.sampler.autoencoder, "unet": denoiser.unet, "control": denoiser.control}
        if isinstance(self.restoration, SwinIR):
            parts["restoration"] = self.restoration
        save_parts(folder, parts, system=_SYSTEM, settings=self.settings, card=card, dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder_or_repo_id: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Load from a folder written by `save_pretrained`, or from a hub repository at a pinned revision; in evaluation mode."""
        folder = locate(folder_or_repo_id, revision=revision)
        parts = load_parts(folder, _PARTS, system=_SYSTEM)
        settings = load_settings(folder, SamplingSettings, system=_SYSTEM)
        sampler = ControlledSampler(parts["autoencoder"], parts["unet"], parts["control"], settings)
        model_id = model_name(folder_or_repo_id)
        return cls(parts.get("restoration", nn.Identity()), sampler, model_id=model_id, weights_hash=weights_sha256(folder)).eval()

    @property
    def _multiple_px(self) -> int:
        """Sides are padded to a multiple of this for the coarse stage."""
        return 1 if isinstance(self.restoration, nn.Identity) else int(cast(SwinIRConfig, self.restoration.config).multiple)

    def _coarse(self, part: Tensor) -> Tensor:
        """The coarse image, unclamped."""
        restored: Tensor = self.restoration(self.settings.padded_to_multiple(part, self._multiple_px))
        return restored[..., : part.shape[-2], : part.shape[-1]].float()

    def _enlarged(self, image: Tensor, *, scale: float | None, out_size: Size | None) -> "_Working":
        """Images at the size they are worked on, no side below `min_px`."""
        check_image(image)
        height, width = wanted = target_size((image.shape[-2], image.shape[-1]), scale=scale, out_size=out_size)
        least, enlarged = self.settings.min_px, _interpolated(image.float(), wanted)
        times = max(1.0, least / min(wanted))
        # resized to the least side, the long one of a thin image would grow beyond all measure
        if self.settings.small == "pad" or (times > 1 and times * max(wanted) > _LONGEST_PX):
            return _Working(self.settings.padded(enlarged, max(height, least), max(width, least)), wanted, True)
        return _Working(resized(enlarged, (round(height * times), round(width * times))), wanted, False)


class _Working(NamedTuple):
    """Images at the size they are worked on. wanted: the size they are to have. padded: whether they just go on beyond it."""

    image: Tensor
    wanted: Size
    padded: bool

    def back(self, large: Tensor) -> Tensor:
        """What was made of them, at the wanted size."""
        return large[..., : self.wanted[0], : self.wanted[1]] if self.padded else resized(large, self.wanted)


def _interpolated(image: Tensor, size: Size) -> Tensor:
    """As pieces of large images are, where nothing shrinks."""
    if size[0] < image.shape[-2] or size[1] < image.shape[-1]:
        return resized(image, size)
    return bicubic_on(image, Lattice.of(size)).clamp(0, 1)


def _clamped(made: Tensor) -> Tensor:
    """Within [0, 1], and NaN for what is infinite, which else would pass for white or black."""
    return torch.where(made.isfinite(), made.clamp(0, 1), made.new_tensor(float("nan")))


def _finite(made: Tensor) -> Tensor:
    if not bool(made.isfinite().all()):
        raise BadResult("the model gave values that are not finite; its weights or settings are broken")
    return made
