"""What is installed, on which devices it can run, and which weights under which licence are at hand."""

import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pathorestore.version import __version__

WEIGHTS_FOLDER = Path(__file__).resolve().parent.parent / "weights"
_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "tifffile", "imagecodecs", "opencv-python-headless", "timm", "kornia")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Weights in one folder: its name, parts, size in MB, licence and title from the model card, SHA-256."""

    name: str
    title: str
    licence: str
    parts: tuple[str, ...]
    megabytes: float
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class Installation:
    """versions: package to version. devices: in words, the default first. models: embedded weights."""

    versions: dict[str, str]
    devices: tuple[str, ...]
    models: tuple[ModelInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


def installation(weights: Path = WEIGHTS_FOLDER) -> Installation:
    """Look around: installed versions (nothing is imported for them), devices, and the weights below a folder."""
    versions = {"pathorestore": __version__, "python": platform.python_version()}
    versions |= {name: version for name in _PACKAGES if (version := _version(name))}
    folders = sorted({path.parent for path in weights.glob("*/system.json")})
    return Installation(versions=versions, devices=_devices(), models=tuple(_model(folder) for folder in folders))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[str, ...]:
    import torch

    cuda = [f"cuda:{at} {torch.cuda.get_device_name(at)}" for at in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return (*cuda, f"cpu, {torch.get_num_threads()} threads")


def _model(folder: Path) -> ModelInfo:
    from pathorestore.hub import weights_sha256

    files = sorted(folder.rglob("*.safetensors"))
    front, title = _card(folder / "README.md")
    return ModelInfo(
        name=folder.name,
        title=title or folder.name,
        licence=str(front.get("license", "not stated")),
        parts=tuple(path.parent.name for path in files),
        megabytes=sum(path.stat().st_size for path in files) / 1e6,
        weights_sha256=weights_sha256(folder),
    )


def _card(path: Path) -> tuple[dict[str, Any], str]:
    """YAML front matter and first heading of a model card; empty where there is none."""
    import yaml

    if not path.is_file():
        return {}, ""
    _, front, body = [*path.read_text(encoding="utf-8").split("---", 2), "", ""][:3]
    values = yaml.safe_load(front)
    heading = next((line.removeprefix("# ").strip() for line in body.splitlines() if line.startswith("# ")), "")
    return (values if isinstance(values, dict) else {}), heading
