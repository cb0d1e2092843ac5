"""The generative stage: a coarse image, through the latents of an autoencoder, controls a diffusion that starts from noise.

DiffBIR (Lin et al., ECCV 2024), sec. 3.2. Large images are predicted tile by tile at every step, so that tiles grow together.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.diffusion.gaussian import GaussianDiffusion, NoisePredictor, SamplerName, check_sampler, sample
from pathorestore.diffusion.tiled import blended, stride
from pathorestore.functional.colour_fix import adain, density_change, wavelet
from pathorestore.functional.noise import NoiseField
from pathorestore.image import pad_to, round_up
from pathorestore.models.autoencoder import LatentAutoencoder
from pathorestore.models.controlled import ControlledUNet, ControlNet, LatentUNet
from pathorestore.models.prompted import Guidance
from pathorestore.pipelines.restorer import Progress, silent

_SEAM_PX = 32
_DETAIL_LEVELS = 3  # structure wider than about 8 px is the coarse image's
LARGEST_GUIDANCE = 30.0
Start = Literal["noise", "cond"]
Small = Literal["resize", "pad"]
Padding = Literal["reflect", "constant"]
Colours = Literal["wavelet", "adain", "density", "none"]
_COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wavelet": wavelet,
    "adain": adain,
    "none": lambda image, reference: image,
}


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How a generative stage works.

    process, sampler, steps: the chain, see `pathorestore.diffusion.gaussian.sample`. start: from noise alone, or from the noised
    condition, which is steadier and has a little less detail. tile_px: largest side that the diffusion sees at once. min_px: images with a
    shorter side become so large on the way, by `small`: "resize" enlarges them and goes back, "pad" lets them go on. padding: how images go
    on beyond their edges; "constant" is black, as published. colours: how the result gets those of the coarse image; "adain" does not fit
    parts; "density" draws into the coarse image what the diffusion changed of its density, so that what a small autoencoder loses is kept.
    guidance_scale: how far predictions go from those of the empty prompt towards, or beyond, those of the prompt (classifier-free guidance;
    Ho and Salimans, arXiv 2207.12598, eq. 6), for systems that take prompts; 1 asks for the prompt alone.
    """

    process: GaussianDiffusion = field(default_factory=GaussianDiffusion)
    sampler: SamplerName = "ddpm"
    steps: int = 50
    start: Start = "noise"
    tile_px: int = 512
    min_px: int = 512
    small: Small = "resize"
    padding: Padding = "reflect"
    colours: Colours = "wavelet"
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        check_sampler(self.sampler, self.process, self.steps)
        choices = {"start": Start, "small": Small, "padding": Padding, "colours": Colours}
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}; got {getattr(self, name)!r}")
        if self.tile_px < 1 or self.min_px < 1:
            raise ValueError(f"tile_px and min_px must be at least 1; got {self.tile_px} and {self.min_px}")
        if not 0 <= self.guidance_scale <= LARGEST_GUIDANCE:
            raise ValueError(f"guidance_scale={self.guidance_scale} must lie in 0..{LARGEST_GUIDANCE:g}; 1 is no guidance")

    def padded(self, image: Tensor, height_px: int, width_px: int) -> Tensor:
        """An image b c h w that goes on at its bottom and right to the given size."""
        if self.padding == "reflect":
            return pad_to(image, height_px, width_px)
        return F.pad(image, (0, width_px - image.shape[-1], 0, height_px - image.shape[-2]))

    def padded_to_multiple(self, image: Tensor, multiple: int) -> Tensor:
        """The same, to sides that are multiples."""
        return self.padded(image, round_up(image.shape[-2], multiple), round_up(image.shape[-1], multiple))


class ControlledSampler(nn.Module):
    """Coarse images b 3 h w of any size -> images of that size with detail, in their colours, unclamped. `denoiser` is what it learns.

    A control branch of twice as many channels sees the given image too, beside the coarse one. guidance: of the prompt, for U-Nets that
    take one; against: that of the empty prompt, for `guidance_scale`. Raises ValueError for parts that do not fit each other.
    """

    def __init__(
        self,
        autoencoder: LatentAutoencoder,
        unet: LatentUNet,
        control: ControlNet,
        settings: SamplingSettings,
        *,
        guidance: Guidance | None = None,
        against: Guidance | None = None,
    ):
        super().__init__()
        channels, seen = autoencoder.channels, control.config.condition_channels
        if channels != unet.config.channels or seen not in (channels, 2 * channels):
            told = f"{channels}, {unet.config.channels} and {seen}"
            raise ValueError(f"autoencoder, U-Net and condition must have as many channels of latents, the last or twice; got {told}")
        self.guidance, self.against = guidance, against
        self.autoencoder, self.denoiser = autoencoder, ControlledUNet(unet, control)
        self.settings = settings
        if settings.tile_px % (2 * self.multiple_px):
            raise ValueError(f"tile_px={settings.tile_px} must be a multiple of {2 * self.multiple_px} for these parts")

    def guided(self, guidance: Guidance, against: Guidance | None = None) -> "ControlledSampler":
        """The same parts under a prompt."""
        parts = (self.autoencoder, self.denoiser.unet, self.denoiser.control, self.settings)
        made = ControlledSampler(*parts, guidance=guidance, against=against)
        made.training = made.denoiser.training = self.training
        return made

    @property
    def sees_given(self) -> bool:
        """Whether the control branch sees the given image beside the coarse one."""
        return self.denoiser.control.config.condition_channels == 2 * self.autoencoder.channels

    @property
    def multiple_px(self) -> int:
        """Sides are padded to a multiple of this: whole cells of the coarsest level of the U-Net."""
        return self.autoencoder.factor * self.denoiser.unet.config.multiple

    @property
    def grid_px(self) -> int:
        """Tiles start at multiples of this."""
        return stride(self._tile) * self.autoencoder.factor

    def forward(self, coarse: Tensor, *, noise: NoiseField, given: Tensor | None = None, progress: Progress = silent) -> Tensor:
        """given: what the coarse images were made of, of their size. Raises ValueError where the control branch wants it in vain."""
        height, width = coarse.shape[-2:]
        seen = [coarse]
        if self.sees_given:
            if given is None:
                raise ValueError("this control branch sees the given image too; hand it in as given=")
            seen.append(given)
        # the chain keeps single precision where the networks run in half
        latents = [self._encoded(self.settings.padded_to_multiple(one, self.multiple_px)).float() for one in seen]
        made = self._decoded(self._sampled(latents[0], torch.cat(latents, dim=1), noise, progress))[..., :height, :width].float()
        if self.settings.colours == "density":
            unchanged = self._decoded(latents[0])[..., :height, :width].float()
            return density_change(coarse, unchanged, made, levels=_DETAIL_LEVELS)
        return _COLOURS[self.settings.colours](made, coarse)

    @property
    def _tile(self) -> int:
        """Side of a tile in latent cells."""
        return self.settings.tile_px // self.autoencoder.factor

    @property
    def _seam(self) -> int:
        """How far tiles of the autoencoder overlap, in latent cells: it looks less far than the diffusion, and takes longer."""
        return -(-_SEAM_PX // self.autoencoder.factor)

    def _sampled(self, coarse: Tensor, condition: Tensor, field: NoiseField, progress: Progress) -> Tensor:
        settings, process = self.settings, self.settings.process

        def noise(step: int) -> Tensor:
            return self.autoencoder.noise(field, step, coarse)

        start = noise(process.steps)
        if settings.start == "cond":
            start = process.noised(coarse, torch.full((len(coarse),), process.steps - 1), start)
        predict = self._predictor(condition)
        return sample(predict, process, start, noise, sampler=settings.sampler, steps=settings.steps, progress=progress)

    def _predictor(self, condition: Tensor) -> NoisePredictor:
        def predict(state: Tensor, t: int) -> Tensor:
            steps = torch.full((len(state),), t, device=state.device)

            def tile(rows: slice, columns: slice) -> Tensor:
                return self._predicted(state[..., rows, columns], steps, condition[..., rows, columns])

            predicted = blended(tile, (state.shape[-2], state.shape[-1]), self._tile)
            return self.settings.process.noise_in(state, predicted, t)

        return predict

    def _predicted(self, state: Tensor, steps: Tensor, condition: Tensor) -> Tensor:
        def told(guidance: Guidance | None) -> Tensor:
            # told once, before the parts may have gone to another device
            said = {} if guidance is None else guidance._asdict()
            words = {name: value.to(state.device).expand(len(state), *value.shape[1:]) for name, value in said.items()}
            predicted: Tensor = self.denoiser(state, steps, condition, **words)
            return predicted

        if self.against is None or self.settings.guidance_scale == 1:
            return told(self.guidance)
        plain = told(self.against)
        return plain + self.settings.guidance_scale * (told(self.guidance) - plain)

    def _encoded(self, image: Tensor) -> Tensor:
        factor = self.autoencoder.factor

        def tile(rows: slice, columns: slice) -> Tensor:
            return self.autoencoder.encode(image[..., _times(rows, factor), _times(columns, factor)])

        return blended(tile, (image.shape[-2] // factor, image.shape[-1] // factor), self._tile, overlap=self._seam)

    def _decoded(self, latent: Tensor) -> Tensor:
        def tile(rows: slice, columns: slice) -> Tensor:
            return self.autoencoder.decode(latent[..., rows, columns])

        return blended(tile, (latent.shape[-2], latent.shape[-1]), self._tile, overlap=self._seam)


def _times(cut: slice, factor: int) -> slice:
    return slice(cut.start * factor, cut.stop * factor)
