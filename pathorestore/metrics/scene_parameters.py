"""Where the fitted parameters of NIQE and BRISQUE live: a safetensors file with numbers and a JSON file with facts, read strictly."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from pathorestore.atomic import write_atomic
from pathorestore.hub_codec import ConfigError, decode, encode
from pathorestore.metrics.availability import Availability

T = TypeVar("T")

EMBEDDED = Path(__file__).parents[1] / "weights" / "iqa"

_REMEDY = "`pathorestore iqa-fit FOLDER -o OUT` makes them"


class ParameterError(ValueError):
    """Files of parameters that cannot be used; the message names the file, what it holds and what to do."""


@dataclass(frozen=True, kw_only=True)
class FitFacts:
    """What parameters were fitted on.

    files, groups: images, and patients or slides of them, that were fitted. samples: rows of features that went into the fit. held_out:
    images kept apart, on which `spearman` was measured, by degradation: rank correlation of score and level over all of them;
    spearman_within: its mean over single images. digest: SHA-256 over the sorted hashes of the fitted files. seed, crop_px: as given.
    """

    files: int
    groups: int
    samples: int
    held_out: int
    spearman: dict[str, float]
    spearman_within: dict[str, float]
    digest: str
    seed: int
    crop_px: int


def write_parameters(folder: Path, name: str, tensors: Mapping[str, Tensor], config: object) -> tuple[Path, Path]:
    """Write `name`.safetensors and then `name`.json, each whole or not at all. Returns both paths. Raises OSError."""
    from safetensors.torch import save

    numbers, facts = _paths(folder, name)
    write_atomic(numbers, save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}))
    write_atomic(facts, (json.dumps(encode(config), indent=2) + "\n").encode())
    return numbers, facts


def read_parameters(folder: Path | None, name: str, config: type[T], expected: Mapping[str, int]) -> tuple[dict[str, Tensor], T]:
    """The tensors and the config of `name` in a folder, None for the embedded ones.

    expected: the tensors that must be there, with their number of axes. Raises FileNotFoundError naming what is missing and how to make it,
    ParameterError for files that are damaged, for unknown or missing keys, and for numbers that are not finite.
    """
    found = parameters_available(folder, name)
    if not found.ok:
        raise FileNotFoundError(found.reason)
    numbers, facts = _paths(folder or EMBEDDED, name)
    tensors = _tensors(numbers)
    if set(tensors) != set(expected):
        raise ParameterError(f"{numbers}: holds {', '.join(sorted(tensors))}; expected {', '.join(sorted(expected))}; {_REMEDY} anew")
    for key, tensor in tensors.items():
        if tensor.ndim != expected[key] or not tensor.is_floating_point() or not tensor.isfinite().all():
            got = f"{key} as {tensor.dtype} of shape {tuple(tensor.shape)}"
            raise ParameterError(f"{numbers}: holds {got}; expected finite floating numbers in {expected[key]} axes; {_REMEDY} anew")
    try:
        return tensors, decode(config, json.loads(facts.read_text(encoding="utf-8")), where=name)
    except (ConfigError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ParameterError(f"{facts}: cannot be used: {error}; {_REMEDY} anew") from None


def parameters_available(folder: Path | None, name: str) -> Availability:
    """Whether both files of `name` are in a folder, None for the embedded ones."""
    missing = [path for path in _paths(folder or EMBEDDED, name) if not path.is_file()]
    if not missing:
        return Availability(True)
    return Availability(False, f"{missing[0]}: no such file, and the parameters of {name.upper()} are in it; {_REMEDY}")


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.safetensors", folder / f"{name}.json"


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise ParameterError(f"{path}: is damaged or no safetensors file ({error}); {_REMEDY} anew") from None
