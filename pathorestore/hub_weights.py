"""Tensors in files: safetensors, never unpickled. What a file has in common with weights embedded in the package need not be stored again.

Such a file names the other one, its hash and the tensors in its metadata, and is whole again when read.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pathorestore.atomic import write_atomic

SYSTEM_FILE, WEIGHTS_FILE = "system.json", "model.safetensors"
EMBEDDED_WEIGHTS = Path(__file__).resolve().parent / "weights"
_BESIDE, _BESIDE_SHA256, _BESIDE_TENSORS = "beside", "beside_sha256", "beside_tensors"


class WeightsError(ValueError):
    """A weights file or folder that cannot be used; the message names the file, what it holds and what to do."""


def embedded_names() -> list[str]:
    """The systems that ship with the package."""
    return sorted(path.parent.name for path in EMBEDDED_WEIGHTS.glob(f"*/{SYSTEM_FILE}"))


def weights_sha256(folder: str | os.PathLike[str]) -> str:
    """One hexadecimal hash over the names and bytes of all safetensors files of a folder tree, in name order.

    Raises WeightsError if there are none.
    """
    root = Path(folder)
    paths = sorted(root.rglob("*.safetensors"), key=lambda path: path.relative_to(root).as_posix())
    if not paths:
        raise WeightsError(f"{root} holds no safetensors file; expected a folder written by save_pretrained")
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.relative_to(root).as_posix()}\0{_sha256(path)}\n".encode())
    return total.hexdigest()


def save_weights(path: Path, state: Mapping[str, Tensor], *, beside: str | None = None) -> None:
    """Write tensors, through a temporary file.

    beside: an embedded part as system/part; tensors equal to its own are left out. What is not embedded is no such part.
    """
    from safetensors.torch import save

    metadata, own = {"format": "pt"}, dict(state)
    there = None if beside is None else EMBEDDED_WEIGHTS / beside / WEIGHTS_FILE
    if there is not None and there.is_file():
        common = [name for name, tensor in load_weights(there).items() if name in own and _same(own[name], tensor)]
        if common:
            own = {name: tensor for name, tensor in own.items() if name not in common}
            metadata = {_BESIDE: json.dumps({"part": beside, "sha256": _sha256(there), "tensors": common})}
    write_atomic(path, save(own, metadata=metadata))


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, those included that it shares with embedded weights.

    Raises WeightsError, unpickling nothing, for a file that is missing, foreign or damaged, or shares tensors with weights that are not
    here.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    if not file.is_file():
        raise WeightsError(f"{file} is missing; expected the weights that save_pretrained writes beside config.json")
    with file.open("rb") as stream:
        head = stream.read(9)
    if head[8:] != b"{":  # 8 bytes of header length, then a JSON object
        raise WeightsError(f"{file} is not a safetensors file ({_foreign_kind(head)}); refuse to unpickle: write it with save_pretrained")
    try:
        with safe_open(file, framework="pt") as opened:
            own, told = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{file} is truncated or damaged ({error}); expected a whole safetensors file: fetch it again") from error
    return {**_shared(file, told[_BESIDE]), **own} if _BESIDE in told else own


def _shared(file: Path, told: str) -> dict[str, Tensor]:
    """The tensors that a file has in common with the embedded weights it names. Raises WeightsError where these are missing or others."""
    try:
        held = json.loads(told)
        name, wanted, tensors = str(held["part"]), held["sha256"], list(held["tensors"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{file} is damaged: it does not say what it shares with other weights; fetch it again") from error
    # a file from elsewhere names weights of this package, and no other file of this machine
    system, _, part = name.partition("/")
    there = EMBEDDED_WEIGHTS / system / part / WEIGHTS_FILE
    if system not in embedded_names() or not re.fullmatch(r"\w+", part) or not there.is_file() or _sha256(there) != wanted:
        raise WeightsError(
            f"{file} shares tensors with the embedded weights {name} of another version of pathorestore; install that version, or ask for "
            "weights that were stored whole"
        )
    return {name: tensor for name, tensor in load_weights(there).items() if name in tensors}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _foreign_kind(head: bytes) -> str:
    if not head:
        return "it is empty"
    kinds = {
        b"PK\x03\x04": "a zip archive, as torch.save writes",
        b"\x80": "a Python pickle",
        b"version ": "a Git LFS pointer: run git lfs pull",
    }
    return next((kind for magic, kind in kinds.items() if head.startswith(magic)), f"it starts with {head[:8]!r}")
