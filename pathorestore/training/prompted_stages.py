"""LPFM's stages: one network for all tasks, told by a prompt which."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from pathorestore.data.batches import PairBatch
from pathorestore.data.synthetic import sharp_middle
from pathorestore.data.task_prompts import drawn_prompt, render, spec_of
from pathorestore.data.tasks import Example, Task, builtin_tasks, named
from pathorestore.degradations.composed import Theta
from pathorestore.hub import Pretrained
from pathorestore.losses import supervised_contrast
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.autoencoder import LatentAutoencoder
from pathorestore.models.contrastive import ContrastiveEncoder, Impression
from pathorestore.models.prompted import PromptedCoarse, told
from pathorestore.models.text import ByteTextEncoder, ClipTextEncoder, Text
from pathorestore.pipelines.controlled import SamplingSettings
from pathorestore.pipelines.lpfm import LPFM
from pathorestore.training.schedules import Schedule
from pathorestore.training.stage import Batch, Stage, frozen

_TASK, _EXAMPLE, _PROMPT, _KNOWN, _ASKED = 16, 17, 18, 19, 20  # salts of the random streams
_TIME, _NOISE, _POSTERIOR = 21, 22, 23
_VALIDATION_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
_UNKNOWN_SHARE = 0.1
_SSIM_WEIGHT, _TEXT_WEIGHT, _TEMPERATURE = 0.1, 0.02, 0.1
_USUAL_ERROR, _LEAST_ERROR = 0.05, 0.02
Learns = Literal["all", "control", "inlets"]
# as diffusers calls cross-attention, the embeddings of vector and condition, and the zero convolutions of a control branch
_INLETS = (".attn2.", ".class_embedding.", "controlnet_")


class Asked(NamedTuple):
    """Images b 3 h w that are given and wanted, the prompt for each, and whether its impression is told, b.

    others: a further prompt for the task of each. tasks: of prompts and others, 2 b, the number of the task, -1 of an empty prompt.
    """

    given: Tensor
    wanted: Tensor
    prompts: tuple[str, ...]
    known: Tensor
    others: tuple[str, ...] = ()
    tasks: tuple[int, ...] = ()


class Curriculum:
    """Which tasks are trained, and what batches become. tasks: those built in unless given; only: the names of some of them.

    pairs_task: what photographed pairs are examples of. Raises ValueError for a name that no task has, and where nothing can be trained.
    """

    def __init__(self, tasks: Sequence[Task] | None = None, *, only: Sequence[str] = (), pairs_task: str = "restore"):
        self.tasks = tuple(builtin_tasks() if tasks is None else tasks)
        self.pairs_task = pairs_task
        chosen = [named(self.tasks, name) for name in only] or self.tasks
        self.trained = tuple(task for task in chosen if task.example is not None)
        if not self.trained:
            raise ValueError(f"none of {', '.join(task.name for task in chosen)} makes examples of sharp images")

    def drawn(self, stage: Stage, batch: Batch) -> Asked:
        """A task for each image, an example of it and its prompt, by the streams of its key."""
        known = [float(torch.rand((), generator=own)) >= _UNKNOWN_SHARE for own in stage.streams(batch.key, salt=_KNOWN)]
        prompts = stage.streams(batch.key, salt=_PROMPT)
        if isinstance(batch, PairBatch):
            task, untouched = named(self.tasks, self.pairs_task), Theta.from_normalised(torch.zeros(1, 5))
            said, others = (tuple(drawn_prompt(task, untouched, own) for own in prompts) for _ in range(2))
            tasks = _numbered([0] * len(prompts), said, others)
            return Asked(batch.degraded, batch.clean, said, torch.tensor(known, device=batch.clean.device), others, tasks)
        weights = torch.tensor([task.weight for task in self.trained])
        numbers = [int(torch.multinomial(weights, 1, generator=own)) for own in stage.streams(batch.key, salt=_TASK)]
        chosen = [self.trained[number] for number in numbers]
        examples = self._examples(stage, batch, chosen, salt=_EXAMPLE)
        said, others = (
            tuple(drawn_prompt(task, one.theta, own) for task, one, own in zip(chosen, examples, prompts, strict=True)) for _ in range(2)
        )
        given, wanted = _stacked(examples, batch.key.device)
        known_too = torch.tensor(known, device=batch.key.device)
        return Asked(given, wanted, said, known_too, others, _numbered(numbers, said, others))

    def judged(self, batch: Batch) -> Sequence[Task]:
        """What validation looks at: every task that is trained, of photographed pairs the one they are examples of."""
        return [named(self.tasks, self.pairs_task)] if isinstance(batch, PairBatch) else self.trained

    def asked(self, stage: Stage, batch: Batch, task: Task) -> Asked:
        """The same with one task for all, in its plainest words, and examples to judge by; photographed pairs as they are."""
        if isinstance(batch, PairBatch):
            known = torch.ones(len(batch.clean), dtype=torch.bool, device=batch.clean.device)
            return Asked(batch.degraded, batch.clean, (render(task),) * len(batch.clean), known)
        examples = self._examples(stage, batch, [task] * len(batch.key), salt=_ASKED, judge=True)
        given, wanted = _stacked(examples, batch.key.device)
        return Asked(given, wanted, (render(task),) * len(given), torch.ones(len(given), dtype=torch.bool, device=given.device))

    def _examples(self, stage: Stage, batch: Batch, tasks: Sequence[Task], *, salt: int, judge: bool = False) -> list[Example]:
        assert not isinstance(batch, PairBatch)
        sharp = sharp_middle(batch).float().cpu()
        streams = stage.streams(batch.key, salt=salt)
        made: list[Example] = []
        for index, (task, own) in enumerate(zip(tasks, streams, strict=True)):
            assert task.example is not None
            with torch.autocast("cpu", enabled=False):  # examples are made there, in single precision
                made.append((task.tried if judge else task.example)(sharp[index : index + 1], own))
        return made


def _numbered(numbers: Sequence[int], *several: Sequence[str]) -> tuple[int, ...]:
    """The numbers of the tasks of prompts, -1 of empty ones."""
    return tuple(number if prompt else -1 for prompts in several for number, prompt in zip(numbers, prompts, strict=True))


def _stacked(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.cat([one.given for one in examples]).to(device), torch.cat([one.wanted for one in examples]).to(device)


class PromptedCoarseStage(Stage):
    """LPFM's first stage: the coarse network and the text encoder learn all tasks at once, by L1 and a tenth of 1 - SSIM; ours.

    The L1 of an image is weighed by 0.05 / (0.02 + L1 of what is given), or else another stain, which is much to change, leaves a slight
    blur as it is.
    The text encoder learns to tell tasks apart besides: prompts of one attract each other. What images alone would teach it comes too late,
    when the network has found a compromise between all tasks. The contrastive encoder is frozen, and a text tower of CLIP; what the encoder
    makes of an image is left out for one in ten.
    """

    trained: tuple[str, ...] = ("text", "coarse")

    def __init__(
        self,
        coarse: PromptedCoarse,
        text: ByteTextEncoder | ClipTextEncoder,
        contrastive: ContrastiveEncoder,
        *,
        curriculum: Curriculum | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        seed: int = 0,
    ):
        self.curriculum = curriculum or Curriculum()
        self.figures = tuple(
            dict.fromkeys(f"gain_{name}" for name in (*(task.name for task in self.curriculum.trained), self.curriculum.pairs_task))
        )
        super().__init__(optimizer=optimizer, schedule=schedule)
        if not isinstance(text, ByteTextEncoder):
            self.trained = ("coarse",)
        self.coarse, self.text, self.contrastive = coarse, text, cast(ContrastiveEncoder, frozen(contrastive))
        self.simulation = replace(self.simulation, seed=seed)

    def parts(self) -> dict[str, Pretrained]:
        """Both networks, and the encoder that they listen to; a text tower of CLIP stays where it is."""
        words: dict[str, Pretrained] = {"text": self.text} if isinstance(self.text, ByteTextEncoder) else {}
        return {"coarse": self.coarse, **words, "contrastive": self.contrastive}

    def restored(self, asked: Asked, text: Text | None = None) -> Tensor:
        """What the coarse network makes of what is given, unclamped. text: the prompts, encoded already."""
        with torch.no_grad():
            impression = self.contrastive(asked.given)
        width = self.contrastive.config.degradation_dim
        vector = told(text or self.text(asked.prompts), impression, degradation_dim=width, known=asked.known)
        made: Tensor = self.coarse(asked.given, vector)
        return made

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighed L1, a tenth of 1 - SSIM and the contrast of tasks."""
        asked = self.curriculum.drawn(self, batch)
        learns_words = "text" in self.trained
        words: Text = self.text((*asked.prompts, *asked.others) if learns_words else asked.prompts)
        made = self.restored(asked, Text(*(part[: len(asked.prompts)] for part in words))).float()
        error, before = ((image - asked.wanted).abs().mean((1, 2, 3)) for image in (made, asked.given))
        likeness = cast(Tensor, structural_similarity_index_measure(made, asked.wanted, data_range=1.0))
        self.log("train_l1", error.mean(), prog_bar=True)
        loss = (error * _USUAL_ERROR / (before + _LEAST_ERROR)).mean() + _SSIM_WEIGHT * (1 - likeness)
        if learns_words and len(set(asked.tasks)) < len(asked.tasks):
            numbers = torch.tensor(asked.tasks, device=error.device)
            apart = supervised_contrast(F.normalize(words.pooled, dim=1), numbers, temperature=_TEMPERATURE)
            self.log("train_text", apart, prog_bar=True)
            loss = loss + _TEXT_WEIGHT * apart
        return loss

    def evaluate(self, batch: Batch) -> None:
        """Gain of each task in dB over what is given."""
        for task in self.curriculum.judged(batch):
            asked = self.curriculum.asked(self, batch, task)
            # an example may be perfect as it is
            before = psnr(asked.given, asked.wanted).clamp(max=60)
            self.score(f"gain_{task.name}", psnr(self.restored(asked).clamp(0, 1), asked.wanted).clamp(max=60) - before)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Given, made and wanted, of a task each."""
        asked = self.curriculum.drawn(self, batch)
        return {"given": asked.given, "made": self.restored(asked).clamp(0, 1), "wanted": asked.wanted}


class PromptedControlStage(Stage):
    """LPFM's second stage: U-Net, control branch and fusion learn to predict the noise in latents of what is wanted, for all tasks at once.

    The branch sees what the coarse network makes of what is given, or that and the given image where it has twice as many channels. Text
    encoder, coarse network, contrastive encoder and autoencoder are frozen. learns: "all" of U-Net, control branch and fusion; "control"
    leaves the U-Net as it is, which must have met prompts then; "inlets" trains of both networks that alone by which words, vectors and
    conditions come in, so that the rest can be shared with the system it was taken from, see `LPFM.save_pretrained`. watched: tasks whose
    images validation makes, the first and the last of those trained unless given.
    """

    trained: tuple[str, ...] = ("control", "fusion")

    def __init__(
        self,
        system: LPFM,
        *,
        curriculum: Curriculum | None = None,
        learns: Learns = "all",
        watched: Sequence[str] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        seed: int = 0,
    ):
        self.curriculum = curriculum or Curriculum()
        trained = self.curriculum.trained
        self.watched = [trained[0], trained[-1]] if watched is None else [named(trained, name) for name in watched]
        pairs = named(self.curriculum.tasks, self.curriculum.pairs_task)
        self.figures = ("mse", *dict.fromkeys(f"gain_{task.name}" for task in (*self.watched, pairs)))
        super().__init__(optimizer=optimizer, schedule=schedule)
        if learns not in get_args(Learns):
            raise ValueError(f"learns={learns!r} is unknown; expected one of {', '.join(get_args(Learns))}")
        self.system, denoiser = system, system.sampler.denoiser
        for part in (system.text, system.coarse, system.contrastive, system.sampler.autoencoder):
            if part is not None:
                frozen(part)
        if learns == "control":
            frozen(denoiser.unet)
        else:
            self.trained = ("control", "unet", "fusion")
        if learns == "inlets":
            for network in (denoiser.unet, denoiser.control):
                for name, parameter in network.named_parameters():
                    parameter.requires_grad_(any(inlet in name for inlet in _INLETS))
        self.simulation = replace(self.simulation, seed=seed)

    def parts(self) -> dict[str, Pretrained]:
        """The whole system."""
        return self.system.parts()

    def settings(self) -> SamplingSettings:
        """How it samples."""
        return self.system.settings

    def on_train_epoch_start(self) -> None:
        """Frozen parts of the system stay in evaluation mode too."""
        for module in (self.system.text, self.system.coarse, self.system.contrastive, self.system.sampler.autoencoder):
            if module is not None:
                module.eval()
        if "unet" not in self.trained:
            self.system.sampler.denoiser.unet.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean squared error of what is predicted, at steps drawn evenly."""
        asked, process = self.curriculum.drawn(self, batch), self.system.settings.process
        t = torch.stack([torch.randint(process.steps, (), generator=own) for own in self.streams(batch.key, salt=_TIME)])
        loss = self._errors(batch, asked, t.to(asked.given.device)).mean()
        self.log("train_mse", loss, prog_bar=True)
        return loss

    def evaluate(self, batch: Batch) -> None:
        """The error over some steps, and the gain in dB of the watched tasks over what is given."""
        steps = self.system.settings.process.steps
        for share in _VALIDATION_SHARES:
            t = torch.full((len(batch.key),), int(share * steps), device=batch.key.device)
            self.score("mse", self._errors(batch, self.curriculum.drawn(self, batch), t), progress_bar=True)
        for task in self.curriculum.judged(batch) if isinstance(batch, PairBatch) else self.watched:
            asked = self.curriculum.asked(self, batch, task)
            made = self._made(asked, task)
            before = psnr(asked.given, asked.wanted).clamp(max=60)
            self.score(f"gain_{task.name}", psnr(made, asked.wanted).clamp(max=60) - before, progress_bar=True)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Given, made and wanted of the last watched task."""
        task = self.curriculum.judged(batch)[0] if isinstance(batch, PairBatch) else self.watched[-1]
        asked = self.curriculum.asked(self, batch, task)
        return {"given": asked.given, "made": self._made(asked, task), "wanted": asked.wanted}

    def _made(self, asked: Asked, task: Task) -> Tensor:
        """What the system makes of what is given, at its size."""
        made: Tensor = self.system(asked.given, spec_of(self.curriculum.tasks, task=task.name), scale=1.0)
        return made

    def _errors(self, batch: Batch, asked: Asked, t: Tensor) -> Tensor:
        """Mean squared error of each image."""
        process, autoencoder = self.system.settings.process, self.system.sampler.autoencoder
        with torch.no_grad():
            latent = autoencoder.encode(asked.wanted, noise=_normal(batch, self, autoencoder, asked.wanted, salt=_POSTERIOR))
            text, impression = self.system.text(asked.prompts), self._impression(asked.given)
            vector = told(text, impression, degradation_dim=self.system.fusion.config.degradation_dim, known=asked.known)
            condition = autoencoder.encode(self.system.coarse(asked.given, vector))
            if self.system.sampler.sees_given:
                condition = torch.cat([condition, autoencoder.encode(asked.given)], dim=1)
        noise = _normal(batch, self, autoencoder, asked.wanted, salt=_NOISE)
        guidance = self.system.fusion(text, impression, known=asked.known)
        state = process.noised(latent, t, noise)
        predicted = self.system.sampler.denoiser(state, t, condition, context=guidance.context, vector=guidance.vector)
        return (predicted.float() - process.target(latent, noise, t)).square().flatten(1).mean(dim=1)

    def _impression(self, image: Tensor) -> Impression | None:
        encoder = self.system.contrastive
        return None if encoder is None else self.system.fusion.averaged(encoder(image), image)


def _normal(batch: Batch, stage: Stage, autoencoder: LatentAutoencoder, image: Tensor, *, salt: int) -> Tensor:
    """Standard normal noise for the latents of images, an image's by its own stream."""
    shape = (autoencoder.channels, image.shape[-2] // autoencoder.factor, image.shape[-1] // autoencoder.factor)
    return torch.stack([torch.randn(shape, generator=own) for own in stage.streams(batch.key, salt=salt)]).to(image)
