"""Training: one LightningModule per stage of MoP, data modules, callbacks. The only room that imports lightning.

The public names are loaded when they are first used; configurations name them as `pathorestore.training.PFormerStage` and so on.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pathorestore._torchvision import ensure_torchvision

ensure_torchvision()

if TYPE_CHECKING:
    from pathorestore.training.contrastive_stage import ContrastiveStage as ContrastiveStage
    from pathorestore.training.datamodules import PairedImages as PairedImages, SharpImages as SharpImages, SlidePatches as SlidePatches
    from pathorestore.training.iqa_stage import BlurredImages as BlurredImages, ClipIqaStage as ClipIqaStage
    from pathorestore.training.parts import (
        control_of as control_of,
        control_of_published as control_of_published,
        prompted_on_published as prompted_on_published,
        prompted_system as prompted_system,
        published_autoencoder as published_autoencoder,
        published_unet as published_unet,
        trained_autoencoder as trained_autoencoder,
        trained_contrastive as trained_contrastive,
        trained_coarse as trained_coarse,
        trained_defocus as trained_defocus,
        trained_encoder as trained_encoder,
        trained_fine as trained_fine,
        trained_pathology as trained_pathology,
        trained_prompted_coarse as trained_prompted_coarse,
        trained_prompter as trained_prompter,
        trained_restoration as trained_restoration,
        trained_text as trained_text,
        trained_unet as trained_unet,
    )
    from pathorestore.training.latent_stages import (
        AutoencoderStage as AutoencoderStage,
        ControlStage as ControlStage,
        LatentUNetStage as LatentUNetStage,
        RestorationModuleStage as RestorationModuleStage,
    )
    from pathorestore.training.prompt_stages import (
        DefocusStage as DefocusStage,
        EncoderStage as EncoderStage,
        PathologyPromptStage as PathologyPromptStage,
    )
    from pathorestore.training.prompted_stages import (
        Curriculum as Curriculum,
        PromptedCoarseStage as PromptedCoarseStage,
        PromptedControlStage as PromptedControlStage,
    )
    from pathorestore.training.restoration_stages import (
        PDiffusionStage as PDiffusionStage,
        PFormerStage as PFormerStage,
        RestormerStage as RestormerStage,
    )
    from pathorestore.training.schedules import (
        Constant as Constant,
        MilestoneDecay as MilestoneDecay,
        StepDecay as StepDecay,
        WarmupCosine as WarmupCosine,
    )
    from pathorestore.training.upscale_stage import ScaleSampling as ScaleSampling, UpscaleStage as UpscaleStage

_HOMES = {
    "BlurredImages": "iqa_stage",
    "ClipIqaStage": "iqa_stage",
    "Constant": "schedules",
    "ContrastiveStage": "contrastive_stage",
    "Curriculum": "prompted_stages",
    "PromptedCoarseStage": "prompted_stages",
    "PromptedControlStage": "prompted_stages",
    "prompted_on_published": "parts",
    "prompted_system": "parts",
    "DefocusStage": "prompt_stages",
    "EncoderStage": "prompt_stages",
    "PDiffusionStage": "restoration_stages",
    "PFormerStage": "restoration_stages",
    "PairedImages": "datamodules",
    "PathologyPromptStage": "prompt_stages",
    "RestormerStage": "restoration_stages",
    "SharpImages": "datamodules",
    "SlidePatches": "datamodules",
    "StepDecay": "schedules",
    "MilestoneDecay": "schedules",
    "ScaleSampling": "upscale_stage",
    "UpscaleStage": "upscale_stage",
    "WarmupCosine": "schedules",
    "AutoencoderStage": "latent_stages",
    "ControlStage": "latent_stages",
    "LatentUNetStage": "latent_stages",
    "RestorationModuleStage": "latent_stages",
    "control_of": "parts",
    "control_of_published": "parts",
    "published_autoencoder": "parts",
    "published_unet": "parts",
    "trained_autoencoder": "parts",
    "trained_contrastive": "parts",
    "trained_restoration": "parts",
    "trained_text": "parts",
    "trained_unet": "parts",
    "trained_coarse": "parts",
    "trained_defocus": "parts",
    "trained_encoder": "parts",
    "trained_fine": "parts",
    "trained_pathology": "parts",
    "trained_prompted_coarse": "parts",
    "trained_prompter": "parts",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    """Import the module that holds a public name, the first time it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
