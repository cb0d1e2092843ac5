"""ISTE: image -> encoder -> decoder, at any scale (Towards Arbitrary-scale Histopathology Image Super-resolution, fig. 2)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from pathorestore.hub import ModelCard, Pretrained, load_parts, locate, save_parts, weights_sha256
from pathorestore.image import check_image
from pathorestore.models.implicit_decoders import LIIFDecoder, LTEDecoder
from pathorestore.models.iste import Search, TextureDecoder, rendering_footprint
from pathorestore.models.swinir import SwinIR
from pathorestore.nn.implicit import Lattice
from pathorestore.pipelines.restorer import Progress, silent

_SYSTEM = "ISTE"
_DECODERS: dict[str, type[Pretrained]] = {"decoder": TextureDecoder, "liif": LIIFDecoder, "lte": LTEDecoder}
_PARTS: dict[str, type[Pretrained]] = {"encoder": SwinIR} | _DECODERS
LARGEST_SCALE = 16.0
Decoder = TextureDecoder | LIIFDecoder | LTEDecoder


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A stretch of an axis that a tile makes. read: the pixels of the small image that it sees; made: the pixels of the large one."""

    read: tuple[int, int]
    made: tuple[int, int]

    def coordinates(self, length: int, out_length: int) -> Tensor:
        """Where the made pixels lie on the read stretch, from -1 to 1, float64."""
        start, stop = self.read
        places = (torch.arange(*self.made, dtype=torch.float64) + 0.5) * (length / out_length)
        return 2 * (places - start) / (stop - start) - 1


def cuts(length: int, out_length: int, *, tile_px: int, overlap_px: int) -> Iterator[Cut]:
    """Cut an axis of `length` px, to become `out_length`, into tiles of at most tile_px that see overlap_px of their neighbours.

    Every pixel of the large image is made once, by the tile in whose core it lies, whatever the scale. Raises ValueError for a tile that
    is filled by its overlaps.
    """
    if overlap_px < 0 or tile_px <= 2 * overlap_px:
        raise ValueError(f"tile_px={tile_px} must be more than twice overlap_px={overlap_px}, which must not be negative")
    core = length if length <= tile_px else tile_px - 2 * overlap_px
    for start in range(0, length, core):
        stop = min(start + core, length)
        made = tuple(_first_behind(border, length, out_length) for border in (start, stop))
        if made[0] < made[1]:
            yield Cut(read=(max(0, start - overlap_px), min(length, stop + overlap_px)), made=(made[0], made[1]))


def _first_behind(border: int, length: int, out_length: int) -> int:
    """The first pixel of the large axis whose centre lies at or behind a border of the small one, in whole numbers: none is made twice.

    Pixel i has its centre at (2 i + 1) length / (2 out_length).
    """
    return max(0, -(-(2 * border * out_length - length) // (2 * length)))


class ISTE(nn.Module):
    """Enlarges images by any factor; with another decoder it is what ISTE is compared with.

    `forward` decodes sampled points, for training; `upscale` takes any image and checks it.
    """

    def __init__(self, encoder: SwinIR, decoder: Decoder, *, model_id: str = "custom", weights_hash: str = "none"):
        super().__init__()
        if encoder.config.width != decoder.config.features:
            raise ValueError(f"the encoder gives {encoder.config.width} features but the decoder expects {decoder.config.features}")
        self.encoder, self.decoder = encoder, decoder
        self.model_id, self.weights_sha256 = model_id, weights_hash

    def forward(self, image: Tensor, coordinates: Tensor, footprint: Tensor) -> Tensor:
        """Colours b n 3 of images b 3 h w at coordinates b n 2; footprint b 2: of an output pixel in pixels of the image."""
        return self.decoder(self.encoder(image), image, coordinates, footprint)

    @torch.no_grad()
    def upscale(
        self,
        image: Tensor,
        *,
        scale: float | None = None,
        out_size: tuple[int, int] | None = None,
        tile_px: int = 64,
        overlap_px: int = 8,
        search: Search | None = None,
        progress: Progress = silent,
    ) -> Tensor:
        """Images b 3 h w in [0, 1], made `scale` times as large (rounded) or of `out_size` (height, width); clamped.

        Tile by tile: memory is bounded by the tile, and textures are searched within it. Raises ValueError for anything but one of scale
        and out_size, for sizes below 1 px, and beyond 16 times.
        """
        check_image(image)
        size = (image.shape[-2], image.shape[-1])
        wanted = target_size(size, scale=scale, out_size=out_size)
        footprint = rendering_footprint(size, wanted).to(image.device)
        rows, columns = (list(cuts(length, out, tile_px=tile_px, overlap_px=overlap_px)) for length, out in zip(size, wanted, strict=True))
        large = image.new_empty(len(image), 3, *wanted, dtype=torch.float32)
        tiles = [(row, column) for row in rows for column in columns]
        for done, (row, column) in enumerate(tiles, start=1):
            part = image[..., slice(*row.read), slice(*column.read)].float()
            lattice = Lattice(row.coordinates(size[0], wanted[0]), column.coordinates(size[1], wanted[1]))
            made = self.decoder.render(self._features(part), part, lattice, footprint, search=search)
            large[..., slice(*row.made), slice(*column.made)] = made
            progress(done, len(tiles))
        return large.clamp(0, 1)

    def _features(self, image: Tensor) -> Tensor:
        # one by one: kernels choose their order of summation by the size of a batch
        return torch.cat([self.encoder(one[None]) for one in image])

    def save_pretrained(self, folder: str | os.PathLike[str], *, card: ModelCard | None = None, dtype: torch.dtype | None = None) -> None:
        """Write one sub-folder per part. dtype: storage type of the weights, such as torch.float16."""
        name = next(name for name, kind in _DECODERS.items() if isinstance(self.decoder, kind))
        save_parts(folder, {"encoder": self.encoder, name: self.decoder}, system=_SYSTEM, card=card, dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder_or_repo_id: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Load from a folder written by `save_pretrained`, or from a hub repository at a pinned revision; in evaluation mode."""
        folder = locate(folder_or_repo_id, revision=revision)
        parts = load_parts(folder, _PARTS, system=_SYSTEM)
        given = Path(folder_or_repo_id)
        model_id = given.resolve().name if given.exists() else str(folder_or_repo_id)
        decoder = cast(Decoder, next(part for name, part in parts.items() if name in _DECODERS))
        return cls(cast(SwinIR, parts["encoder"]), decoder, model_id=model_id, weights_hash=weights_sha256(folder)).eval()


def target_size(size: tuple[int, int], *, scale: float | None, out_size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the large image. Raises ValueError as `ISTE.upscale`."""
    if (scale is None) == (out_size is None):
        raise ValueError(f"give one of scale and out_size; got scale={scale} and out_size={out_size}")
    if scale is not None and not 0 < scale <= LARGEST_SCALE:
        raise ValueError(f"scale={scale} must lie above 0 and be at most {LARGEST_SCALE:g}")
    height, width = out_size or (round(size[0] * cast(float, scale)), round(size[1] * cast(float, scale)))
    largest = max(height / size[0], width / size[1])
    if min(height, width) < 1 or not largest <= LARGEST_SCALE:
        raise ValueError(f"an image of {size[0]} x {size[1]} px cannot become {height} x {width}; expected 1 px to {LARGEST_SCALE:g} times")
    return height, width
