"""The optional packages that hold the parts of latent diffusion and of CLIP, imported where they are first used."""

from importlib import import_module
from typing import Any

from pathorestore._torchvision import ensure_torchvision


def load_diffusers() -> Any:
    """The package diffusers. Raises ImportError, naming the extra to install, where it is missing."""
    ensure_torchvision()
    try:
        return import_module("diffusers")
    except ImportError as error:
        raise ImportError('latent diffusion needs diffusers; pip install "pathorestore[diffusion]"') from error


def load_transformers(needs: str) -> Any:
    """The package transformers. Raises ImportError with `needs`, which says what wants it and what to install, where it is missing."""
    ensure_torchvision()  # transformers imports it where it is installed
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ImportError(needs) from error
