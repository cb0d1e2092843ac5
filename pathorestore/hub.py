"""Networks and systems as folders: config.json, model.safetensors and a model card; strict when read, never unpickled.

A leaf network mixes in `Pretrained`. A system of several networks is a folder with one sub-folder per part and a system.json, written last,
so that a folder that was only half written does not load.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from pathorestore.atomic import write_atomic
from pathorestore.hub_card import ModelCard, render
from pathorestore.hub_codec import ConfigError, decode, encode
from pathorestore.hub_weights import (
    EMBEDDED_WEIGHTS,
    SYSTEM_FILE,
    WEIGHTS_FILE,
    WeightsError,
    embedded_names,
    load_weights,
    save_weights,
    weights_sha256,
)

__all__ = [
    "EMBEDDED_WEIGHTS",
    "ConfigError",
    "ModelCard",
    "Pretrained",
    "WeightsError",
    "check_fit",
    "embedded_names",
    "load_parts",
    "load_settings",
    "load_strictly",
    "load_weights",
    "locate",
    "model_name",
    "save_parts",
    "stored_class",
    "stored_system",
    "upload",
    "weights_sha256",
]

T = TypeVar("T")

FORMAT_VERSION = 1
_CONFIG, _CARD = "config.json", "README.md"
_HUB_FILES = [_CONFIG, WEIGHTS_FILE, _CARD, SYSTEM_FILE, "risk.json", f"*/{_CONFIG}", f"*/{WEIGHTS_FILE}"]
_MOVING_REVISIONS = ("main", "master", "HEAD")


class Pretrained:
    """Saving and loading for an nn.Module whose __init__ takes one frozen dataclass, annotated `config`, and keeps it as self.config."""

    config: Any

    def save_pretrained(self, folder: str | os.PathLike[str], *, card: ModelCard | None = None, dtype: torch.dtype | None = None) -> None:
        """Write config.json, model.safetensors and the model card README.md, each through a temporary file, over what stood there.

        dtype: floating tensors are stored as this, e.g. torch.float16 (loading gives the module's own precision back); None keeps theirs.
        Raises WeightsError where a value is finite now and would not be in `dtype`; TypeError for a config that JSON cannot hold; OSError.
        """
        target = Path(folder)
        _write_leaf(self, target, dtype=dtype)
        _write_text(target / _CARD, render(card or ModelCard(title=type(self).__name__), parts=_count({type(self).__name__: self})))

    @classmethod
    def from_pretrained(cls, folder_or_repo_id: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """The module saved in a folder (no network) or in a Hugging Face repository at a pinned revision; in eval mode, on the CPU.

        revision: a commit hash or tag; required for a repository, refused for a folder. The caller's random state is left as it was.
        Raises ConfigError for a config of another class, with a missing, unknown or ill-typed key; WeightsError for weights that are
        missing, not safetensors, damaged, or do not fit the config exactly.
        """
        folder = locate(folder_or_repo_id, revision=revision)
        config = decode(_config_class(cls), _read_leaf_config(folder, cls), where=f"{folder / _CONFIG}: config")
        with torch.random.fork_rng(devices=[]):  # the initial values drawn here are overwritten below
            module = cls(config)  # type: ignore[call-arg]
        load_strictly(_as_module(module), load_weights(folder / WEIGHTS_FILE), source=str(folder / WEIGHTS_FILE))
        _as_module(module).eval()
        return module

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: ModelCard | None = None,
        dtype: torch.dtype | None = None,
        token: str | None = None,
        private: bool = True,
    ) -> str:
        """Save to a temporary folder and upload it; returns the commit hash, which is the `revision` to load it by.

        token: None uses the token that `hf auth login` stored. A repository that does not exist is created, private unless told otherwise.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card, dtype=dtype)
            return upload(folder, repo_id, token=token, private=private)


def save_parts(
    folder: str | os.PathLike[str],
    parts: Mapping[str, Pretrained],
    *,
    system: str,
    settings: object | None = None,
    card: ModelCard | None = None,
    dtype: torch.dtype | None = None,
    beside: str | None = None,
) -> None:
    """Write a system: each part to the sub-folder of its name, one model card, and system.json last.

    system: the class that composes the parts. settings: a frozen dataclass of what is no part's own, such as a diffusion process; see
    `load_settings`. beside: an embedded system, by its name; what parts of both have in common, in one number format, is not stored again.
    Raises WeightsError where the folder holds weights that are no part of this system, and where `beside` names nothing embedded.
    """
    target = Path(folder)
    if beside is not None and beside not in embedded_names():
        raise WeightsError(f"beside={beside!r} is not embedded; expected one of {', '.join(embedded_names())}")
    stale = sorted(path.parent.name for path in target.glob(f"*/{WEIGHTS_FILE}") if path.parent.name not in parts)
    if stale:
        raise WeightsError(f"{target} holds weights that are no part of this {system}: {', '.join(stale)}; remove them or save elsewhere")
    for name, part in parts.items():
        _write_leaf(part, target / name, dtype=dtype, beside=beside and f"{beside}/{name}")
    _write_text(target / _CARD, render(card or ModelCard(title=system), parts=_count(parts)))
    table = {name: type(part).__name__ for name, part in parts.items()}
    content = {"format_version": FORMAT_VERSION, "system": system, "settings": encode(settings, where="settings"), "parts": table}
    _write_json(target / SYSTEM_FILE, content)


