"""Working spaces of the fine stage: where the diffusion happens.

A space maps images [0, 1] to states and back and knows how noise that is keyed by image coordinates falls on its grid.
"""

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.functional.noise import NoiseField

SpaceName = Literal["pixel", "unshuffle", "latent"]


class WorkingSpace(Protocol):
    """channels of a state; factor: image side / state side; bounded: whether states stay in [-1, 1]."""

    channels: int
    factor: int
    bounded: bool

    def encode(self, image: Tensor) -> Tensor:
        """Images b 3 h w in [0, 1] -> states b channels h/factor w/factor."""
        ...

    def decode(self, state: Tensor) -> Tensor:
        """States -> images, unclamped."""
        ...

    def noise(self, field: NoiseField, step: int, like: Tensor) -> Tensor:
        """Standard normal noise of the shape and device of a state."""
        ...


class UnshuffleSpace:
    """Pixel unshuffle by `factor` (1: pixel space): a permutation, so nothing is lost and independent noise stays independent."""

    def __init__(self, factor: int = 4):
        if factor < 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self.factor, self.channels, self.bounded = factor, 3 * factor**2, True

    def encode(self, image: Tensor) -> Tensor:
        """Images b 3 h w in [0, 1] -> states in [-1, 1]."""
        return F.pixel_unshuffle(2 * image - 1, self.factor)

    def decode(self, state: Tensor) -> Tensor:
        """States -> images, unclamped."""
        return (F.pixel_shuffle(state, self.factor) + 1) / 2

    def noise(self, field: NoiseField, step: int, like: Tensor) -> Tensor:
        """Noise drawn per image pixel, then unshuffled, so that tiles may start at any pixel."""
        height, width = (side * self.factor for side in like.shape[-2:])
        pixels = field.draw(step, channels=3, height_px=height, width_px=width, device=like.device)
        return F.pixel_unshuffle(pixels, self.factor).to(like.dtype)


class AutoencoderSpace(nn.Module):
    """The latent space of an autoencoder with `encode(image in [-1, 1])` and `decode(latent)`, used frozen.

    Noise is drawn per latent cell: tiles must start at multiples of the factor for overlapping tiles to share it.
    """

    def __init__(self, autoencoder: nn.Module, *, channels: int, factor: int):
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.channels, self.factor, self.bounded = channels, factor, False

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Images b 3 h w in [0, 1] -> latents."""
        latent: Tensor = self.autoencoder.encode(2 * image - 1)  # type: ignore[operator]
        return latent

    def decode(self, state: Tensor) -> Tensor:
        """Latents -> images, unclamped."""
        decoded: Tensor = self.autoencoder.decode(state)  # type: ignore[operator]
        return (decoded + 1) / 2

    def noise(self, field: NoiseField, step: int, like: Tensor) -> Tensor:
        """Noise per latent cell."""
        return cell_noise(field, step, like, factor=self.factor)


def cell_noise(field: NoiseField, step: int, like: Tensor, *, factor: int) -> Tensor:
    """Noise of the shape of a state, drawn per cell of `factor` px; the field's origins lie at multiples of it."""
    channels, height, width = like.shape[1:]
    cells = NoiseField(field.seed, tuple((y // factor, x // factor) for y, x in field.origins_px))
    return cells.draw(step, channels=channels, height_px=height, width_px=width, device=like.device).to(like.dtype)
