"""The stages of Histo-Diffusion: restoration module, autoencoder, latent U-Net, and the branch that controls it."""

from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from pathorestore.data.batches import SharpBatch
from pathorestore.degradations.blind import degrade_blind
from pathorestore.degradations.blind_recipes import OneRound
from pathorestore.degradations.resize import reduced, resized
from pathorestore.hub import Pretrained
from pathorestore.image import check_image
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.autoencoder import LatentAutoencoder
from pathorestore.models.controlled import ControlNet, LatentUNet
from pathorestore.models.swinir import SwinIR
from pathorestore.pipelines.controlled import ControlledSampler, SamplingSettings
from pathorestore.pipelines.histo_diffusion import HistoDiffusion
from pathorestore.training.schedules import Schedule
from pathorestore.training.stage import Batch, Stage, frozen

_DEGRADE, _POSTERIOR, _TIME, _NOISE = 10, 11, 12, 13  # salts of the random streams
_SCALE = 4.0  # at which validation looks
_VALIDATION_TIMES = (50, 250, 500, 750, 950)


class RestorationModuleStage(Stage):
    """Stage 1 of Histo-Diffusion: a SwinIR restores degraded images at their size, by mean squared error (arXiv 2408.15218, DiffBIR).

    recipe: how sharp crops are degraded, see `degrade_blind`; `OneRound.diffbir()` unless given.
    """

    trained = ("restoration",)
    figures = ("gain", "gain_x4", "gain_x4_sharp")

    def __init__(
        self,
        restoration: SwinIR,
        *,
        recipe: OneRound | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        seed: int = 0,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.restoration, self.recipe = restoration, recipe or OneRound.diffbir()
        self.simulation = replace(self.simulation, seed=seed)

    def parts(self) -> dict[str, Pretrained]:
        """The restoration module."""
        return {"restoration": self.restoration}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean squared error against the sharp crops."""
        loss = F.mse_loss(self.restoration(self._degraded(batch)).float(), _sharp(batch).sharp)
        self.log("train_mse", loss, prog_bar=True)
        return loss

    def evaluate(self, batch: Batch) -> None:
        """Gain in dB over the degraded crops, and over bicubic interpolation at x4, with ISTE's blur and with none ("sharp")."""
        pairs = {"gain": (self._degraded(batch), _sharp(batch).sharp)}
        for name, blur in (("gain_x4", 1.0), ("gain_x4_sharp", 0.0)):
            small, clean = reduced(_sharp(batch).sharp, _SCALE, blur=blur)
            pairs[name] = resized(small, (clean.shape[-2], clean.shape[-1])), clean
        for name, (degraded, clean) in pairs.items():
            self.score(name, psnr(self.restored(degraded), clean) - psnr(degraded, clean), progress_bar=True)

    def restored(self, degraded: Tensor) -> Tensor:
        """Images restored and clamped."""
        restored: Tensor = self.restoration(degraded)
        return restored.clamp(0, 1)

    def _degraded(self, batch: Batch) -> Tensor:
        return _degraded(batch, self.recipe, self.streams(batch.key, salt=_DEGRADE))

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Degraded, restored and clean."""
        degraded = self._degraded(batch)
        return {"degraded": degraded, "restored": self.restored(degraded), "clean": _sharp(batch).sharp}


class AutoencoderStage(Stage):
    """The autoencoder from scratch: L1 of what comes back plus `kl_weight` times the divergence of its latents from the normal.

    A perceptual or adversarial term, as published autoencoders have, is left out. Each validation sets the scaling of latents to one over
    their standard deviation on the validation crops. Source: Rombach et al., CVPR 2022, sec. 3.1 and appendix G.
    """

    trained = ("autoencoder",)
    figures = ("psnr", "deviation")

    def __init__(
        self,
        autoencoder: LatentAutoencoder,
        *,
        kl_weight: float = 1e-6,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        seed: int = 0,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule)
        if kl_weight < 0:
            raise ValueError(f"kl_weight must not be negative; got {kl_weight}")
        self.autoencoder, self.kl_weight = autoencoder, kl_weight
        self.simulation = replace(self.simulation, seed=seed)
        self._seen: list[Tensor] = []

    def parts(self) -> dict[str, Pretrained]:
        """The autoencoder."""
        return {"autoencoder": self.autoencoder}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L1 of the images that come back, and the weighted divergence."""
        sharp = _sharp(batch).sharp
        posterior = self.autoencoder.posterior(sharp)
        drawn = posterior.sample(_normal_like(posterior.mean, self.streams(batch.key, salt=_POSTERIOR)))
        l1 = (self.autoencoder.decode(self.autoencoder.config.scaling * drawn) - sharp).abs().mean()
        divergence = posterior.divergence().mean()
        self.log("train_l1", l1, prog_bar=True)
        return l1 + self.kl_weight * divergence

    def evaluate(self, batch: Batch) -> None:
        """PSNR of the images that come back, and the standard deviation of scaled latents, one at best."""
        sharp = _sharp(batch).sharp
        latent = self.autoencoder.encode(sharp)
        self.score("psnr", psnr(self.autoencoder.decode(latent).clamp(0, 1), sharp), progress_bar=True)
        self.score("deviation", latent.flatten(1).std(dim=1))
        self._seen.append(sharp)

    def on_validation_epoch_end(self) -> None:
        """Measure the scaling."""
        if self._seen and not self.trainer.sanity_checking:
            self.autoencoder.calibrate(self._seen)
        self._seen.clear()

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """What goes in and what comes back."""
        sharp = _sharp(batch).sharp
        return {"clean": sharp, "back": self.autoencoder.decode(self.autoencoder.encode(sharp)).clamp(0, 1)}


class LatentUNetStage(Stage):
    """The U-Net predicts the noise in latents of sharp crops, at steps drawn evenly, by mean squared error (Ho et al. 2020, eq. 14).

    Or the velocity, as `settings.process` says. For systems without a pretrained prior; the autoencoder is frozen.
    """

    trained: tuple[str, ...] = ("unet",)
    figures = ("mse", *(f"mse_{t}" for t in _VALIDATION_TIMES))

    def __init__(
        self,
        unet: LatentUNet,
        autoencoder: LatentAutoencoder,
        *,
        settings: SamplingSettings | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        seed: int = 0,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.unet, self.autoencoder = unet, cast(LatentAutoencoder, frozen(autoencoder))
        self.sampling = settings or SamplingSettings()
        self.simulation = replace(self.simulation, seed=seed)

    def parts(self) -> dict[str, Pretrained]:
        """The U-Net, and the autoencoder whose latents it knows."""
        return {"unet": self.unet, "autoencoder": self.autoencoder}

    def predicted(self, batch: Batch, state: Tensor, t: Tensor) -> Tensor:
        """What the U-Net says of states of a batch at steps t."""
        del batch
        return self.unet(state, t)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean squared error of what is predicted."""
        latent, noise = self._latent(batch), self._noise(batch)
        last = self.sampling.process.steps
        t = torch.stack([torch.randint(last, (), generator=own) for own in self.streams(batch.key, salt=_TIME)]).to(latent.device)
        process = self.sampling.process
        loss = F.mse_loss(self.predicted(batch, process.noised(latent, t, noise), t).float(), process.target(latent, noise, t))
        self.log("train_mse", loss, prog_bar=True)
        return loss

    def evaluate(self, batch: Batch) -> None:
        """The same error at some steps and over all of them."""
        latent, noise = self._latent(batch), self._noise(batch)
        for t in _VALIDATION_TIMES:
            steps = torch.full((len(latent),), t * self.sampling.process.steps // 1000, device=latent.device)
            state = self.sampling.process.noised(latent, steps, noise)
            wanted = self.sampling.process.target(latent, noise, steps)
            error = (self.predicted(batch, state, steps).float() - wanted).square().flatten(1).mean(dim=1)
            self.score(f"mse_{t}", error)
            self.score("mse", error, progress_bar=True)

    @torch.no_grad()
    def _latent(self, batch: Batch) -> Tensor:
        """A sample of the latents of the sharp crops."""
        return self.autoencoder.encode(_sharp(batch).sharp, noise=self._noise(batch, salt=_POSTERIOR))

    def _noise(self, batch: Batch, *, salt: int = _NOISE) -> Tensor:
        sharp, factor = _sharp(batch).sharp, self.autoencoder.factor
        like = sharp.new_empty(len(sharp), self.autoencoder.channels, sharp.shape[-2] // factor, sharp.shape[-1] // factor)
        return _normal_like(like, self.streams(batch.key, salt=salt))


class ControlStage(LatentUNetStage):
    """Stage 2 of Histo-Diffusion: the control branch learns to predict noise given the latent of the restored image (arXiv 2408.15218).

    The condition is the mode of the latent; restoration module, autoencoder and, unless train_unet, the U-Net are frozen. A U-Net that is
    trained too learns faster where there is no pretrained prior to keep. Validation also enlarges whole images. training:
    optimizer, schedule and seed, as for `LatentUNetStage`.
    """

    trained: tuple[str, ...] = ("control",)
    figures = (*LatentUNetStage.figures, "gain_x4", "gain_x4_coarse")

    def __init__(
        self,
        control: ControlNet,
        unet: LatentUNet,
        autoencoder: LatentAutoencoder,
        restoration: SwinIR,
        *,
        recipe: OneRound | None = None,
        settings: SamplingSettings | None = None,
        train_unet: bool = False,
        **training: Any,
    ):
        super().__init__(unet, autoencoder, settings=settings, **training)
        self.control, self.restoration = control, cast(SwinIR, frozen(restoration))
        self.recipe = recipe or OneRound.diffbir()
        self.train_unet = train_unet
        if train_unet:
            self.trained = ("control", "unet")
        else:
            frozen(unet)

    def parts(self) -> dict[str, Pretrained]:
        """The whole system."""
        return {"restoration": self.restoration, "autoencoder": self.autoencoder, "unet": self.unet, "control": self.control}

    def settings(self) -> SamplingSettings:
        """How it samples."""
        return self.sampling

    @property
    def system(self) -> HistoDiffusion:
        """The parts as the system that is used."""
        return HistoDiffusion(self.restoration, ControlledSampler(self.autoencoder, self.unet, self.control, self.sampling))

    def predicted(self, batch: Batch, state: Tensor, t: Tensor) -> Tensor:
        """What the U-Net says, given what the restoration module makes of the degraded crops."""
        context = self.unet.context(len(state))
        return self.unet(state, t, context=context, control=self.control(state, t, self._condition(batch), context))

    def evaluate(self, batch: Batch) -> None:
        """Also the gain in dB over bicubic interpolation at x4, of both stages and of the first alone."""
        super().evaluate(batch)
        small, clean = reduced(_sharp(batch).sharp, _SCALE)
        size, system = (clean.shape[-2], clean.shape[-1]), self.system
        before = psnr(resized(small, size), clean)
        self.score("gain_x4", psnr(system.upscale(small, out_size=size), clean) - before, progress_bar=True)
        self.score("gain_x4_coarse", psnr(system.coarse(small, out_size=size), clean) - before)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Bicubic, coarse, drawn and clean, at x4."""
        small, clean = reduced(_sharp(batch).sharp, _SCALE)
        size, system = (clean.shape[-2], clean.shape[-1]), self.system
        drawn = {"coarse": system.coarse(small, out_size=size), "drawn": system.upscale(small, out_size=size)}
        return {"bicubic": resized(small, size)} | drawn | {"clean": clean}

    @torch.no_grad()
    def _condition(self, batch: Batch) -> Tensor:
        """The mode of the latent of the restored crops."""
        degraded = _degraded(batch, self.recipe, self.streams(batch.key, salt=_DEGRADE))
        return self.autoencoder.encode(self.restoration(degraded))


def _sharp(batch: Batch) -> SharpBatch:
    assert isinstance(batch, SharpBatch)
    check_image(batch.sharp)
    return batch


def _degraded(batch: Batch, recipe: OneRound, generators: list[torch.Generator]) -> Tensor:
    """The batch's sharp crops, each degraded by its own draw."""
    sharp = _sharp(batch).sharp
    return degrade_blind(sharp, recipe, generator=generators).image.to(sharp.device)


def _normal_like(like: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Standard normal noise of a shape, an image's by its own generator."""
    return torch.stack([torch.randn(like.shape[1:], generator=own) for own in generators]).to(like)
