"""The any-scale super-resolution stage: sharp crops are made smaller by random factors, and colours at random points learned."""

from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from pathorestore.data.batches import SharpBatch
from pathorestore.degradations.acquisition import compress
from pathorestore.degradations.resize import blur_then_resize, reduced, resized
from pathorestore.functional.noise import stream
from pathorestore.hub import Pretrained
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.implicit_decoders import LIIFDecoder, LTEDecoder
from pathorestore.models.iste import Search, TextureDecoder
from pathorestore.models.swinir import SwinIR
from pathorestore.nn.implicit import grid
from pathorestore.pipelines.iste import ISTE
from pathorestore.training.schedules import Schedule
from pathorestore.training.stage import Batch, Stage

_SAMPLES = 9  # salt of the random streams
VALIDATION_SCALES = (2.0, 3.3, 4.0, 6.0)
_VALIDATION_QUALITY = 85
_VALIDATED = tuple((scale, blur) for blur in (1.0, 0.0) for scale in VALIDATION_SCALES)


def _figure(scale: float, blur: float) -> str:
    """The name of a validation figure, which may hold no point."""
    return f"gain_x{scale:g}".replace(".", "_") + ("" if blur else "_sharp")


@dataclass(frozen=True, kw_only=True)
class ScaleSampling:
    """How pairs are made of sharp crops; the defaults are those of ISTE's released recipe.

    A corner of round(small_px scale) px becomes small_px, and colours are learned at `points` of its pixels. Each image has its own scale,
    even in [1, largest_scale], and its own blur before that, even between least and most; both are shares of the paper's, see
    `blur_then_resize`. A network that has seen one strength only undoes it in images that never had it. compressed: share of the small
    images that are JPEG, of a quality even between least and most; a network that never saw any sharpens its blocks.
    """

    small_px: int = 48
    points: int = 2304
    largest_scale: float = 4.0
    blur: tuple[float, float] = (1.0, 1.0)
    compressed: float = 0.0
    quality: tuple[int, int] = (60, 95)

    def __post_init__(self) -> None:
        if self.small_px < 2 or self.points < 1 or self.largest_scale < 1:
            raise ValueError(f"small_px must be at least 2, points and largest_scale at least 1; got {self}")
        if not 0 <= self.blur[0] <= self.blur[1]:
            raise ValueError(f"blur must be least and most, neither negative; got {self.blur}")
        if not 0 <= self.compressed <= 1 or not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError(f"compressed must lie in [0, 1] and quality be least and most of 1 to 100; got {self}")

    @property
    def crop_px(self) -> int:
        """The side of the crops that are needed."""
        return round(self.small_px * self.largest_scale)


class UpscaleStage(Stage):
    """ISTE by the L1 of colours at random pixels of sharp crops, whose small image it is given.

    Source: ISTE, sec. 3 and its released recipe.
    """

    trained = ("encoder", "decoder")
    figures = (*(_figure(*case) for case in _VALIDATED), "gain", "gain_x2_jpeg")

    def __init__(
        self,
        encoder: SwinIR,
        decoder: TextureDecoder | LIIFDecoder | LTEDecoder,
        *,
        sampling: ScaleSampling | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        seed: int = 0,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.encoder, self.decoder = encoder, decoder
        self.sampling, self.seed = sampling or ScaleSampling(), seed

    def parts(self) -> dict[str, Pretrained]:
        """Encoder and decoder."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def settings(self) -> Search:
        """Textures are looked for among as many as in training."""
        return Search(max_keys=self.sampling.points)

    @property
    def system(self) -> ISTE:
        """Both as the system that is used."""
        return ISTE(self.encoder, self.decoder, search=self.settings())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L1 at the sampled points."""
        small, places, footprint, colours = self.samples(batch)
        loss = (self.decoder(self.encoder(small), small, places, footprint) - colours).abs().mean()
        self.log("train_l1", loss, prog_bar=True)
        return loss

    def samples(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Small images b 3 s s, points b n 2, footprints b 2 and the colours b n 3 there.

        Raises ValueError for crops that are too small.
        """
        assert isinstance(batch, SharpBatch)
        side, how = batch.sharp.shape[-1], self.sampling
        if how.crop_px > side:
            raise ValueError(
                f"crops of {side} px cannot show {how.small_px} px at x{how.largest_scale:g}; set crops.crop_px to {how.crop_px}"
            )
        each = [self._sampled(image, key) for image, key in zip(batch.sharp, batch.key.tolist(), strict=True)]
        small, places, footprint, colours = zip(*each, strict=True)
        return torch.cat(small), torch.stack(places), torch.stack(footprint), torch.stack(colours)

    def _sampled(self, sharp: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own, how = stream(self.seed, _SAMPLES, key), self.sampling
        of_scale, of_blur = torch.rand(2, generator=own).tolist()
        scale = 1 + (how.largest_scale - 1) * of_scale
        blur = how.blur[0] + (how.blur[1] - how.blur[0]) * of_blur
        side = round(how.small_px * scale)
        part = sharp[None, :, :side, :side]
        # without replacement where there are enough
        chosen = torch.randperm(side * side, generator=own)[: how.points]
        chosen = chosen[torch.arange(how.points) % len(chosen)].to(sharp.device)
        footprint = torch.full((2,), how.small_px / side, dtype=torch.float64, device=sharp.device)
        small = blur_then_resize(part, (how.small_px, how.small_px), blur=blur)
        # drawn last, so that what is drawn before does not depend on it
        if torch.rand((), generator=own).item() < how.compressed:
            small = compress(small, quality=int(torch.randint(how.quality[0], how.quality[1] + 1, (), generator=own)))
        return small, grid(side, side).to(sharp.device)[chosen], footprint, part[0].flatten(1).T[chosen]

    def evaluate(self, batch: Batch) -> None:
        """Gain in dB over bicubic interpolation at each scale, with the paper's blur and with none ("sharp"), and over all of them.

        Also at x2 without blur, of images that were compressed.
        """
        assert isinstance(batch, SharpBatch)
        for scale, blur in _VALIDATED:
            small, clean = reduced(batch.sharp, scale, blur=blur)
            size = (clean.shape[-2], clean.shape[-1])
            gain = psnr(self.system.upscale(small, out_size=size), clean) - psnr(resized(small, size), clean)
            self.score(_figure(scale, blur), gain, progress_bar=True)
            self.score("gain", gain)
        small, clean = reduced(batch.sharp, VALIDATION_SCALES[0], blur=0.0)
        size, small = (clean.shape[-2], clean.shape[-1]), compress(small, quality=_VALIDATION_QUALITY)
        self.score("gain_x2_jpeg", psnr(self.system.upscale(small, out_size=size), clean) - psnr(resized(small, size), clean))

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Bicubic, ours and clean, at x4."""
        assert isinstance(batch, SharpBatch)
        small, clean = reduced(batch.sharp, 4.0)
        size = (clean.shape[-2], clean.shape[-1])
        return {"bicubic": resized(small, size), "ours": self.system.upscale(small, out_size=size), "clean": clean}

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """Images twice as large."""
        assert isinstance(batch, SharpBatch)
        return self.system.upscale(batch.sharp, scale=2)
