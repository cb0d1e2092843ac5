"""LIIF and LTE: the decoders that ISTE's is compared with, in the same place and with the same calls."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.hub import Pretrained
from pathorestore.models.iste import Search
from pathorestore.nn.implicit import Corner, Lattice, Skip, check_skip, ensemble, gather, mlp


class LocalEnsemble(nn.Module, ABC):
    """Colours at any coordinates as the weighed sum of what the four cells around them say; colours are on the scale [0, 1], unclamped.

    Subclasses make `maps` of the features and `say` what a corner's cells mean. skip: the interpolated image that is added.
    """

    def __init__(self, *, skip: Skip):
        super().__init__()
        self.skip = skip

    @abstractmethod
    def maps(self, features: Tensor) -> Tensor:
        """What is read off the features b c h w, b m h w."""

    @abstractmethod
    def say(self, cells: Tensor, corner: Corner, size: Tensor) -> Tensor:
        """Centred colours n 3 from the maps of the cells n m; size: of an output pixel in half cells, n 2."""

    def forward(self, features: Tensor, image: Tensor, coordinates: Tensor, footprint: Tensor) -> Tensor:
        """Colours b n 3 at coordinates b n 2 of images b 3 h w; footprint b 2: of an output pixel in pixels of the image."""
        each = zip(self.maps(features), image, coordinates, footprint, strict=True)
        return torch.stack([self._decoded(maps[None], source[None], places, size) for maps, source, places, size in each])

    @torch.no_grad()
    def render(self, features: Tensor, image: Tensor, lattice: Lattice, footprint: Tensor, *, search: Search | None = None) -> Tensor:
        """The pixels b 3 of a lattice, so many points at a time as search says."""
        places, step = lattice.places().to(image.device), (search or Search()).query_chunk
        images = []
        for own, source in zip(features, image, strict=True):
            maps = self.maps(own[None])
            parts = [self._decoded(maps, source[None], places[start : start + step], footprint) for start in range(0, len(places), step)]
            images.append(torch.cat(parts).T.reshape(3, *lattice.size))
        return torch.stack(images)

    def _decoded(self, maps: Tensor, image: Tensor, places: Tensor, footprint: Tensor) -> Tensor:
        size = (2 * footprint).float().expand(len(places), 2)

        def say(_: int, corner: Corner) -> Tensor:
            return self.say(gather(maps, corner.cell)[0], corner, size)

        return ensemble(places, image, say, skip=self.skip)


@dataclass(frozen=True, kw_only=True)
class ImplicitDecoderConfig:
    """Sizes of a `LIIFDecoder` or `LTEDecoder`.

    features: of the encoder; hidden: of the MLP; texture: coefficients of LTE, an even number; skip: the interpolated image that is added.
    """

    features: int = 64
    hidden: tuple[int, ...] = (256, 256, 256, 256)
    texture: int = 256
    skip: Skip = "none"

    def __post_init__(self) -> None:
        if min(self.features, self.texture, *self.hidden) < 1 or self.texture % 2:
            raise ValueError(f"sizes must be at least 1 and texture even; got {self}")
        check_skip(self.skip)

    @classmethod
    def tiny(cls) -> "ImplicitDecoderConfig":
        """Of the size of `TextureDecoderConfig.tiny()`, about."""
        return cls(features=32, hidden=(168, 168, 168), texture=64, skip="bicubic")

    @classmethod
    def base(cls) -> "ImplicitDecoderConfig":
        """Of the size of `TextureDecoderConfig.base()`, about."""
        return cls(hidden=(352, 352, 352), texture=128, skip="bicubic")

    @classmethod
    def paper(cls) -> "ImplicitDecoderConfig":
        """The sizes of both papers' code."""
        return cls()


class LIIFDecoder(LocalEnsemble, Pretrained):
    """An MLP over the nine features around a cell, the query's place and the size of its pixel.

    Source: Chen, Liu, Wang, CVPR 2021: feature unfolding, local ensemble and cell decoding.
    """

    def __init__(self, config: ImplicitDecoderConfig):
        super().__init__(skip=config.skip)
        self.config = config
        self.mlp = mlp(9 * config.features + 4, config.hidden, 3, silent=config.skip != "none")

    def maps(self, features: Tensor) -> Tensor:
        """The features of each cell and its eight neighbours, zero beyond the edges."""
        return F.unfold(features, 3, padding=1).reshape(len(features), -1, *features.shape[-2:])

    def say(self, cells: Tensor, corner: Corner, size: Tensor) -> Tensor:
        return self.mlp(torch.cat([cells, corner.relative, size], dim=-1))


class LTEDecoder(LocalEnsemble, Pretrained):
    """An MLP over amplitudes times cosines and sines of learned frequencies at the query's place, their phase given by the pixel's size.

    Source: Lee & Jin, Local texture estimator for implicit representation function, CVPR 2022, eq. 5 to 8. Its own skip is bilinear.
    """

    def __init__(self, config: ImplicitDecoderConfig):
        super().__init__(skip=config.skip)
        self.config = config
        self.amplitude = nn.Conv2d(config.features, config.texture, 3, padding=1)
        self.frequency = nn.Conv2d(config.features, config.texture, 3, padding=1)
        self.phase = nn.Linear(2, config.texture // 2, bias=False)
        self.mlp = mlp(config.texture, config.hidden, 3, silent=config.skip != "none")

    def maps(self, features: Tensor) -> Tensor:
        """Amplitudes, then the frequencies along y, then those along x."""
        return torch.cat([self.amplitude(features), self.frequency(features)], dim=1)

    def say(self, cells: Tensor, corner: Corner, size: Tensor) -> Tensor:
        half = self.config.texture // 2
        amplitude, down, right = cells.split([2 * half, half, half], dim=-1)  # type: ignore[no-untyped-call]
        angle = torch.pi * (down * corner.relative[:, :1] + right * corner.relative[:, 1:] + self.phase(size))
        return self.mlp(amplitude * torch.cat([angle.cos(), angle.sin()], dim=-1))
