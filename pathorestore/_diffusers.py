"""The optional package that holds the parts of latent diffusion, imported where it is first used."""

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
