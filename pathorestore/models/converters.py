"""Published checkpoints, supplied by the user, as state dicts of this package's networks.

Nothing is downloaded or shipped: the licences of these files are not this package's, and each function returns the one that applies. Files
are read as tensors only (`weights_only=True`, or safetensors), and names and shapes are checked before anything is returned.
"""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pathorestore.hub import WeightsError, check_fit, load_weights
from pathorestore.models.controlled import ControlNet, ControlNetConfig
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.pformer import Restormer, RestormerConfig
from pathorestore.models.swinir import SwinIR, SwinIRConfig, without_published_buffers

RESTORMER_LICENCE = (
    "Restormer weights: Academic Public License of their authors, non-commercial; modified copies stay under it. "
    "https://github.com/swz30/Restormer"
)
RESSHIFT_LICENCE = "ResShift weights: NTU S-Lab License 1.0, non-commercial. https://github.com/zsyOAOA/ResShift"
RESNET_LICENCE = (
    "torchvision's ResNet-34 weights: BSD-3-Clause code, trained on ImageNet, whose own terms are for non-commercial research. "
    "https://github.com/pytorch/vision"
)
DIFFBIR_LICENCE = (
    "DiffBIR weights: Apache-2.0, their control branch a derivative of Stable Diffusion 2.1, so CreativeML Open RAIL++-M applies too. "
    "https://github.com/XPixelGroup/DiffBIR"
)

ROUTER = ("ffn.router.weight", "ffn.router.bias")
"""What `pformer_from_restormer` leaves to the P-former's own initialisation: the `fresh` argument of `pathorestore.hub.load_strictly`."""

HEADS = ("fc.weight", "fc.bias", "fc2.weight", "fc2.bias", "num_batches_tracked")
"""What `load_resnet34_checkpoint` leaves to the estimator's own initialisation."""


class PublicCheckpoint(NamedTuple):
    """state: tensors by this package's names. licence: the terms of the file, to be shown to whoever loads it."""

    state: dict[str, Tensor]
    licence: str


def load_restormer_checkpoint(path: str | os.PathLike[str], *, config: RestormerConfig | None = None) -> PublicCheckpoint:
    """A published Restormer file (single-image defocus deblurring or another RGB task) as the state of `Restormer(config)`.

    config: the file's sizes, the paper's if None. Raises WeightsError for a file that holds more than tensors, lacks the key `params` or
    does not fit, such as the dual-pixel variant.
    """
    stored = _read(path)
    params = stored.get("params")
    if not isinstance(params, Mapping):
        raise WeightsError(f"{path} holds {_keys(stored)}; expected a Restormer file with the key params")
    state = _tensors(params, path)
    if "skip_conv.weight" in state:
        raise WeightsError(
            f"{path} is Restormer's dual-pixel variant (6 input channels); expected the single-image defocus deblurring file"
        )
    check_fit(_shapes_of_restormer(config or RestormerConfig.paper()), state, source=str(path))
    return PublicCheckpoint(state, RESTORMER_LICENCE)


def pformer_from_restormer(restormer: Mapping[str, Tensor], *, experts: int) -> dict[str, Tensor]:
    """The state of a P-former with gate="mul" that computes what the Restormer does, whatever its routers say.

    The first half of every depthwise kernel becomes each of the `experts` equal experts, the second half the main one; since the router's
    weights sum to one, the mixture is the first half again. Routers are not in the result: load it with
    `load_strictly(pformer, state, source=..., fresh=ROUTER)`. Before training, add a little noise to `ffn.experts`:
    equal experts learn alike. Raises ValueError for experts < 1 or a state without `ffn.dwconv.weight`.
    """
    if experts < 1:
        raise ValueError(f"experts must be at least 1, got {experts}")
    if not any(name.endswith("ffn.dwconv.weight") for name in restormer):
        raise ValueError("this state holds no ffn.dwconv.weight; expected a Restormer's, see load_restormer_checkpoint")
    state: dict[str, Tensor] = {}
    for name, tensor in restormer.items():
        block, dwconv, _ = name.partition("dwconv.weight")
        if block.endswith("ffn.") and dwconv:
            to_experts, to_main = tensor.chunk(2)
            state[f"{block}experts"] = to_experts[None].repeat(experts, 1, 1, 1, 1)
            state[f"{block}main.weight"] = to_main.clone()
        else:
            state[name] = tensor
    return state


def load_resshift_checkpoint(path: str | os.PathLike[str]) -> PublicCheckpoint:
    """A published ResShift U-Net file as a state dict by ResShift's own names, which this package's U-Net shares.

    Accepts the raw state dict or one under `state_dict`, with or without the prefixes `module.` and `_orig_mod.`; the index and mask
    buffers of its window attention are dropped, since ours are computed. Fit it to a network with `pathorestore.hub.load_strictly`.
    """
    stored = _read(path)
    inner = stored.get("state_dict", stored)
    if not isinstance(inner, Mapping):
        raise WeightsError(f"{path} holds {_keys(stored)}; expected a ResShift state dict, raw or under the key state_dict")
    state = {_bare(name): tensor for name, tensor in _tensors(inner, path).items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith(("relative_position_index", "attn_mask"))}
    if "input_blocks.0.0.weight" not in state:
        raise WeightsError(f"{path} holds {_keys(state)}; expected a ResShift U-Net with input_blocks.0.0.weight")
    return PublicCheckpoint(state, RESSHIFT_LICENCE)


