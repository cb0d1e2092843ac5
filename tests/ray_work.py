"""What workers do in the tests of Ray, which import it by name: a cheap restorer, slow enough to be caught at it, and slides that kill."""

import os
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from slide_samples import Lively, slide_work

from pathorestore.pipelines.batch import Done, Job
from pathorestore.slide.restore import Status


class Slow(Lively):
    """The lively restorer, with a rest in every tile."""

    def __init__(self, rest_s: float):
        super().__init__()
        self.rest_s = rest_s

    def prepare(self, degraded: torch.Tensor):
        time.sleep(self.rest_s)
        return super().prepare(degraded)


@dataclass
class SlideWork:
    """What a driver and its workers call. A file whose name begins with "killer" ends the process that takes it, every time."""

    rest_s: float = 0.0
    stopping: bool = False
    witness: Path | None = None

    def __call__(self, job: Job) -> Done:
        if job.input.name.startswith("killer"):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.input.name.startswith("bug"):
            raise RuntimeError("kernel and input do not match")
        wishes = {"tile_px": 128, "overlap_px": 32}
        told: list[int] = []

        def tell_once(status: Status) -> None:
            if self.witness and not told:
                told.append(status.total)
                with self.witness.open("a") as file:
                    file.write(f"{job.input.name} {status.total}\n")

        return slide_work(Slow(self.rest_s), wishes=wishes, stop=lambda: self.stopping, on_status=tell_once)(job)

    def size(self, job: Job) -> tuple[int, ...]:
        return (job.input.stat().st_size if job.input.exists() else 0,)

    def ask_to_stop(self) -> None:
        self.stopping = True

    def patiently(self):
        return nullcontext()


@dataclass(frozen=True)
class MakeWork:
    """What workers get their work from. witness: hears of the device of each worker, and how many tiles each slide had left to do."""

    rest_s: float
    witness: Path

    def __call__(self, device: str) -> SlideWork:
        with self.witness.open("a") as file:
            file.write(f"device {device}\n")
        return SlideWork(self.rest_s, witness=self.witness)


@dataclass(frozen=True)
class NoModel:
    """A worker without a model."""

    def __call__(self, device: str) -> SlideWork:
        raise ValueError("the folder holds no model")
