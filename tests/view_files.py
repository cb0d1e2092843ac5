"""Slides and pages that the tests of the viewer share."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_samples import RECORD
from tissue_files import tissue

from pathorestore import cli

HOSTILE = "<img src=x onerror=alert(1)>"


def save_pyramid(path: Path, pixels: np.ndarray, *, description: str = "", **options: object) -> Path:
    """A flat pyramidal TIFF as OpenSlide reads it, 0.5 um a pixel, levels at 1 and 1/4."""
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 4):
            level = np.ascontiguousarray(pixels[::step, ::step])
            tiff.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                description=description if step == 1 else None,
                subfiletype=int(step > 1),
                resolution=(20_000 / step, 20_000 / step),
                resolutionunit="CENTIMETER",
                metadata=None,
                **options,
            )
    return path


def viewed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run `pathorestore view`; returns exit code, stdout and stderr."""
    code = cli.main(["view", *(str(word) for word in words)])
    return code, *capsys.readouterr()


def restored_slide(path: Path, height: int = 700, width: int = 900) -> Path:
    """Tissue with a record."""
    return save_pyramid(path, tissue(1, height, width), description=RECORD.to_json())


@pytest.fixture
def _closed_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In place of the general one: this machine may be reached, nothing else may."""
    connect = socket.socket.connect

    def refuse(this: socket.socket, address: object) -> None:
        if this.family != socket.AF_UNIX and not (isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost")):
            raise AssertionError(f"a test tried to open a network connection to {address}")
        connect(this, address)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield
