"""The autoencoder of latent diffusion: images to latents with a variance, and back.

Rombach et al., High-resolution image synthesis with latent diffusion models, CVPR 2022, sec. 3.1. The network is
AutoencoderKL of diffusers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pathorestore._diffusers import load_diffusers
from pathorestore.functional.noise import NoiseField
from pathorestore.hub import Pretrained
from pathorestore.models.latent import cell_noise


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of a `LatentAutoencoder`.

    widths: channels of each level, of half the side each. layers: residual blocks of a level. channels: of a latent. groups: of the
    normalisation. attention: in the middle. scaling: latents are multiplied by this, so that their variance is about one.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    channels: int = 4
    groups: int = 32
    attention: bool = True
    scaling: float = 0.18215

    def __post_init__(self) -> None:
        if not self.widths or min(*self.widths, self.layers, self.channels, self.groups) < 1 or self.scaling <= 0:
            raise ValueError(f"widths, layers, channels and groups must be at least 1 and scaling positive; got {self}")
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"groups={self.groups} must divide every width of {self.widths}")

    @property
    def factor(self) -> int:
        """Side of an image / side of its latent."""
        return int(2 ** (len(self.widths) - 1))

    @classmethod
    def paper(cls) -> "AutoencoderConfig":
        """That of Stable Diffusion 2.1-base; factor 8, 83,653,863 parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> "AutoencoderConfig":
        """Factor 4, 1.63 M parameters; to be trained from scratch, then scaled by `LatentAutoencoder.calibrate`.

        Of 8 channels, since an autoencoder so small brings back too little from 4.
        """
        return cls(widths=(32, 64, 96), layers=1, channels=8, attention=False, scaling=1.0)

    @classmethod
    def base(cls) -> "AutoencoderConfig":
        """Factor 4, 8.53 M parameters; to be trained from scratch too."""
        return cls(widths=(64, 128, 192), layers=2, channels=8, attention=False, scaling=1.0)

    @classmethod
    def nano(cls) -> "AutoencoderConfig":
        """Factor 4, for tests."""
        return cls(widths=(8, 8, 16), layers=1, groups=4, attention=False, scaling=1.0)


class Posterior(NamedTuple):
    """What the encoder says of latents b channels h w, before scaling."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Latents drawn by standard normal noise of their shape."""
        return self.mean + (self.log_variance / 2).exp() * noise

    def divergence(self) -> Tensor:
        """Kullback-Leibler divergence of every value from the standard normal distribution (Kingma and Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance)


class LatentAutoencoder(nn.Module, Pretrained):
    """Images b 3 h w in [0, 1] with sides that are multiples of `factor` <-> latents b channels h/factor w/factor; a `WorkingSpace`."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.channels, self.factor, self.bounded = config.channels, config.factor, False
        levels = len(config.widths)
        self.model = load_diffusers().AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.widths,
            layers_per_block=config.layers,
            latent_channels=config.channels,
            norm_num_groups=config.groups,
            mid_block_add_attention=config.attention,
            scaling_factor=config.scaling,
        )

    def posterior(self, image: Tensor) -> Posterior:
        """The distribution of the latents of images in [0, 1], before scaling: what a loss on it needs."""
        found = self.model.encode(2 * image - 1).latent_dist
        return Posterior(found.mean, found.logvar)

    def encode(self, image: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Scaled latents of images in [0, 1]: the mean, which is the mode, or a sample by standard normal noise of a latent's shape."""
        posterior = self.posterior(image)
        return self.config.scaling * (posterior.mean if noise is None else posterior.sample(noise))

    def decode(self, state: Tensor) -> Tensor:
        """Scaled latents -> images, unclamped."""
        decoded: Tensor = self.model.decode(state / self.config.scaling).sample
        return (decoded + 1) / 2

    def noise(self, field: NoiseField, step: int, like: Tensor) -> Tensor:
        """Noise per latent cell; the field's origins lie at multiples of `factor`."""
        return cell_noise(field, step, like, factor=self.factor)

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> float:
        """Set the scaling to one over the standard deviation of the latents of batches of images, and return it.

        Raises ValueError where there are none or all latents are the same.
        """
        count, total, squares = 0, 0.0, 0.0
        for batch in images:
            mean = self.posterior(batch).mean.double()
            count, total, squares = count + mean.numel(), total + float(mean.sum()), squares + float(mean.square().sum())
        variance = squares / count - (total / count) ** 2 if count else 0.0
        if not variance > 0:
            raise ValueError(f"the scaling is measured on latents that differ; got {count} values of variance {variance:g}")
        self.config = replace(self.config, scaling=variance**-0.5)
        return self.config.scaling
