"""ISTE: image -> encoder -> decoder, at any scale (Towards Arbitrary-scale Histopathology Image Super-resolution, fig. 2)."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from pathorestore.hub import ModelCard, Pretrained, WeightsError, load_parts, load_settings, locate, model_name, save_parts, weights_sha256
from pathorestore.image import check_image
from pathorestore.models.implicit_decoders import LIIFDecoder, LTEDecoder
from pathorestore.models.iste import Search, TextureDecoder, TextureDecoderConfig, rendering_footprint
from pathorestore.models.swinir import SwinIR, SwinIRConfig
from pathorestore.nn.implicit import Lattice
from pathorestore.pipelines.enlarge import DrawnPieces, Size, enlarged, target_size
from pathorestore.pipelines.restorer import Progress, silent

_SYSTEM = "ISTE"
_DECODERS: dict[str, type[Pretrained]] = {"decoder": TextureDecoder, "liif": LIIFDecoder, "lte": LTEDecoder}
_PARTS: dict[str, type[Pretrained]] = {"encoder": SwinIR} | _DECODERS
Decoder = TextureDecoder | LIIFDecoder | LTEDecoder


@dataclass(frozen=True, kw_only=True)
class ISTEConfig:
    """Sizes of an `ISTE`: of its encoder and of the decoder, whose switches are the paper's ablation."""

    encoder: SwinIRConfig
    decoder: TextureDecoderConfig

    @classmethod
    def tiny(cls) -> "ISTEConfig":
        """0.33 M parameters, for laptops."""
        return cls(encoder=SwinIRConfig.tiny(), decoder=TextureDecoderConfig.tiny())

    @classmethod
    def base(cls) -> "ISTEConfig":
        """2.1 M parameters."""
        return cls(encoder=SwinIRConfig.base(), decoder=TextureDecoderConfig.base())

    @classmethod
    def paper(cls) -> "ISTEConfig":
        """12.75 M parameters, the sizes of the paper and its code."""
        return cls(encoder=SwinIRConfig.paper(), decoder=TextureDecoderConfig.paper())


class ISTE(nn.Module):
    """Enlarges images by any factor; with another decoder it is what ISTE is compared with.

    `forward` decodes sampled points, for training; `upscale` takes any image and checks it. search: how it looks for textures,
    among all by default.
    """

    def __init__(
        self,
        encoder: SwinIR,
        decoder: Decoder,
        *,
        search: Search | None = None,
        model_id: str = "custom",
        weights_hash: str = "none",
    ):
        super().__init__()
        if encoder.config.width != decoder.config.features:
            raise ValueError(f"the encoder gives {encoder.config.width} features but the decoder expects {decoder.config.features}")
        self.encoder, self.decoder = encoder, decoder
        self.model_id, self.weights_sha256 = model_id, weights_hash
        self.search = search or Search()

    @classmethod
    def of(cls, config: ISTEConfig) -> Self:
        """A system with initial weights."""
        return cls(SwinIR(config.encoder), TextureDecoder(config.decoder))

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
        progress: Progress = silent,
    ) -> Tensor:
        """Images b 3 h w in [0, 1], made `scale` times as large (rounded) or of `out_size` (height, width); clamped.

        Tile by tile: memory is bounded by the tile, and textures are searched within it. Raises ValueError for anything but one of scale
        and out_size, for sizes below 1 px, and beyond 16 times.
        """
        check_image(image)
        size = (image.shape[-2], image.shape[-1])
        wanted = target_size(size, scale=scale, out_size=out_size)
        return enlarged(DrawnPieces(enlarger=self, tile_px=tile_px, overlap_px=overlap_px), image, wanted, progress=progress)

    @torch.no_grad()
    def draw(self, part: Tensor, lattice: Lattice, size: Size, out_size: Size) -> Tensor:
        """The pixels b 3 H W of a lattice over parts b 3 h w, in [0, 1], of images of `size` that become `out_size`; unclamped.

        Textures are searched within the part.
        """
        # one by one: kernels choose their order of summation by the size of a batch
        features = torch.cat([self.encoder(one[None]) for one in part])
        return self.decoder.render(features, part, lattice, rendering_footprint(size, out_size).to(part.device), search=self.search)

    def save_pretrained(self, folder: str | os.PathLike[str], *, card: ModelCard | None = None, dtype: torch.dtype | None = None) -> None:
        """Write one sub-folder per part. dtype: storage type of the weights, such as torch.float16."""
        name = next(name for name, kind in _DECODERS.items() if isinstance(self.decoder, kind))
        save_parts(folder, {"encoder": self.encoder, name: self.decoder}, system=_SYSTEM, settings=self.search, card=card, dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder_or_repo_id: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Load from a folder written by `save_pretrained`, or from a hub repository at a pinned revision; in evaluation mode."""
        folder = locate(folder_or_repo_id, revision=revision)
        parts = load_parts(folder, _PARTS, system=_SYSTEM)
        model_id = model_name(folder_or_repo_id)
        decoders = [name for name in parts if name in _DECODERS]
        if "encoder" not in parts or len(decoders) != 1:
            raise WeightsError(f"{folder} holds {', '.join(parts) or 'no part'}; expected an encoder and one of {', '.join(_DECODERS)}")
        decoder = cast(Decoder, parts[decoders[0]])
        search = load_settings(folder, Search, system=_SYSTEM)
        return cls(cast(SwinIR, parts["encoder"]), decoder, search=search, model_id=model_id, weights_hash=weights_sha256(folder)).eval()


def load_default() -> ISTE:
    """The system that ships with the package."""
    return ISTE.from_pretrained(Path(__file__).parent.parent / "weights" / "iste-tiny")
