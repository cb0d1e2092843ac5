"""Speed of the optics; each claim is a ratio measured within one run, so that it holds on any machine."""

import time

import pytest
import torch

from pathorestore.degradations import Setting, degrade
from pathorestore.functional.optics import Optics, PsfTable, psf

OPTICS = Optics(spherical_waves=0.1, focal_shift_um=(0.3, 0.0, -0.3))


def seconds(action) -> float:  # type: ignore[no-untyped-def]
    action()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def test_a_thousand_kernels_come_faster_from_the_table(benchmark) -> None:  # type: ignore[no-untyped-def]
    table = PsfTable(OPTICS, 41, 5.0)
    defocus = 10 * torch.rand(1000, generator=torch.Generator().manual_seed(0)) - 5
    kernels = benchmark(table, defocus)
    assert kernels.shape == (1000, 3, 41, 41)
    direct = seconds(lambda: psf(defocus, OPTICS, 41))
    looked_up = seconds(lambda: table(defocus))
    benchmark.extra_info["direct_over_table"] = direct / looked_up
    assert direct > 10 * looked_up


@pytest.mark.parametrize("name", ["ideal", "scanner", "shifted"])
def test_a_training_batch_is_degraded(name: str, benchmark) -> None:  # type: ignore[no-untyped-def]
    """Eight crops of 64 px with 32 px of margin."""
    setting, generator = getattr(Setting, name)(), torch.Generator().manual_seed(0)
    sharp = torch.rand(8, 3, 128, 128, generator=generator)
    degrade(sharp, None, setting=setting, generator=generator, margin_px=32)
    result = benchmark(lambda: degrade(sharp, None, setting=setting, generator=generator, margin_px=32))
    assert result.degraded.shape == (8, 3, 64, 64)
