"""How alike restored and clean images are to an encoder, such as a pathology foundation model."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Pooled(Protocol):
    """What pathology encoders give: among others one vector per image."""

    @property
    def cls(self) -> Tensor:
        """One vector per image, b d."""
        ...


# images b 3 h w in [0, 1] -> b d, or an embedding that holds such vectors as `cls`; it brings its own normalisation
ImageEncoder = Callable[[Tensor], Tensor | Pooled]


class WholeImage:
    """Features of whole images: wraps an encoder and resizes to its input first, so that no part of an image is cropped away.

    side_px: the encoder's input, to which images are resized with bicubic, antialiased interpolation; None leaves the size to the encoder.
    The encoder runs as it is given, without gradients: put networks with dropout or batch statistics into evaluation mode before.
    """

    def __init__(self, encoder: ImageEncoder, *, side_px: int | None = 224) -> None:
        if side_px is not None and side_px < 1:
            raise ValueError(f"side_px={side_px} must be at least 1, e.g. 224 for most encoders")
        self.encoder, self.side_px = encoder, side_px

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Vectors b d of images b 3 h w on the scale [0, 1], clipped to it. Raises ValueError if that is not what the encoder gives."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"images of shape {tuple(image.shape)} are not b 3 h w; add a batch axis to a single image with image[None]")
        image = image.clamp(0, 1)
        if self.side_px is not None and image.shape[-2:] != (self.side_px, self.side_px):
            side = (self.side_px, self.side_px)
            image = F.interpolate(image, size=side, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        given: Any = self.encoder(image)
        vectors = given if isinstance(given, Tensor) else getattr(given, "cls", None)
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != len(image):
            got = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(given).__name__
            raise ValueError(
                f"the encoder gave {got} for {len(image)} images; expected one vector per image, b d, or an embedding with cls"
            )
        return vectors


def embedding_similarity(restored: Tensor, clean: Tensor, encoder: ImageEncoder, *, side_px: int | None = 224) -> Tensor:
    """Cosine of the angle between the embeddings of each restored image and its clean one, b in [-1, 1]; 1 for equal images.

    restored, clean: b 3 h w on the scale [0, 1], clipped to it. encoder, side_px: as of `WholeImage`. What the number means is up to the
    encoder: compare only numbers of the same one. An embedding of length zero gives 0, NaN gives NaN.
    Raises ValueError if the shapes differ or the encoder does not give one vector per image.
    """
    if restored.shape != clean.shape:
        raise ValueError(f"restored and clean must be of one shape; got {tuple(restored.shape)} and {tuple(clean.shape)}")
    embed = WholeImage(encoder, side_px=side_px)
    # in double precision, so that near-equal images do not all give 1
    return F.cosine_similarity(embed(restored).double(), embed(clean).double(), dim=1).clamp(-1, 1).float()
