"""ISTE's decoder: from the features of a small image to the colours at any coordinates of a larger one.

Towards Arbitrary-scale Histopathology Image Super-resolution. Every query hears four cells; each cell gives a texture, looks for the most
similar texture elsewhere in the image, and decodes colour from both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pathorestore.hub import Pretrained
from pathorestore.nn.implicit import Corner, Lattice, Skip, check_skip, corners, ensemble, gather, mlp
from pathorestore.nn.local_interaction import LocalFeatureInteractor
from pathorestore.nn.texture_fusion import TextureFusion, differentiable_similarity, sampled_similarity, smallest_stride, strided_index

_TRAINED_SCALE = 4.0
Fused = Callable[[Corner, Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a whole image is decoded; none of it but max_keys changes the result beyond rounding.

    query_chunk: points decoded at a time. key_chunk: textures compared at a time. max_keys: at most so many of an image's pixels are
    searched, on an even grid; None for all.
    """

    query_chunk: int = 30_000
    key_chunk: int = 8192
    max_keys: int | None = None

    def __post_init__(self) -> None:
        if min(self.query_chunk, self.key_chunk, self.max_keys or 1) < 1:
            raise ValueError(f"chunks and max_keys must be at least 1; got {self}")


@dataclass(frozen=True, kw_only=True)
class TextureDecoderConfig:
    """Sizes of a `TextureDecoder`. features: of the encoder; texture: channels of amplitude and frequencies; hidden: of both decoders.

    interact, fuse, decode_texture: local feature interactor, self-texture fusion and local texture decoder, of which the paper's ablation
    leaves out one. skip: the interpolated image that is added, so that the decoder begins as that; the paper has none.
    """

    features: int = 64
    texture: int = 256
    hidden: tuple[int, ...] = (256, 256, 256)
    heads: int = 8
    interact: bool = True
    fuse: bool = True
    decode_texture: bool = True
    skip: Skip = "none"

    def __post_init__(self) -> None:
        if min(self.features, self.texture, self.heads, *self.hidden) < 1 or self.features % self.heads:
            raise ValueError(f"sizes must be at least 1 and heads divide features; got {self}")
        check_skip(self.skip)

    @classmethod
    def tiny(cls) -> "TextureDecoderConfig":
        """For laptops; begins as bicubic interpolation."""
        return cls(features=32, texture=64, hidden=(64, 64), heads=4, skip="bicubic")

    @classmethod
    def base(cls) -> "TextureDecoderConfig":
        """0.45 M parameters."""
        return cls(texture=128, hidden=(128, 128, 128), skip="bicubic")

    @classmethod
    def paper(cls) -> "TextureDecoderConfig":
        """1.14 M parameters, the sizes of the paper and its code."""
        return cls()


class TextureMaps(NamedTuple):
    """What the decoder reads off the features, each b texture h w: queries for similar textures, amplitude and both frequencies."""

    query: Tensor
    amplitude: Tensor
    frequency_y: Tensor
    frequency_x: Tensor

    def of(self, image: int) -> "TextureMaps":
        """Those of one image of the batch, its batch axis kept."""
        return TextureMaps(*(one[image : image + 1] for one in self))