def load_resnet34_checkpoint(path: str | os.PathLike[str]) -> PublicCheckpoint:
    """An ImageNet ResNet-34 file of torchvision or timm as the trunk of `DefocusEstimator(DefocusEstimatorConfig.paper())`.

    The classifier `fc` is dropped: ours has another shape. Load it with `load_strictly(estimator, state, source=..., fresh=HEADS)`.
    """
    state = {name: tensor for name, tensor in _tensors(_read(path), path).items() if not name.startswith("fc.")}
    with torch.device("meta"):
        estimator = DefocusEstimator(DefocusEstimatorConfig.paper())
    check_fit(estimator, state, source=str(path), fresh=HEADS)
    return PublicCheckpoint(state, RESNET_LICENCE)


def load_diffbir_restoration(path: str | os.PathLike[str], *, config: SwinIRConfig | None = None) -> PublicCheckpoint:
    """The first stage of a DiffBIR file, alone or within a whole model, as the state of `SwinIR(SwinIRConfig.restoration())`."""
    state = without_published_buffers(_part(path, "preprocess_model."))
    with torch.device("meta"):
        network = SwinIR(config or SwinIRConfig.restoration())
    check_fit(network, state, source=str(path))
    return PublicCheckpoint(state, DIFFBIR_LICENCE)


def load_diffbir_control(path: str | os.PathLike[str], *, config: ControlNetConfig | None = None) -> PublicCheckpoint:
    """The control branch of a DiffBIR file, alone or within a whole model, as the state of `ControlNet(config)`, the paper's if None.

    Its first convolution, of state and condition side by side, becomes the two whose sum it is. Raises WeightsError for other files.
    """
    config = config or ControlNetConfig.paper()
    stored = _part(path, "control_model.")
    state = {f"model.{control_name(name, config)}": tensor for name, tensor in stored.items()}
    first = state.get("model.conv_in.weight")
    if first is None or first.shape[1] != config.channels + config.condition_channels:
        raise WeightsError(
            f"{path} holds {_keys(stored)}; expected a control branch with input_blocks.0.0.weight of "
            f"{config.channels} + {config.condition_channels} channels"
        )
    state["model.conv_in.weight"] = first[:, : config.channels].clone()
    state["model.controlnet_cond_embedding.weight"] = first[:, config.channels :].clone()
    with torch.device("meta"):
        branch = ControlNet(config)
    check_fit(branch, state, source=str(path))
    return PublicCheckpoint(state, DIFFBIR_LICENCE)


def control_name(name: str, config: ControlNetConfig) -> str:
    """What diffusers calls a tensor of a control branch in the layout of latent diffusion's own code; foreign names stay as they are.

    There the blocks of all levels are counted through: the first convolution, then for each level its layers and, but for the last
    level, what halves the sides.
    """
    kind, _, rest = name.partition(".")
    if kind in _CONTROL_PLACES:
        return next((new + rest.removeprefix(old) for old, new in _CONTROL_PLACES[kind].items() if rest.startswith(old)), name)
    number, _, inner = rest.partition(".")
    if kind == "zero_convs":
        return f"controlnet_down_blocks.{number}.{inner.removeprefix('0.')}"
    if kind == "middle_block":
        place = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}.get(number, number)
        return f"mid_block.{place}.{_layer_name(inner)}"
    if kind != "input_blocks" or not number.isdecimal():
        return name
    level, layer = divmod(int(number) - 1, config.layers + 1)
    part, _, inner = inner.partition(".")
    if number == "0":
        return f"conv_in.{inner}"
    if layer == config.layers:
        return f"down_blocks.{level}.downsamplers.0.{inner.replace('op.', 'conv.')}"
    return f"down_blocks.{level}.{'attentions' if part == '1' else 'resnets'}.{layer}.{_layer_name(inner)}"


_CONTROL_PLACES = {
    "time_embed": {"0.": "time_embedding.linear_1.", "2.": "time_embedding.linear_2."},
    "middle_block_out": {"0.": "controlnet_mid_block."},
}
_RESIDUAL_NAMES = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}


def _layer_name(inner: str) -> str:
    """Of a tensor within a residual block; those of attention bear the same names."""
    return next((new + inner.removeprefix(old) for old, new in _RESIDUAL_NAMES.items() if inner.startswith(old)), inner)


def _part(path: str | os.PathLike[str], prefix: str) -> dict[str, Tensor]:
    """The tensors of a part of a file, by their bare names: those with the prefix, or all where none has it."""
    stored = _read(path)
    inner = stored.get("state_dict", stored)
    if not isinstance(inner, Mapping):
        raise WeightsError(f"{path} holds {_keys(stored)}; expected a state dict, raw or under the key state_dict")
    bare = {_bare(name): value for name, value in inner.items()}
    chosen = {name.removeprefix(prefix): value for name, value in bare.items() if name.startswith(prefix)}
    return _tensors(chosen or bare, path)


def _read(path: str | os.PathLike[str]) -> dict[str, object]:
    file = Path(path)
    if not file.is_file():
        raise WeightsError(f"{file} is missing; expected a checkpoint that you downloaded from its authors")
    if file.suffix == ".safetensors":
        return dict(load_weights(file))
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{file} is no file of plain tensors; refuse to unpickle more than tensors ({_first_line(error)})") from error
    except (RuntimeError, EOFError) as error:
        raise WeightsError(f"{file} is truncated or damaged ({_first_line(error)}); expected a file written by torch.save") from error
    if not isinstance(stored, dict):
        raise WeightsError(f"{file} holds a {type(stored).__name__}; expected a dict of tensors")
    return stored


def _tensors(state: Mapping[str, object], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(f"{path} holds {', '.join(map(str, others[:6]))} among its tensors; expected a state dict, tensors only")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _shapes_of_restormer(config: RestormerConfig) -> Restormer:
    with torch.device("meta"):
        return Restormer(config)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _bare(name: str) -> str:
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name


def _keys(stored: Mapping[str, object]) -> str:
    return f"the keys {', '.join(map(str, list(stored)[:6])) or 'none'}"