def load_parts(
    folder_or_repo_id: str | os.PathLike[str],
    classes: Mapping[str, type[Pretrained] | tuple[type[Pretrained], ...]],
    *,
    system: str,
    revision: str | None = None,
) -> dict[str, Any]:
    """The parts that `save_parts` stored, by name, each of its class in `classes`, or one of several; a part that was not saved is absent.

    Raises ConfigError where the folder holds another system or a part that `classes` does not name; else as `Pretrained.from_pretrained`.
    """
    folder = locate(folder_or_repo_id, revision=revision)
    stored = _read_system(folder, system)
    if not isinstance(stored["parts"], dict) or set(stored["parts"]) - set(classes):
        raise ConfigError(f"{folder / SYSTEM_FILE} lists the parts {stored['parts']}; a {system} knows {', '.join(classes)}")
    return {name: _one_of(classes[name], kind).from_pretrained(folder / name) for name, kind in stored["parts"].items()}


def _one_of(classes: type[Pretrained] | tuple[type[Pretrained], ...], kind: object) -> type[Pretrained]:
    """The class of that name, or the first, which then says what it found instead."""
    several = classes if isinstance(classes, tuple) else (classes,)
    return next((cls for cls in several if cls.__name__ == kind), several[0])


def load_settings(folder_or_repo_id: str | os.PathLike[str], cls: type[T], *, system: str, revision: str | None = None) -> T:
    """The dataclass `cls` that `save_parts` stored as `settings`. Raises ConfigError where it does not fit exactly."""
    folder = locate(folder_or_repo_id, revision=revision)
    return decode(cls, _read_system(folder, system)["settings"], where=f"{folder / SYSTEM_FILE}: settings")


def locate(folder_or_repo_id: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The folder that weights lie in: a local one as it is, or by its name, such as "iste-tiny", one that ships with the package.

    Of a Hugging Face repository `owner/name` it is where its files at `revision` were downloaded to; only configs, weights and
    the card are fetched. Raises WeightsError for a repository without a pinned revision and for what is none of these.
    """
    path, name = Path(folder_or_repo_id), str(folder_or_repo_id)
    if not path.exists() and name in embedded_names():
        path = EMBEDDED_WEIGHTS / name
    if path.is_dir():
        if revision is not None:
            raise WeightsError(f"{path} is a local folder, which has no revision={revision!r}; leave revision out")
        return path
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(
            f"{name} is no folder; expected one written by save_pretrained, one of {', '.join(embedded_names())}, or a hub repository as "
            "owner/name with revision="
        )
    if not revision or revision in _MOVING_REVISIONS:
        raise WeightsError(
            f"{name} is no local folder, and as a hub repository it needs a pinned revision (a commit hash or a tag), got {revision!r}; "
            "weights behind a branch can change unseen"
        )
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))


def model_name(folder_or_repo_id: str | os.PathLike[str]) -> str:
    """How weights are called in records: a folder by its name, which knows no path of this machine, a repository as it is."""
    given = Path(folder_or_repo_id)
    return given.resolve().name if given.exists() else str(folder_or_repo_id)


def stored_class(folder: str | os.PathLike[str]) -> str:
    """The class of the network whose `save_pretrained` wrote a folder; "" where none did."""
    file = Path(folder) / _CONFIG
    return str(_read_json(file, keys=("format_version", "class", "config"))["class"]) if file.is_file() else ""


def stored_system(folder: str | os.PathLike[str]) -> str:
    """The class whose `save_pretrained` wrote a folder. Raises WeightsError or ConfigError where none did."""
    return str(_read_system(Path(folder), None)["system"])


def upload(folder: str | os.PathLike[str], repo_id: str, *, token: str | None = None, private: bool = True) -> str:
    """Upload a saved network or system to a Hugging Face repository, created if need be; returns the commit hash."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    message = "Upload with pathorestore"
    return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder), allow_patterns=_HUB_FILES, commit_message=message).oid)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, source: str, fresh: tuple[str, ...] = ()) -> None:
    """Copy `state` into the module, cast to its dtypes, or raise what `check_fit` raises and copy nothing."""
    check_fit(module, state, source=source, fresh=fresh)
    module.load_state_dict({**module.state_dict(), **state})