class TextureDecoder(nn.Module, Pretrained):
    """Colours at any coordinates, from features b features h w of an encoder.

    `forward` decodes sampled points and searches textures among these, as in training; `render` decodes whole images and searches among
    all their pixels, in memory that does not grow with them. Colours are on the scale [0, 1], unclamped.
    """

    def __init__(self, config: TextureDecoderConfig):
        super().__init__()
        self.config = config
        width = config.texture
        self.interaction = LocalFeatureInteractor(config.features, heads=config.heads) if config.interact else nn.Identity()
        self.query, self.amplitude, self.frequency_y, self.frequency_x = (
            nn.Conv2d(config.features, width, 3, padding=1, padding_mode="replicate") for _ in range(4)
        )
        self.phase = nn.Linear(2, width, bias=False)
        self.fusion = TextureFusion(width) if config.fuse else None
        # beside the image they begin silent, so that the whole begins as its interpolation
        self.pixel = mlp(width + 4, config.hidden, 3, silent=config.skip != "none")
        self.texture = mlp(width, config.hidden, 3, silent=config.skip != "none") if config.decode_texture else None

    def maps(self, features: Tensor) -> TextureMaps:
        """The maps of features b c h w."""
        return TextureMaps(
            self.query(self.interaction(features)), self.amplitude(features), self.frequency_y(features), self.frequency_x(features)
        )

    def forward(self, features: Tensor, image: Tensor, coordinates: Tensor, footprint: Tensor) -> Tensor:
        """Colours b n 3 at coordinates b n 2 (y, x) of images b 3 h w, whose features are given.

        footprint: of an output pixel in pixels of the image, b 2: 1 / scale for each axis.
        """
        maps = self.maps(features)
        rows = zip(coordinates, footprint, strict=True)
        return torch.stack([self._sampled(maps.of(at), image[at : at + 1], *row) for at, row in enumerate(rows)])

    def _sampled(self, maps: TextureMaps, image: Tensor, coordinates: Tensor, footprint: Tensor) -> Tensor:
        def fused(corner: Corner, texture: Tensor) -> Tensor:
            query = gather(maps.query, corner.cell)[0]
            if self.fusion is None:
                return query
            match = differentiable_similarity(query, texture)
            return self.fusion(query, match.score, texture[match.index])

        return self._decoded(maps, image, coordinates, footprint, lambda corner, texture, _: fused(corner, texture))

    def _decoded(self, maps: TextureMaps, image: Tensor, coordinates: Tensor, footprint: Tensor, fused: "Fused") -> Tensor:
        """Sum over the corners of what each decodes, n 3."""
        size = (2 * footprint).float().expand(len(coordinates), 2)

        def say(at: int, corner: Corner) -> Tensor:
            texture = self._texture(maps, corner, footprint)
            decoded = self.pixel(torch.cat([fused(corner, texture, at), corner.relative, size], dim=-1))
            return decoded if self.texture is None else decoded + self.texture(texture)

        return ensemble(coordinates, image, say, skip=self.config.skip)

    def _texture(self, maps: TextureMaps, corner: Corner, footprint: Tensor) -> Tensor:
        """Amplitude sin(frequency . relative + phase), n texture."""
        amplitude, down, right = (gather(one, corner.cell)[0] for one in (maps.amplitude, maps.frequency_y, maps.frequency_x))
        phase = 2 * math.pi * self.phase((2 * footprint).float()).sigmoid()
        return amplitude * (down * corner.relative[:, :1] + right * corner.relative[:, 1:] + phase).sin()

    @torch.no_grad()
    def render(self, features: Tensor, image: Tensor, lattice: Lattice, footprint: Tensor, *, search: Search | None = None) -> Tensor:
        """The pixels b 3 of a lattice, from images b 3 h w and their features. search: how textures are searched and points decoded.

        footprint: of an output pixel in pixels of the image, 2, see `rendering_footprint`. In two passes: the best texture of every cell is
        found first, so that how many points are decoded at a time changes nothing.
        """
        # one by one: kernels choose their order of summation by the size of a batch
        each = zip(features.split(1), image.split(1), strict=True)  # type: ignore[no-untyped-call]
        return torch.stack([self._rendered(self.maps(own), source, lattice, footprint, search or Search()) for own, source in each])

    def _rendered(self, maps: TextureMaps, image: Tensor, lattice: Lattice, footprint: Tensor, how: Search) -> Tensor:
        places = lattice.places().to(image.device)
        cells = self._fused_cells(maps, lattice, places, footprint, how)
        starts = range(0, len(places), how.query_chunk)
        parts = [
            self._decoded(maps, image, places[start : start + how.query_chunk], footprint, lambda corner, _, at: cells[at][corner.cell])
            for start in starts
        ]
        return torch.cat(parts).T.reshape(3, *lattice.size)

    def _fused_cells(self, maps: TextureMaps, lattice: Lattice, places: Tensor, footprint: Tensor, how: Search) -> list[Tensor]:
        """For each corner the fused queries of all cells, (h w) texture: they depend on nothing else."""
        queries, size = maps.query[0].flatten(1).T, (maps.query.shape[-2], maps.query.shape[-1])
        if self.fusion is None:
            return [queries] * 4
        stride = smallest_stride(*lattice.size, max_keys=how.max_keys) if how.max_keys else 1
        chosen = strided_index(*lattice.size, stride=stride, device=places.device)
        fused = []
        for at in range(4):

            def keys(index: Tensor, at: int = at) -> Tensor:
                return self._texture(maps, corners(places[index], size)[at], footprint)

            match = sampled_similarity(queries, chosen, keys, key_chunk=how.key_chunk)
            fused.append(self.fusion(queries, match.score, keys(match.index)))
        return fused


def rendering_footprint(size: tuple[int, int], out_size: tuple[int, int]) -> Tensor:
    """Of a pixel of an image of out_size in pixels of one of size, 2; never smaller than at x4, beyond which nothing was trained."""
    scale = torch.tensor([wanted / have for wanted, have in zip(out_size, size, strict=True)], dtype=torch.float64)
    return scale.clamp(max=_TRAINED_SCALE).reciprocal()
