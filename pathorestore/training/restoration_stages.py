"""The two restoration stages: P-former (or a Restormer) and P-diffusion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from pathorestore.data.batches import PairBatch
from pathorestore.data.synthetic import Simulation
from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.functional.noise import NoiseField, stream
from pathorestore.hub import Pretrained
from pathorestore.image import pad_to, round_up
from pathorestore.losses import fft_magnitude_l1, local_contrast_l1
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.encoders import TinyEncoder
from pathorestore.models.latent import WorkingSpace
from pathorestore.models.pdiffusion import PDiffusion
from pathorestore.models.pformer import PFormer, Restormer
from pathorestore.models.prompts import Prompter, Prompts
from pathorestore.pipelines.light import keep_light
from pathorestore.pipelines.refine import DiffusionRefiner, FineSettings
from pathorestore.training.pictures import heat_colours
from pathorestore.training.schedules import Schedule
from pathorestore.training.stage import VALIDATION_Z_UM, Batch, Stage, frozen

_CHAIN, _NOISE = 4, 5  # salts of the random streams
_PROMPT_MULTIPLE_PX = 16  # of the encoder's and the edge prompt's grids
_DISTANCES = tuple(f"{round(1000 * z)}nm" for z in VALIDATION_Z_UM)


def prompter_parts(prompter: Prompter) -> dict[str, Pretrained]:
    """The parts of a prompter by the names they are saved under; an encoder that is not ours is left out."""
    parts: dict[str, Pretrained] = {"defocus": prompter.defocus, "pathology": prompter.pathology, "edge": prompter.edge}
    if isinstance(prompter.encoder, TinyEncoder):
        parts["encoder"] = prompter.encoder
    if isinstance(prompter.optics, Pretrained):
        parts["optics"] = prompter.optics
    return parts


class PFormerStage(Stage):
    """The coarse stage by L1 (plus `fft_weight` times the L1 of Fourier magnitudes), prompts frozen. The paper states no loss.

    train_only: prefixes of the parameters that learn, such as "refinement" and "output", for fine-tuning on few images; all by default.
    """

    trained = ("coarse",)
    figures = (*(f"gain_{name}" for name in _DISTANCES), "gain", "gain_scanner", "gain_pairs")

    def __init__(
        self,
        coarse: PFormer,
        prompter: Prompter,
        *,
        fft_weight: float = 0.0,
        train_only: Sequence[str] = (),
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        simulation: Simulation | None = None,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule, simulation=simulation)
        self.coarse, self.fft_weight = coarse, fft_weight
        self.prompter = cast(Prompter, frozen(prompter))
        _keep_training(coarse, train_only)

    def parts(self) -> dict[str, Pretrained]:
        """The coarse stage and the prompts that it was trained with."""
        return prompter_parts(self.prompter) | {"coarse": self.coarse}

    def restore(self, degraded: Tensor) -> Tensor:
        """The coarse image of a degraded batch."""
        with torch.no_grad():
            prompts = self.prompter(degraded)
        return self.coarse(degraded, self.guide(prompts), prompts.optics)

    def guide(self, prompts: Prompts) -> Tensor:
        """The vector that the routers see, b prompt_dim: the restored pathology prompt."""
        return prompts.pathology

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L1 against the clean image."""
        pairs = self.pairs(batch)
        restored = self.restore(pairs.degraded).float()
        loss = F.l1_loss(restored, pairs.clean)
        self.log("train_l1", loss, prog_bar=True)
        return loss + self.fft_weight * fft_magnitude_l1(restored, pairs.clean) if self.fft_weight else loss

    def evaluate(self, batch: Batch) -> None:
        """Gain in dB over the degraded input: at each distance and over all of them, in the scanner setting, on photographed pairs."""
        for name, pairs in self.validation_pairs(batch).items():
            gain = psnr(self.restore(pairs.degraded), pairs.clean) - psnr(pairs.degraded, pairs.clean)
            self.score(f"gain_{name}", gain, progress_bar=name in ("scanner", "pairs"))
            if name in _DISTANCES:
                self.score("gain", gain, progress_bar=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Restored images of degraded ones; images without a partner are taken as degraded."""
        degraded = batch.degraded if isinstance(batch, PairBatch) else batch.sharp
        return _at_any_size(degraded, _PROMPT_MULTIPLE_PX, self.restore)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Degraded, restored and clean images, and the estimated distance."""
        pairs = _one_of_each(self.validation_pairs(batch))
        distance = self.prompter.defocus.heat_map(pairs.degraded)
        return {
            "degraded": pairs.degraded,
            "coarse": self.restore(pairs.degraded).clamp(0, 1),
            "clean": pairs.clean,
            "estimated |z|, 0-4 um": heat_colours(distance, top_um=4.0),
        }


class RestormerStage(PFormerStage):
    """The same stage without routers, for comparison on equal terms; the prompter serves its optics prompt, if it has one."""

    def __init__(
        self,
        coarse: Restormer,
        prompter: Prompter,
        *,
        fft_weight: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        simulation: Simulation | None = None,
    ):
        super().__init__(
            cast(PFormer, coarse), prompter, fft_weight=fft_weight, optimizer=optimizer, schedule=schedule, simulation=simulation
        )

    def parts(self) -> dict[str, Pretrained]:
        """The Restormer alone: it is no part of a `MoPRestorer`."""
        return {"coarse": self.coarse}

    def restore(self, degraded: Tensor) -> Tensor:
        """The restored image of a degraded batch."""
        hints = None
        if self.coarse.config.hint_channels:
            with torch.no_grad():
                hints = self.prompter.optics(degraded, self.prompter.defocus(degraded).defocus_um)
        return cast(Restormer, self.coarse)(degraded, hints)


@dataclass(frozen=True, kw_only=True)
class ChainTraining:
    """What P-diffusion learns from.

    degraded_share: fraction of images that see the degraded image in place of the coarse one, so that the stage also works alone.
    prompt_dropout: fraction whose pathology prompt is zeroed. repeats: how often each simulated image enters a batch, each time turned
    anew and at another step of the chain: the frozen coarse stage costs more than the training step.
    fft_weight: of the L1 of Fourier magnitudes of the predicted image, which rewards detail of the right strength wherever it lies.
    contrast_weight: of the L1 of its local contrast, which rewards it where it belongs.
    first_share: fraction of images at the chain's first step, t = T, whatever is drawn for the others. There stands the coarse image; at
    the later steps the state holds most of the answer already, so that a small network has little to learn from them. kappa: noise of the
    process in training; 0 is that of the settings. A network that has learnt with more noise than it is used with takes less of what it
    cannot know for noise, and gives more detail.
    """

    degraded_share: float = 0.1
    prompt_dropout: float = 0.1
    repeats: int = 1
    fft_weight: float = 0.0
    contrast_weight: float = 0.0
    first_share: float = 0.0
    kappa: float = 0.0

    def __post_init__(self) -> None:
        if self.repeats < 1 or min(self.fft_weight, self.contrast_weight, self.kappa) < 0:
            raise ValueError(f"repeats must be at least 1, fft_weight, contrast_weight and kappa at least 0; got {self}")
        for share in ("degraded_share", "prompt_dropout", "first_share"):
            if not 0 <= getattr(self, share) <= 1:
                raise ValueError(f"{share} must lie in [0, 1]; got {getattr(self, share)}")


class PDiffusionStage(Stage):
    """The fine stage: predict the clean state from a noisy one (paper, eq. 5 with w_t = 1); of the rest only the edge prompt learns."""

    trained = ("fine", "edge")
    figures = ("cost_db", "detail_coarse", "detail_fine", "detail_ratio")

    def __init__(
        self,
        fine: PDiffusion,
        settings: FineSettings,
        prompter: Prompter,
        coarse: PFormer,
        *,
        chain: ChainTraining | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        simulation: Simulation | None = None,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule, simulation=simulation)
        self.fine, self.chain = fine, chain or ChainTraining()
        self._settings = settings
        self.prompter = cast(Prompter, frozen(prompter))
        self.prompter.edge.requires_grad_(True)
        self.coarse = cast(PFormer, frozen(coarse))
        self.space: WorkingSpace = fine.own_space()

    def parts(self) -> dict[str, Pretrained]:
        """The whole restorer."""
        return prompter_parts(self.prompter) | {"coarse": self.coarse, "fine": self.fine}

    def settings(self) -> FineSettings:
        """Process and guard."""
        return self._settings

    def told(self, prompts: Prompts) -> Prompts:
        """The prompts as the fine stage gets them: all of them."""
        return prompts

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean squared error of the predicted clean state at a random step of the chain."""
        pairs = self.pairs(batch)
        with torch.no_grad():
            coarse = self._coarse_images(pairs.degraded)
        streams = [stream(self.simulation.seed, _CHAIN, key, again) for again in range(self.chain.repeats) for key in pairs.key.tolist()]
        turns = [int(torch.randint(8, (), generator=one)) for one in streams]
        degraded, coarse, clean = (
            _turned(image.repeat(self.chain.repeats, 1, 1, 1), turns) for image in (pairs.degraded, coarse, pairs.clean)
        )
        prompts = self.told(self.prompter(degraded))
        keep = torch.tensor([float(torch.rand((), generator=one)) >= self.chain.prompt_dropout for one in streams])
        prompts = prompts._replace(pathology=prompts.pathology * keep[:, None].to(prompts.pathology))
        alone = torch.tensor([float(torch.rand((), generator=one)) < self.chain.degraded_share for one in streams], device=clean.device)
        guess = torch.where(alone[:, None, None, None], degraded, coarse)
        loss = self._chain_loss(clean, guess, degraded, prompts, streams)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def _chain_loss(self, clean: Tensor, guess: Tensor, degraded: Tensor, prompts: Prompts, streams: list[torch.Generator]) -> Tensor:
        state, start, seen = (self.space.encode(image) for image in (clean, guess, degraded))
        process = replace(self._settings.process, kappa=self.chain.kappa) if self.chain.kappa else self._settings.process
        t = torch.tensor([self._step(one) for one in streams], device=clean.device)
        seeds = [int(torch.randint(2**31, (), generator=one)) for one in streams]
        noise = torch.cat([self.space.noise(NoiseField(seed), _NOISE, state[i : i + 1]) for i, seed in enumerate(seeds)])
        marginal = process.marginal(state, start, t)
        noisy = marginal.mean + marginal.variance.sqrt() * noise
        predicted = self.fine(process.scale_input(noisy, t), t, self.fine.condition(start, seen, prompts)).float()
        loss = F.mse_loss(predicted, state)
        if self.chain.fft_weight or self.chain.contrast_weight:
            image = self.space.decode(predicted)
            if self._settings.guard_px:
                image = image + gaussian_blur(guess - image, sigma_px=self._settings.guard_px)
            loss = loss + self.chain.fft_weight * fft_magnitude_l1(image, clean)
            loss = loss + self.chain.contrast_weight * local_contrast_l1(image, clean)
        return loss

    def _step(self, generator: torch.Generator) -> int:
        steps = self._settings.process.steps
        drawn = int(torch.randint(1, steps + 1, (), generator=generator))
        if not self.chain.first_share:  # nothing more is drawn
            return drawn
        return steps if float(torch.rand((), generator=generator)) < self.chain.first_share else drawn

    def _coarse_images(self, degraded: Tensor) -> Tensor:
        prompts = self.prompter(degraded)
        return keep_light(self.coarse(degraded, prompts.pathology, prompts.optics).float(), degraded)

    def restore(self, degraded: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The coarse and the refined images of a degraded batch."""
        refiner = DiffusionRefiner(self.fine, self._settings, self.space)
        prompts = self.prompter(degraded)
        coarse = self._coarse_images(degraded)
        refined = [
            refiner(coarse[i : i + 1], degraded[i : i + 1], _row(self.told(prompts), i), noise=NoiseField(int(number)))
            for i, number in enumerate(key.tolist())
        ]
        return coarse, torch.cat(refined)

    def evaluate(self, batch: Batch) -> None:
        """PSNR that the chain costs against the coarse stage, and the power of the finest detail relative to the clean image's."""
        for name, pairs in self.validation_pairs(batch).items():
            if name == "scanner":
                continue
            coarse, fine = self.restore(pairs.degraded, pairs.key)
            self.score("cost_db", psnr(coarse, pairs.clean) - psnr(fine, pairs.clean), progress_bar=True)
            clean, before, after = (_detail(image) for image in (pairs.clean, coarse, fine))
            self.score("detail_coarse", before / clean)
            self.score("detail_fine", after / clean, progress_bar=True)
            self.score("detail_ratio", (after - clean).abs() / (before - clean).abs().clamp_min(1e-9))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Refined images of degraded ones; images without a partner are taken as degraded."""
        degraded = batch.degraded if isinstance(batch, PairBatch) else batch.sharp
        return _at_any_size(degraded, self.fine.multiple_px, lambda padded: self.restore(padded, batch.key)[1])

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Degraded, coarse, refined and clean images."""
        pairs = _one_of_each(self.validation_pairs(batch))
        coarse, fine = self.restore(pairs.degraded, pairs.key)
        return {"degraded": pairs.degraded, "coarse": coarse.clamp(0, 1), "two-stage": fine.clamp(0, 1), "clean": pairs.clean}


def _at_any_size(degraded: Tensor, multiple_px: int, restore: Callable[[Tensor], Tensor]) -> Tensor:
    """Restore images b 3 h w whose sides need not be multiples of anything; clamped to [0, 1]."""
    height, width = degraded.shape[-2:]
    padded = pad_to(degraded, round_up(height, multiple_px), round_up(width, multiple_px))
    return restore(padded)[..., :height, :width].clamp(0, 1)


def _keep_training(module: nn.Module, prefixes: Sequence[str]) -> None:
    """Freeze all parameters but those whose names begin with one of the prefixes. Raises ValueError for a prefix that names nothing."""
    names = [name for name, _ in module.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            known = sorted({name.split(".")[0] for name in names})
            raise ValueError(f"train_only names {prefix!r}, which is the beginning of no parameter; expected one of {', '.join(known)}")
    if prefixes:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name.startswith(tuple(prefixes)))


def _turned(images: Tensor, turns: list[int]) -> Tensor:
    """Each image b c s s under one of the eight flips and quarter turns."""
    rows = [torch.rot90(image, which % 4, dims=(1, 2)) for image, which in zip(images, turns, strict=True)]
    return torch.stack([row.flip(2) if which >= 4 else row for row, which in zip(rows, turns, strict=True)])


def _row(prompts: Prompts, i: int) -> Prompts:
    return Prompts(*(field[i : i + 1] for field in prompts))


def _one_of_each(pairs: dict[str, PairBatch]) -> PairBatch:
    """As many images as the batch has, taken from all the distances in turn."""
    batches = list(pairs.values())
    rows = [(batches[i % len(batches)], i) for i in range(len(batches[0].key))]
    return PairBatch(*(torch.cat([getattr(batch, name)[i : i + 1] for batch, i in rows]) for name in PairBatch._fields))


def _detail(image: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of each image, b: the contrast of the co-occurrence texture, for a whole image."""
    shown = image.clamp(0, 1)
    return shown.diff(dim=-1).square().mean(dim=(1, 2, 3)) + shown.diff(dim=-2).square().mean(dim=(1, 2, 3))