def check_fit(module: nn.Module, state: Mapping[str, Tensor], *, source: str, fresh: tuple[str, ...] = ()) -> None:
    """Raise WeightsError, naming the tensors at fault, unless `state` holds exactly the module's, of the right shapes and finite.

    source: what the message calls the weights. fresh: endings of names that `state` may lack; those tensors keep their initial values.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in state and not (fresh and name.endswith(fresh))]
    extra = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("extra", extra), ("wrong shape", shapes))
    faults = [f"{kind}: {_some(names)}" for kind, names in kinds if names]
    if faults:
        raise WeightsError(f"{source} does not fit {type(module).__name__}: {'; '.join(faults)}; expected the tensors of its config")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(f"{source} holds NaN or infinite values in {_some(broken)}; expected finite weights")


def _write_leaf(part: Pretrained, folder: Path, *, dtype: torch.dtype | None, beside: str | None = None) -> None:
    config = encode(part.config)  # before anything is written
    # clones, because safetensors refuses tensors that share memory
    state = {name: _stored(name, tensor, dtype=dtype) for name, tensor in _as_module(part).state_dict().items()}
    save_weights(folder / WEIGHTS_FILE, state, beside=beside)
    _write_json(folder / _CONFIG, {"format_version": FORMAT_VERSION, "class": type(part).__name__, "config": config})


def _stored(name: str, tensor: Tensor, *, dtype: torch.dtype | None) -> Tensor:
    stored = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous().clone()
    if not torch.isfinite(stored).all():
        raise WeightsError(f"{name} holds values that are not finite as {stored.dtype}; expected finite weights: store a wider dtype")
    return stored


def _read_leaf_config(folder: Path, cls: type[Pretrained]) -> object:
    if not (folder / _CONFIG).is_file():
        parts = sorted(path.parent.name for path in folder.glob(f"*/{_CONFIG}"))
        remedy = f"load one of its sub-folders {', '.join(parts)}" if parts else "expected a folder written by save_pretrained"
        raise WeightsError(f"{folder} holds no {_CONFIG}; {remedy}")
    stored = _read_json(folder / _CONFIG, keys=("format_version", "class", "config"))
    if stored["class"] != cls.__name__:
        raise ConfigError(f"{folder / _CONFIG} describes a {stored['class']}; expected a {cls.__name__}: load it with {stored['class']}")
    return stored["config"]


def _read_system(folder: Path, system: str | None) -> dict[str, Any]:
    if not (folder / SYSTEM_FILE).is_file():
        raise WeightsError(f"{folder} holds no {SYSTEM_FILE}; expected a folder to which a {system or 'system'} was saved, to the end")
    stored = _read_json(folder / SYSTEM_FILE, keys=("format_version", "system", "settings", "parts"))
    if system is not None and stored["system"] != system:
        raise ConfigError(f"{folder / SYSTEM_FILE} describes a {stored['system']}; expected a {system}: load it with {stored['system']}")
    return stored


def _read_json(path: Path, *, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ConfigError(f"{path} is not JSON ({error}); expected what save_pretrained writes") from error
    if not isinstance(stored, dict) or set(stored) != set(keys):
        found = ", ".join(stored) if isinstance(stored, dict) else type(stored).__name__
        raise ConfigError(f"{path} holds {found or 'no keys'}; expected exactly the keys {', '.join(keys)}")
    if stored["format_version"] != FORMAT_VERSION:
        raise ConfigError(f"{path} has format_version {stored['format_version']!r}; this version of pathorestore reads {FORMAT_VERSION}")
    return stored


def _write_json(path: Path, content: object) -> None:
    _write_text(path, json.dumps(content, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, text.encode("utf-8"))


def _config_class(cls: type[Pretrained]) -> type[Any]:
    config: type[Any] = get_type_hints(cls.__init__)["config"]
    return config


def _as_module(part: object) -> nn.Module:
    assert isinstance(part, nn.Module), "Pretrained is mixed into an nn.Module"
    return part


def _count(parts: Mapping[str, Pretrained]) -> dict[str, int]:
    return {name: sum(parameter.numel() for parameter in _as_module(part).parameters()) for name, part in parts.items()}


def _some(names: list[str], *, at_most: int = 6) -> str:
    rest = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + rest
