"""Restore out-of-focus, noisy, low-resolution or differently stained pathology images.

The public names below are loaded when they are first used, so that importing the package costs nothing of torch, timm or lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pathorestore.version import __version__

if TYPE_CHECKING:
    from pathorestore.degradations.optical import simulate_stack as simulate_stack
    from pathorestore.degradations.recipes import Setting as Setting
    from pathorestore.degradations.stain import RandStainNA as RandStainNA
    from pathorestore.diffusion.resshift import ResShift as ResShift
    from pathorestore.functional.optics import Optics as Optics
    from pathorestore.models.contrastive import (
        ContrastiveEncoder as ContrastiveEncoder,
        ContrastiveEncoderConfig as ContrastiveEncoderConfig,
    )
    from pathorestore.models.defocus import DefocusEstimator as DefocusEstimator, DefocusEstimatorConfig as DefocusEstimatorConfig
    from pathorestore.models.encoders import TimmEncoder as TimmEncoder, TinyEncoder as TinyEncoder, TinyEncoderConfig as TinyEncoderConfig
    from pathorestore.models.implicit_decoders import (
        ImplicitDecoderConfig as ImplicitDecoderConfig,
        LIIFDecoder as LIIFDecoder,
        LTEDecoder as LTEDecoder,
    )
    from pathorestore.models.iste import TextureDecoder as TextureDecoder, TextureDecoderConfig as TextureDecoderConfig
    from pathorestore.models.optics_prompt import OpticsPrompt as OpticsPrompt, OpticsPromptConfig as OpticsPromptConfig
    from pathorestore.models.pdiffusion import PDiffusion as PDiffusion, PDiffusionConfig as PDiffusionConfig
    from pathorestore.models.pformer import (
        PFormer as PFormer,
        PFormerConfig as PFormerConfig,
        Restormer as Restormer,
        RestormerConfig as RestormerConfig,
    )
    from pathorestore.models.prompts import (
        EdgePrompt as EdgePrompt,
        EdgePromptConfig as EdgePromptConfig,
        PathologyPrompt as PathologyPrompt,
        PathologyPromptConfig as PathologyPromptConfig,
        Prompter as Prompter,
    )
    from pathorestore.models.prompted import (
        FusionConfig as FusionConfig,
        PromptedRestormer as PromptedRestormer,
        PromptedRestormerConfig as PromptedRestormerConfig,
        PromptedSwinIR as PromptedSwinIR,
        PromptedSwinIRConfig as PromptedSwinIRConfig,
        PromptFusion as PromptFusion,
    )
    from pathorestore.models.swinir import SwinIR as SwinIR, SwinIRConfig as SwinIRConfig
    from pathorestore.models.text import (
        ByteTextConfig as ByteTextConfig,
        ByteTextEncoder as ByteTextEncoder,
        ClipTextEncoder as ClipTextEncoder,
    )
    from pathorestore.pipelines.controlled import SamplingSettings as SamplingSettings
    from pathorestore.pipelines.histo_diffusion import HistoDiffusion as HistoDiffusion, HistoDiffusionConfig as HistoDiffusionConfig
    from pathorestore.pipelines.iste import ISTE as ISTE, ISTEConfig as ISTEConfig
    from pathorestore.pipelines.lpfm import LPFM as LPFM, LPFMConfig as LPFMConfig
    from pathorestore.pipelines.mop import MoPRestorer as MoPRestorer
    from pathorestore.pipelines.refine import DiffusionRefiner as DiffusionRefiner, FineSettings as FineSettings, KeepCoarse as KeepCoarse
    from pathorestore.pipelines.tiled import TiledRestorer as TiledRestorer

_HOMES = {
    "ByteTextConfig": "models.text",
    "ByteTextEncoder": "models.text",
    "ClipTextEncoder": "models.text",
    "FusionConfig": "models.prompted",
    "PromptFusion": "models.prompted",
    "PromptedRestormer": "models.prompted",
    "PromptedRestormerConfig": "models.prompted",
    "PromptedSwinIR": "models.prompted",
    "PromptedSwinIRConfig": "models.prompted",
    "ContrastiveEncoder": "models.contrastive",
    "ContrastiveEncoderConfig": "models.contrastive",
    "DefocusEstimator": "models.defocus",
    "DefocusEstimatorConfig": "models.defocus",
    "DiffusionRefiner": "pipelines.refine",
    "FineSettings": "pipelines.refine",
    "EdgePrompt": "models.prompts",
    "EdgePromptConfig": "models.prompts",
    "HistoDiffusion": "pipelines.histo_diffusion",
    "HistoDiffusionConfig": "pipelines.histo_diffusion",
    "ISTE": "pipelines.iste",
    "ISTEConfig": "pipelines.iste",
    "ImplicitDecoderConfig": "models.implicit_decoders",
    "KeepCoarse": "pipelines.refine",
    "LIIFDecoder": "models.implicit_decoders",
    "LTEDecoder": "models.implicit_decoders",
    "LPFM": "pipelines.lpfm",
    "LPFMConfig": "pipelines.lpfm",
    "MoPRestorer": "pipelines.mop",
    "Optics": "functional.optics",
    "OpticsPrompt": "models.optics_prompt",
    "OpticsPromptConfig": "models.optics_prompt",
    "PDiffusion": "models.pdiffusion",
    "PDiffusionConfig": "models.pdiffusion",
    "PFormer": "models.pformer",
    "PFormerConfig": "models.pformer",
    "PathologyPrompt": "models.prompts",
    "PathologyPromptConfig": "models.prompts",
    "Prompter": "models.prompts",
    "RandStainNA": "degradations.stain",
    "ResShift": "diffusion.resshift",
    "Restormer": "models.pformer",
    "RestormerConfig": "models.pformer",
    "SamplingSettings": "pipelines.controlled",
    "Setting": "degradations.recipes",
    "SwinIR": "models.swinir",
    "SwinIRConfig": "models.swinir",
    "TextureDecoder": "models.iste",
    "TextureDecoderConfig": "models.iste",
    "TiledRestorer": "pipelines.tiled",
    "TimmEncoder": "models.encoders",
    "TinyEncoder": "models.encoders",
    "TinyEncoderConfig": "models.encoders",
    "simulate_stack": "degradations.optical",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """Import the module that holds a public name, the first time it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
