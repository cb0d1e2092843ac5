"""Fixtures named for what they show; no test opens a socket."""

import socket
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from pathorestore._torchvision import ensure_torchvision

ensure_torchvision()
settings.register_profile(
    "law", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("law")


@pytest.fixture(autouse=True)
def _closed_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails; local pipes and files stay open."""

    connect = socket.socket.connect

    def refuse(this: socket.socket, address: object) -> None:
        if this.family != socket.AF_UNIX:
            raise AssertionError(f"a test tried to open a network connection to {address}")
        connect(this, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _quiet_threads() -> Iterator[None]:
    """Leave torch's thread count as it was found."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh seeded CPU generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def nuclei_image() -> torch.Tensor:
    """A 1 3 128 128 picture of dark elliptic nuclei on a pink, softly textured ground."""
    gen = torch.Generator().manual_seed(7)
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    density = 0.15 + 0.05 * torch.nn.functional.interpolate(torch.rand(1, 1, 32, 32, generator=gen), size=128, mode="bilinear")[0, 0]
    nuclei = torch.zeros(128, 128)
    for _ in range(24):
        cy, cx, ry, rx = (
            torch.rand(4, generator=gen) * torch.tensor([128.0, 128.0, 5.0, 5.0]) + torch.tensor([0.0, 0.0, 4.0, 4.0])
        ).tolist()
        nuclei = torch.maximum(nuclei, torch.sigmoid(4 * (1 - ((y - cy) / ry) ** 2 - ((x - cx) / rx) ** 2)))
    nuclei = nuclei * (0.8 + 0.2 * torch.rand(128, 128, generator=gen))
    haematoxylin, eosin = torch.tensor([0.65, 0.70, 0.29]), torch.tensor([0.07, 0.99, 0.11])
    return torch.exp(-(nuclei[None] * haematoxylin[:, None, None] + density[None] * eosin[:, None, None]))[None].clamp(0, 1)
