"""LPFM: image and prompt -> prompted coarse network -> prompted latent diffusion; one set of weights for all tasks.

Of the paper (a low-level pathology foundation model) we know the abstract; this is our definition of it. Its published code path, without
the image encoder, is the special case `contrastive=None`. At work on an image it is a `HistoDiffusion` whose parts are told the prompt.
"""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from pathorestore.data.task_prompts import TaskSpec, UnknownPrompt, parse, spec_of
from pathorestore.data.tasks import Task, builtin_tasks
from pathorestore.degradations.composed import Theta
from pathorestore.degradations.resize import resized
from pathorestore.hub import ModelCard, Pretrained, load_parts, load_settings, locate, model_name, save_parts, weights_sha256
from pathorestore.image import check_image
from pathorestore.models.autoencoder import AutoencoderConfig, LatentAutoencoder
from pathorestore.models.contrastive import ContrastiveEncoder, ContrastiveEncoderConfig, Impression
from pathorestore.models.controlled import ControlNet, LatentUNet, LatentUNetConfig
from pathorestore.models.pformer import RestormerConfig
from pathorestore.models.prompted import (
    FusionConfig,
    PromptedCoarse,
    PromptedRestormer,
    PromptedRestormerConfig,
    PromptedSwinIR,
    PromptedSwinIRConfig,
    PromptFusion,
)
from pathorestore.models.swinir import SwinIRConfig
from pathorestore.models.text import ByteTextConfig, ByteTextEncoder, TextEncoder
from pathorestore.pipelines.controlled import ControlledSampler, SamplingSettings
from pathorestore.pipelines.histo_diffusion import HistoDiffusion, HistoDiffusionConfig
from pathorestore.pipelines.restorer import Progress, silent

_SYSTEM = "LPFM"
_PARTS: dict[str, type[Pretrained] | tuple[type[Pretrained], ...]] = {
    "text": ByteTextEncoder,
    "contrastive": ContrastiveEncoder,
    "fusion": PromptFusion,
    "coarse": (PromptedSwinIR, PromptedRestormer),
    "autoencoder": LatentAutoencoder,
    "unet": LatentUNet,
    "control": ControlNet,
}
_SEEN_PX = 512  # of an image, around its middle, the contrastive encoder looks at so much


@dataclass(frozen=True, kw_only=True)
class LPFMConfig:
    """Sizes of an `LPFM` and how it works. hint: whether the control branch sees the given image too, beside the coarse one."""

    text: ByteTextConfig
    contrastive: ContrastiveEncoderConfig
    fusion: FusionConfig
    coarse: SwinIRConfig | RestormerConfig
    autoencoder: AutoencoderConfig
    unet: LatentUNetConfig
    settings: SamplingSettings
    hint: bool = False

    @classmethod
    def tiny(cls) -> "LPFMConfig":
        """5.9 M parameters, for laptops."""
        settings = replace(HistoDiffusionConfig.tiny().settings, sampler="dpm++", steps=5, colours="density")
        parts = (ByteTextConfig.tiny(), ContrastiveEncoderConfig.tiny(), FusionConfig.tiny())
        made = cls._on(HistoDiffusionConfig.tiny(), *parts, settings=settings)
        # a SwinIR on pixels unshuffled by 4 is too narrow, at this size, for noise of single pixels to come through
        return replace(made, coarse=PromptedRestormerConfig.tiny().restormer)

    @classmethod
    def base(cls) -> "LPFMConfig":
        """For one GPU."""
        made = cls._on(HistoDiffusionConfig.base(), ByteTextConfig.base(), ContrastiveEncoderConfig.base(), FusionConfig.base())
        return replace(made, coarse=PromptedRestormerConfig.base().restormer)

    @classmethod
    def paper(cls) -> "LPFMConfig":
        """On the sizes of Stable Diffusion 2.1-base."""
        return cls._on(HistoDiffusionConfig.paper(), ByteTextConfig.paper(), ContrastiveEncoderConfig.paper(), FusionConfig.paper())

    @classmethod
    def nano(cls) -> "LPFMConfig":
        """For tests."""
        return cls._on(HistoDiffusionConfig.nano(), ByteTextConfig.nano(), ContrastiveEncoderConfig.nano(), FusionConfig.nano())

    @classmethod
    def _on(
        cls,
        parts: HistoDiffusionConfig,
        text: ByteTextConfig,
        contrastive: ContrastiveEncoderConfig,
        fusion: FusionConfig,
        *,
        settings: SamplingSettings | None = None,
    ) -> "LPFMConfig":
        return cls(
            text=text,
            contrastive=contrastive,
            fusion=fusion,
            coarse=parts.restoration,
            autoencoder=parts.autoencoder,
            unet=parts.unet,
            settings=settings or parts.settings,
        )


class LPFM(nn.Module):
    """Does to images what a prompt says.

    text: any `TextEncoder`; only one of ours is saved with the rest, another must be handed to `from_pretrained`. contrastive: None leaves
    the image encoder out. tasks: whose words are known, see `pathorestore.data.tasks`; any other text is passed on with a warning.
    """

    def __init__(
        self,
        coarse: PromptedCoarse,
        text: TextEncoder,
        fusion: PromptFusion,
        sampler: ControlledSampler,
        *,
        contrastive: ContrastiveEncoder | None = None,
        tasks: Sequence[Task] | None = None,
        model_id: str = "custom",
        weights_hash: str = "none",
    ):
        super().__init__()
        widths = fusion.config.vector_dim, coarse.config.vector_dim, sampler.denoiser.unet.config.vector_dim
        if len(set(widths)) > 1 or fusion.config.context_dim != sampler.denoiser.unet.config.context_dim:
            raise ValueError(f"fusion, coarse network and U-Net must agree in vector_dim, got {widths}, and in context_dim")
        if text.dim != fusion.config.text_dim:
            raise ValueError(
                f"the text encoder is {text.dim} wide, and the fusion expects {fusion.config.text_dim}; take the one it learned"
            )
        if contrastive is not None:
            dims = (contrastive.dim, contrastive.config.degradation_dim)
            if dims != (fusion.config.image_dim, fusion.config.degradation_dim):
                raise ValueError(f"the image encoder gives {dims} values, and the fusion expects others; take the one it learned")
        self.coarse, self.text, self.fusion, self.sampler = coarse, cast(nn.Module, text), fusion, sampler
        self.contrastive = contrastive
        self.tasks = tuple(builtin_tasks() if tasks is None else tasks)
        self.model_id, self.weights_sha256 = model_id, weights_hash

    @classmethod
    def of(cls, config: LPFMConfig) -> Self:
        """A system with initial weights, whose control branch starts as a copy of the U-Net."""
        unet = LatentUNet(replace(config.unet, vector_dim=config.fusion.vector_dim))
        channels = config.autoencoder.channels
        control = ControlNet.from_unet(unet, condition_channels=2 * channels if config.hint else channels)
        sampler = ControlledSampler(LatentAutoencoder(config.autoencoder), unet, control, config.settings)
        width = config.fusion.vector_dim
        coarse: PromptedCoarse
        if isinstance(config.coarse, RestormerConfig):
            coarse = PromptedRestormer(PromptedRestormerConfig(restormer=config.coarse, vector_dim=width))
        else:
            coarse = PromptedSwinIR(PromptedSwinIRConfig(swinir=config.coarse, vector_dim=width))
        contrastive = ContrastiveEncoder(config.contrastive)
        return cls(coarse, ByteTextEncoder(config.text), PromptFusion(config.fusion), sampler, contrastive=contrastive)

    def forward(
        self,
        image: Tensor,
        prompt: str | TaskSpec | None = None,
        *,
        task: str | None = None,
        scale: float | None = None,
        theta: Theta | None = None,
        seed: int = 0,
        coarse_only: bool = False,
        progress: Progress = silent,
    ) -> Tensor:
        """Images b 3 h w in [0, 1] as a prompt wants them, or as the task of a name does, for H&E; clamped.

        prompt: words, or what `asked` gives. scale: of what comes out; else as the prompt says ("enlarge the H&E image 2.7 times"), or 1.
        theta: what was done to the images, one row each, in place of what the encoder thinks. coarse_only: the first stage alone.
        Raises ValueError for anything but one of prompt and task, and else as `HistoDiffusion.upscale`.
        """
        check_image(image)
        image = image.to(next(self.coarse.parameters()).device)
        spec = prompt if isinstance(prompt, TaskSpec) else self.asked(prompt, task=task, scale=scale)
        if theta is not None and (self.contrastive is None or len(theta.downscale) != len(image)):
            why = (
                "there is no encoder whose word it could replace"
                if self.contrastive is None
                else f"expected a row for each of {len(image)}"
            )
            raise ValueError(f"theta has {len(theta.downscale)} rows; {why}")
        scale, made = spec.scale if scale is None else scale, []
        for index in range(len(image)):
            one = image[index : index + 1]
            known = None if theta is None else Theta(*(row[index : index + 1] for row in theta))
            working = self.working(spec, self.impression(one, scale=scale, theta=known))
            if coarse_only:
                made.append(working.coarse(one, scale=scale))
            else:
                made.append(working.upscale(one, scale=scale, seed=seed, progress=progress))
        return torch.cat(made)

    def asked(self, prompt: str | None = None, *, task: str | None = None, source: str = "he", scale: float | None = None) -> TaskSpec:
        """What a prompt asks for, or the task of a name, whose images are stained with `source`.

        Words that no task has are passed on, with a warning. Raises ValueError for anything but one of prompt and task.
        """
        if (prompt is None) == (task is None):
            raise ValueError(f"give one of prompt and task; got prompt={prompt!r} and task={task!r}")
        spec = parse(prompt or "", self.tasks) if task is None else spec_of(self.tasks, task=task, source=source, scale=scale or 2.0)
        doubt = ""
        if spec.task is None:
            doubt = "is no known task's; it is passed on as it is, and what the model makes of it was never tested"
        elif spec.task.example is None or spec.source != "he":
            doubt = "asks for what is trained on photographed images alone; with other weights than your own expect nothing of it"
        if doubt:
            warnings.warn(f"the prompt {spec.text!r} {doubt}", UnknownPrompt, stacklevel=3)
        return spec

    @torch.no_grad()
    def impression(self, image: Tensor, *, scale: float = 1.0, theta: Theta | None = None) -> Impression | None:
        """What the encoder sees in the middle of one image 1 3 h w, made `scale` times as large; None without an encoder.

        theta: what was done to it, if known.
        """
        if self.contrastive is None:
            return None
        reach = math.ceil(_SEEN_PX / scale)
        top, left = (max(0, (side - reach) // 2) for side in image.shape[-2:])
        image = image[..., top : top + reach, left : left + reach].to(next(self.contrastive.parameters()).device).float()
        image = resized(image, (max(1, round(image.shape[-2] * scale)), max(1, round(image.shape[-1] * scale))))
        height, width = image.shape[-2:]
        part = self.sampler.settings.padded(image, max(height, 16), max(width, 16))
        seen = self.fusion.averaged(self.contrastive(part), part)
        return seen if theta is None else seen._replace(theta=theta.normalised().to(seen.theta))

    @torch.no_grad()
    def working(self, spec: TaskSpec, impression: Impression | None = None) -> HistoDiffusion:
        """The system under a prompt, for one image or its regions. impression: None is the prompt-only path."""
        guidance = self.fusion(self.text([spec.text]), impression)
        against = None if self.settings.guidance_scale == 1 else self.fusion(self.text([""]), impression)
        named = {"model_id": self.model_id, "weights_hash": self.weights_sha256}
        made = HistoDiffusion(_Told(self.coarse, guidance.vector), self.sampler.guided(guidance, against), **named)
        made.training = self.training  # the parts are those of this system, and stay as they are
        return made

    @property
    def settings(self) -> SamplingSettings:
        """How the diffusion works."""
        return self.sampler.settings

    def with_settings(self, settings: SamplingSettings) -> "LPFM":
        """The same parts, working otherwise."""
        denoiser = self.sampler.denoiser
        sampler = ControlledSampler(self.sampler.autoencoder, denoiser.unet, denoiser.control, settings)
        parts = (self.coarse, cast(TextEncoder, self.text), self.fusion, sampler)
        other = LPFM(*parts, contrastive=self.contrastive, tasks=self.tasks, model_id=self.model_id, weights_hash=self.weights_sha256)
        return other.train(self.training)

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any], settings: SamplingSettings, *, text: TextEncoder | None = None, **named: Any) -> Self:
        """A system of parts by the names of `parts`. text: where it is none of them. named: further arguments of the class.

        Raises ValueError where there is no text encoder.
        """
        words = text or parts.get("text")
        if words is None:
            raise ValueError(
                "there is no text encoder; hand in the one it was trained with, as text=ClipTextEncoder(FOLDER), or with --text FOLDER"
            )
        sampler = ControlledSampler(parts["autoencoder"], parts["unet"], parts["control"], settings)
        return cls(parts["coarse"], words, parts["fusion"], sampler, contrastive=parts.get("contrastive"), **named)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        card: ModelCard | None = None,
        dtype: torch.dtype | None = None,
        beside: str | None = None,
    ) -> None:
        """Write one sub-folder per part, and the settings. dtype: storage type of the weights, such as torch.float16.

        beside: an embedded system, such as "histo-diffusion-tiny", whose tensors that this one shares are not stored again.
        """
        save_parts(folder, self.parts(), system=_SYSTEM, settings=self.settings, card=card, dtype=dtype, beside=beside)

    def parts(self) -> dict[str, Pretrained]:
        """What is saved, by name."""
        denoiser = self.sampler.denoiser
        parts: dict[str, Pretrained] = {"coarse": self.coarse, "fusion": self.fusion, "autoencoder": self.sampler.autoencoder}
        parts |= {"unet": denoiser.unet, "control": denoiser.control}
        if self.contrastive is not None:
            parts["contrastive"] = self.contrastive
        if isinstance(self.text, ByteTextEncoder):
            parts["text"] = self.text
        return parts

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        text: TextEncoder | None = None,
        tasks: Sequence[Task] | None = None,
    ) -> Self:
        """Load from a folder written by `save_pretrained`, or from a hub repository at a pinned revision; in evaluation mode.

        text: the text encoder it was trained with, where that was not saved. Raises ValueError where none is there.
        """
        folder = locate(folder_or_repo_id, revision=revision)
        parts, settings = load_parts(folder, _PARTS, system=_SYSTEM), load_settings(folder, SamplingSettings, system=_SYSTEM)
        named = {"model_id": model_name(folder_or_repo_id), "weights_hash": weights_sha256(folder)}
        return cls.from_parts(parts, settings, text=text, tasks=tasks, **named).eval()


class _Told(nn.Module):
    """A coarse network that is told one thing, 1 v, whatever the image."""

    def __init__(self, coarse: PromptedCoarse, vector: Tensor):
        super().__init__()
        self.coarse, self.vector = coarse, vector

    @property
    def config(self) -> PromptedSwinIRConfig | PromptedRestormerConfig:
        """Of the network."""
        return self.coarse.config

    def forward(self, image: Tensor) -> Tensor:
        made: Tensor = self.coarse(image, self.vector.to(image.device).expand(len(image), -1))
        return made
