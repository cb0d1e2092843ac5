"""The any-scale super-resolution stage: sharp crops are made smaller by random factors, and colours at random points learned."""

from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from pathorestore.data.batches import SharpBatch
from pathorestore.degradations.resize import blur_then_resize, resized
from pathorestore.functional.noise import stream
from pathorestore.hub import Pretrained
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.implicit_decoders import LIIFDecoder, LTEDecoder
from pathorestore.models.iste import TextureDecoder
from pathorestore.models.swinir import SwinIR
from pathorestore.nn.implicit import grid
from pathorestore.pipelines.iste import ISTE
from pathorestore.training.schedules import Schedule
from pathorestore.training.stage import Batch, Stage

_SAMPLES = 9  # salt of the random streams
VALIDATION_SCALES = (2.0, 3.3, 4.0, 6.0)


def _figure(scale: float) -> str:
    """The name of a validation figure, which may hold no point."""
    return f"gain_x{scale:g}".replace(".", "_")


class UpscaleStage(Stage):
    """ISTE by the L1 of colours at `points` random pixels; each image has a scale of its own, even in [1, largest_scale].

    Batches are sharp crops, at least small_px times largest_scale wide: a corner of round(small_px scale) px becomes small_px.
    Source: ISTE, sec. 3 and its released recipe (2304 points of 48 px crops, scales 1 to 4).
    """

    trained = ("encoder", "decoder")
    figures = (*(_figure(scale) for scale in VALIDATION_SCALES), "gain")

    def __init__(
        self,
        encoder: SwinIR,
        decoder: TextureDecoder | LIIFDecoder | LTEDecoder,
        *,
        small_px: int = 48,
        points: int = 2304,
        largest_scale: float = 4.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        seed: int = 0,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule)
        if small_px < 2 or points < 1 or largest_scale < 1:
            raise ValueError(f"small_px={small_px} must be at least 2, points={points} and largest_scale={largest_scale} at least 1")
        self.encoder, self.decoder = encoder, decoder
        self.small_px, self.points, self.largest_scale, self.seed = small_px, points, largest_scale, seed

    def parts(self) -> dict[str, Pretrained]:
        """Encoder and decoder."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    @property
    def system(self) -> ISTE:
        """Both as the system that is used."""
        return ISTE(self.encoder, self.decoder)

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
        side = batch.sharp.shape[-1]
        if round(self.small_px * self.largest_scale) > side:
            needed = round(self.small_px * self.largest_scale)
            raise ValueError(f"crops of {side} px cannot show {self.small_px} px at x{self.largest_scale:g}; set crops.crop_px to {needed}")
        each = [self._sampled(image, key) for image, key in zip(batch.sharp, batch.key.tolist(), strict=True)]
        small, places, footprint, colours = zip(*each, strict=True)
        return torch.cat(small), torch.stack(places), torch.stack(footprint), torch.stack(colours)

    def _sampled(self, sharp: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = stream(self.seed, _SAMPLES, key)
        scale = 1 + (self.largest_scale - 1) * torch.rand((), generator=own).item()
        side = round(self.small_px * scale)
        part = sharp[None, :, :side, :side]
        # without replacement where there are enough
        chosen = torch.randperm(side * side, generator=own)[: self.points]
        chosen = chosen[torch.arange(self.points) % len(chosen)].to(sharp.device)
        footprint = torch.full((2,), self.small_px / side, dtype=torch.float64, device=sharp.device)
        small = blur_then_resize(part, (self.small_px, self.small_px))
        return small, grid(side, side).to(sharp.device)[chosen], footprint, part[0].flatten(1).T[chosen]

    def evaluate(self, batch: Batch) -> None:
        """Gain in dB over bicubic interpolation at each scale, and over all of them."""
        assert isinstance(batch, SharpBatch)
        for scale in VALIDATION_SCALES:
            small, clean = reduced(batch.sharp, scale)
            size = (clean.shape[-2], clean.shape[-1])
            gain = psnr(self.system.upscale(small, out_size=size), clean) - psnr(resized(small, size), clean)
            self.score(_figure(scale), gain, progress_bar=True)
            self.score("gain", gain)

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


def reduced(sharp: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Sharp images b 3 h w made smaller `scale` times, and the part of the sharp ones that they show: whole small pixels only."""
    height, width = (int(side / scale) for side in sharp.shape[-2:])
    clean = sharp[..., : round(height * scale), : round(width * scale)]
    return blur_then_resize(clean, (height, width)), clean
