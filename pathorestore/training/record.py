"""What a run leaves behind about itself: the training record in checkpoint and log folder, and the loggers that every run has."""

import hashlib
import importlib.util
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from pathorestore.atomic import write_atomic
from pathorestore.training.budget import Stopwatch
from pathorestore.version import __version__

RECORD_NAME = "training_record.json"
_GIB = 2**30
_SOURCE = Path(__file__).parent.parent / "version.py"


class TrainingRecord(pl.Callback):
    """Keeps what a model card needs, over all runs of a training, in the checkpoint and as `<log_dir>/training_record.json`.

    Command lines, version and commit, seed, steps, images seen, batch, processes, wall-clock minutes, precision, machine, peak memory,
    software, the manifest's name and hash, the last validation figures. It holds no path of the data and no name of a machine or user,
    but the command lines are kept as they were typed. Memory and batch are those of the first process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}
        self._folder = Path()
        self._watch = Stopwatch()
        self._device = torch.device("cpu")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ask for the folder now, since all processes must ask together."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what is fixed for this run, after what earlier ones noted."""
        self._device = pl_module.device
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.facts = {
            "format_version": 1,
            "stage": type(pl_module).__name__,
            "trained": list(getattr(pl_module, "trained", ())),
            "commands": [*(known for known in self.facts.get("commands", []) if known != command), command],
            "version": __version__,
            "commit": _commit(),
            "seeds": _seeds(trainer, pl_module),
            "steps": trainer.global_step,
            "images_seen": self.facts.get("images_seen", 0),
            "batch": self.facts.get("batch", 0),
            "accumulate": trainer.accumulate_grad_batches,
            "processes": trainer.world_size,
            "minutes": self.facts.get("minutes", 0.0),
            "runs": self.facts.get("runs", 0) + 1,
            "precision": str(trainer.precision),
            "machine": _machine(self._device, trainer.world_size),
            "peak_memory_gib": self.facts.get("peak_memory_gib", 0.0),
            "torch": str(torch.__version__),  # a string of its own class, which a checkpoint must not hold
            "lightning": metadata.version("pytorch-lightning"),
            "python": platform.python_version(),
            "manifest": _manifest(trainer),
            "logs": _below(self._folder, trainer.default_root_dir),
            "validation_step": self.facts.get("validation_step"),
            "validation": self.facts.get("validation", {}),
        }
        self._watch.start()
        self._write(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count."""
        self.facts["batch"] = max(self.facts["batch"], _length(batch))
        self.facts["images_seen"] += _length(batch) * trainer.world_size
        self.facts["steps"] = trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the figures. Checkpoint callbacks, which Lightning calls last, write after this."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")}
        # JSON knows no NaN
        self.facts["validation"] = {name: value if math.isfinite(value) else str(value) for name, value in figures.items()}
        self.facts["validation_step"] = trainer.global_step
        self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last state."""
        self._finish(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write how far an interrupted run came."""
        if self.facts and trainer.state.fn == TrainerFn.FITTING:
            self._finish(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The record as it stands."""
        if not self.facts:
            return {}
        peak = max(self.facts["peak_memory_gib"], _peak_memory_gib(self._device))
        return self.facts | {"minutes": round(self._watch.seconds / 60, 3), "peak_memory_gib": round(peak, 3)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the record."""
        self.facts = dict(state_dict)
        self._watch.resume_from(60 * float(state_dict["minutes"]))

    def _finish(self, trainer: pl.Trainer) -> None:
        self._watch.stop()
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            write_atomic(self._folder / RECORD_NAME, (json.dumps(self.state_dict(), indent=2) + "\n").encode("utf-8"))


def default_logger(folder: Path, name: str = "logs") -> list[Logger]:
    """Loggers into `folder/name/version_N`, N counted up from 0: metrics.csv, and TensorBoard below `tensorboard` where that is installed.

    The rows of metrics.csv are on the disk as soon as they are logged, so that a killed run has them.
    """
    table = CSVLogger(folder, name=name, flush_logs_every_n_steps=1)
    if importlib.util.find_spec("tensorboard") is None:
        rank_zero_info("TensorBoard is not installed, so figures go to metrics.csv alone; pip install tensorboard for both")
        return [table]
    # the table comes first: Lightning takes the first logger's folder for the run's
    return [table, TensorBoardLogger(folder, name=name, version=table.version, sub_dir="tensorboard", default_hp_metric=False)]


def _commit() -> str | None:
    """The git commit of the package's own source, with "+changes" if files differ from it; None for an installed package."""
    here = _SOURCE.parent
    try:
        # a package installed below some other repository is not that repository's
        _git(here, "ls-files", "--error-unmatch", _SOURCE.name)
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
        return _git(here, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "--no-optional-locks", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def _seeds(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, int]:
    """The run's seeds by what they are of: initial weights (as `seed_everything` was given it), data, simulation."""
    weights = os.environ.get("PL_GLOBAL_SEED", "")
    data, simulation = trainer.datamodule, getattr(pl_module, "simulation", None)  # type: ignore[attr-defined]
    seeds = {"weights": int(weights) if weights.isdigit() else None, "data": getattr(data, "seed", None)}
    seeds["simulation"] = getattr(simulation, "seed", None)
    return {name: seed for name, seed in seeds.items() if isinstance(seed, int)}


def _machine(device: torch.device, processes: int) -> str:
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    shared = f" in each of {processes} processes" if processes > 1 else ""
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}{shared}"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def _peak_memory_gib(device: torch.device) -> float:
    """The most memory this process held: of the GPU where there is one, else resident; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    if importlib.util.find_spec("resource") is None:  # Windows
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _GIB if sys.platform == "darwin" else peak * 1024 / _GIB


def _manifest(trainer: pl.Trainer) -> dict[str, str] | None:
    """Name and hash of the data module's manifest; the folder's name may say more than a model card should."""
    manifest = getattr(trainer.datamodule, "manifest", None)  # type: ignore[attr-defined]
    path = Path(str(getattr(manifest, "path", manifest)))
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return {"name": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _below(folder: Path, root: str) -> str:
    """`folder` relative to `root`, or its name alone if it lies elsewhere."""
    folder, base = folder.resolve(), Path(root).resolve()
    return folder.relative_to(base).as_posix() if folder.is_relative_to(base) else folder.name


def _length(batch: Any) -> int:
    """The number of images: the length of the first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((length for length in map(_length, items) if length), 0)
