"""Public weights in torch's cache, where a user puts them: found without the network, and seen to hold tensors alone before they are used.

torchvision and torch-fidelity download a missing file, and unpickle a present one with whatever code it holds; both are barred here first.
"""

from pathlib import Path

import torch
from torch import Tensor

from pathorestore.metrics.availability import Availability


def cached_file(url: str) -> Path:
    """Where torch's cache holds the file of an address: `$TORCH_HOME/hub/checkpoints`, by default under `~/.cache/torch`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def weights_available(url: str, *, name: str) -> Availability:
    """Whether the file is in the cache; if not, which one to put where. name: what weights they are. Never reaches for the network."""
    file = cached_file(url)
    if file.is_file():
        return Availability(ok=True)
    return Availability(
        ok=False, reason=f"{name} are not on this machine; put the file {file.name} from {url} into the folder {file.parent}"
    )


def check_tensors(file: Path) -> None:
    """Raise ValueError with the remedy unless the file holds tensors by name and nothing else; no code of it is run."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are cut short or hold code
        raise ValueError(f"{file} cannot be read as weights ({type(error).__name__}); fetch it anew") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} holds {type(state).__name__} where tensors by name were expected; fetch it anew")


def require(name: str, found: Availability) -> None:
    """Raise RuntimeError with the reason unless it is available. name: what cannot be computed."""
    if not found.ok:
        raise RuntimeError(f"{name} cannot be computed: {found.reason}")
