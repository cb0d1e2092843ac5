"""Parts trained by earlier stages, for configurations to name.

They are read from a folder of parts, from an embedded system by its name, such as "histo-diffusion-tiny", or, by "embedded", from the
default.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from pathorestore.hub import EMBEDDED_WEIGHTS, Pretrained, embedded_names, load_strictly, stored_class
from pathorestore.models.autoencoder import LatentAutoencoder
from pathorestore.models.contrastive import ContrastiveEncoder
from pathorestore.models.controlled import ControlNet, LatentUNet
from pathorestore.models.defocus import DefocusEstimator
from pathorestore.models.encoders import PathologyEncoder, TinyEncoder
from pathorestore.models.optics_prompt import NoOptics, OpticsPrompt
from pathorestore.models.pdiffusion import PDiffusion
from pathorestore.models.pformer import PFormer
from pathorestore.models.prompted import FusionConfig, PromptedCoarse, PromptedRestormer, PromptedSwinIR, PromptFusion
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, Prompter
from pathorestore.models.stable_diffusion import load_stable_diffusion
from pathorestore.models.swinir import SwinIR
from pathorestore.models.text import ByteTextEncoder, ClipTextEncoder
from pathorestore.pipelines.controlled import SamplingSettings
from pathorestore.pipelines.lpfm import LPFM
from pathorestore.pipelines.mop import default_folder

P = TypeVar("P", bound=Pretrained)
Folder = str | os.PathLike[str]
EMBEDDED = "embedded"
_STAGES: Mapping[str, str] = {
    "encoder": "encoder",
    "contrastive": "contrastive",
    "defocus": "defocus",
    "pathology": "pathology",
    "edge": "pdiffusion",
    "coarse": "pformer",
    "fine": "pdiffusion",
    "restoration": "restoration",
    "autoencoder": "autoencoder",
    "unet": "latent_unet",
    "control": "control",
    "text": "prompted_coarse",
}


def trained_encoder(folder: Folder = EMBEDDED) -> TinyEncoder:
    """The pathology encoder of a folder of parts; "embedded" names the weights that ship with the package."""
    return _part(TinyEncoder, folder, "encoder")


def trained_defocus(folder: Folder = EMBEDDED) -> DefocusEstimator:
    """The defocus estimator of a folder of parts."""
    return _part(DefocusEstimator, folder, "defocus")


def trained_pathology(folder: Folder = EMBEDDED) -> PathologyPrompt:
    """The pathology prompt of a folder of parts, to train it further."""
    return _part(PathologyPrompt, folder, "pathology")


def trained_coarse(folder: Folder = EMBEDDED) -> PFormer:
    """The coarse stage of a folder of parts: to fine-tune it, or as what the fine stage starts from."""
    return _part(PFormer, folder, "coarse")


def trained_fine(folder: Folder = EMBEDDED) -> PDiffusion:
    """The fine stage of a folder of parts, to train it further."""
    return _part(PDiffusion, folder, "fine")


def trained_contrastive(folder: Folder) -> ContrastiveEncoder:
    """The contrastive encoder of a folder of parts."""
    return _part(ContrastiveEncoder, folder, "contrastive")


def trained_restoration(folder: Folder) -> SwinIR:
    """The restoration module of a folder of parts."""
    return _part(SwinIR, folder, "restoration")


def trained_autoencoder(folder: Folder) -> LatentAutoencoder:
    """The autoencoder of a folder of parts."""
    return _part(LatentAutoencoder, folder, "autoencoder")


def trained_unet(folder: Folder) -> LatentUNet:
    """The latent U-Net of a folder of parts."""
    return _part(LatentUNet, folder, "unet")


def control_of(folder: Folder) -> ControlNet:
    """A control branch that begins as a copy of the latent U-Net of a folder of parts."""
    return ControlNet.from_unet(trained_unet(folder))


def prompted_system(
    folder: Folder, *, diffusion: Folder, settings: SamplingSettings | None = None, fusion: FusionConfig | None = None, hint: bool = False
) -> LPFM:
    """The start of an `LPFM`: encoders and coarse network of a folder of parts, autoencoder, U-Net and control branch of another.

    These two have never been told a vector, and begin as they are without one. fusion: sizes of a fresh fusion; those of the tiny
    system unless given. hint: let a fresh control branch see the given image too.
    """
    sizes = fusion or FusionConfig.tiny()
    unet = _with_vector(trained_unet(diffusion), sizes.vector_dim)
    if hint:
        control = ControlNet.from_unet(unet, condition_channels=2 * unet.config.channels)
    else:
        control = _with_vector(_part(ControlNet, diffusion, "control"), sizes.vector_dim)
    parts = {"unet": unet, "control": control, "autoencoder": trained_autoencoder(diffusion), "fusion": PromptFusion(sizes)}
    parts |= {"coarse": trained_prompted_coarse(folder), "text": trained_text(folder)}
    return LPFM.from_parts(parts | {"contrastive": trained_contrastive(folder)}, settings or SamplingSettings())


def prompted_on_published(folder: Folder, *, published: Folder, settings: SamplingSettings | None = None, hint: bool = False) -> LPFM:
    """The same on Stable Diffusion 2.1-base in a local folder: its autoencoder, U-Net and text tower, and a control branch that copies it.

    The coarse network of `folder` must have learned with that text tower.
    """
    found, text, contrastive = load_stable_diffusion(published), ClipTextEncoder(published), trained_contrastive(folder)
    sizes = replace(
        FusionConfig.paper(),
        text_dim=text.dim,
        image_dim=contrastive.dim,
        degradation_dim=contrastive.config.degradation_dim,
        context_dim=found.unet.config.context_dim,
    )
    unet = _with_vector(found.unet, sizes.vector_dim)
    control = ControlNet.from_unet(unet, condition_channels=(2 if hint else 1) * unet.config.channels)
    parts = {"unet": unet, "control": control, "autoencoder": found.autoencoder, "fusion": PromptFusion(sizes)}
    parts |= {"coarse": trained_prompted_coarse(folder), "contrastive": contrastive}
    return LPFM.from_parts(parts, settings or SamplingSettings(), text=text)


def trained_text(folder: Folder) -> ByteTextEncoder:
    """The text encoder of a folder of parts."""
    return _part(ByteTextEncoder, folder, "text")


def trained_prompted_coarse(folder: Folder) -> PromptedCoarse:
    """The first stage of a folder of parts that takes prompts, to train it further, or as what the second stage starts from."""
    if stored_class(_root(folder) / "coarse") == PromptedRestormer.__name__:
        return _part(PromptedRestormer, folder, "coarse", stage="prompted_coarse")
    return _part(PromptedSwinIR, folder, "coarse", stage="prompted_coarse")


N = TypeVar("N", LatentUNet, ControlNet)


def _with_vector(part: N, vector_dim: int) -> N:
    told = type(part)(replace(part.config, vector_dim=vector_dim))
    fresh = tuple(name for name in told.state_dict() if ".class_embedding." in name)
    load_strictly(told, part.state_dict(), source="its stage without a prompt", fresh=fresh)
    return told


def published_unet(folder: Folder) -> LatentUNet:
    """The U-Net of Stable Diffusion 2.1-base in a local folder, see `load_stable_diffusion`."""
    return load_stable_diffusion(folder).unet


def published_autoencoder(folder: Folder) -> LatentAutoencoder:
    """The autoencoder of Stable Diffusion 2.1-base in a local folder."""
    return load_stable_diffusion(folder).autoencoder


def control_of_published(folder: Folder) -> ControlNet:
    """A control branch that begins as a copy of the U-Net of Stable Diffusion 2.1-base in a local folder."""
    return ControlNet.from_unet(published_unet(folder))


def trained_prompter(
    folder: Folder = EMBEDDED,
    *,
    encoder: nn.Module | None = None,
    edge: EdgePromptConfig | None = None,
    optics: OpticsPrompt | None = None,
) -> Prompter:
    """The prompts of a folder of parts.

    encoder: a `PathologyEncoder` instead of the folder's, for foundation models, which are never copied there. edge: sizes of a fresh
    edge prompt where the folder holds none yet; it learns with the fine stage. optics: an optics prompt in place of the folder's own.
    """
    root = _root(folder)
    defocus = trained_defocus(folder)
    if (root / "edge" / "config.json").exists():
        edge_prompt = _part(EdgePrompt, folder, "edge")
    else:
        edge_prompt = EdgePrompt(edge or EdgePromptConfig(defocus_dim=defocus.dim))
    if optics is None and (root / "optics" / "config.json").exists():
        optics = OpticsPrompt.from_pretrained(root / "optics")
    chosen = cast(PathologyEncoder, encoder or trained_encoder(folder))
    return Prompter(chosen, defocus, trained_pathology(folder), edge_prompt, optics or NoOptics())


def _root(folder: Folder) -> Path:
    if str(folder) == EMBEDDED:
        return default_folder()
    # a local folder goes before the weights of the package, as everywhere
    return EMBEDDED_WEIGHTS / folder if str(folder) in embedded_names() and not Path(folder).exists() else Path(folder)


def _part(cls: type[P], folder: Folder, name: str, *, stage: str = "") -> P:
    home = _root(folder) / name
    if not (home / "config.json").exists():
        config = f"{stage or _STAGES[name]}_tiny"
        raise FileNotFoundError(
            f"{home} holds no trained {name}; train it first (pathorestore fit --config {config}), export it to that folder "
            f"(pathorestore export CHECKPOINT -o {folder}), or name another folder; '{EMBEDDED}' is the weights of the package"
        )
    return cast(P, cast(Any, cls).from_pretrained(home).train())
