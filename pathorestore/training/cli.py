"""`pathorestore fit|validate|test|predict`: LightningCLI over the stages and data modules, with configurations by name."""

import difflib
import inspect
import logging
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pathorestore._torchvision import ensure_torchvision

ensure_torchvision()
import pytorch_lightning as pl  # noqa: E402  it imports torchvision where that is installed
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar  # noqa: E402
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback  # noqa: E402

from pathorestore.atomic import write_atomic  # noqa: E402
from pathorestore.training.average import ExponentialAverage  # noqa: E402
from pathorestore.training.budget import WallClockBudget  # noqa: E402
from pathorestore.training.guard import StopOnNonFinite  # noqa: E402
from pathorestore.training.pictures import PictureGrid  # noqa: E402
from pathorestore.training.predictions import WritePredictions  # noqa: E402
from pathorestore.training.record import TrainingRecord, default_logger  # noqa: E402
from pathorestore.training.stage import Stage  # noqa: E402

VERBS = ("fit", "validate", "test", "predict")


def config_names() -> list[str]:
    """The configurations that ship with the package, such as pformer_tiny."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _home().glob("*.yaml"))


def config_path(name_or_file: str) -> str:
    """The file of a configuration: a file as it is given, or one of the package's by name. Raises ValueError listing the names."""
    if Path(name_or_file).is_file():
        return name_or_file
    if name_or_file in config_names():
        return str(_home() / f"{name_or_file}.yaml")
    raise ValueError(f"--config {name_or_file} is neither a file nor one of the package's configurations: {', '.join(config_names())}")


def _home() -> Path:
    return Path(__file__).parent.parent / "configs"


def with_files(words: Sequence[str]) -> list[str]:
    """The command line with every `--config NAME` replaced by the file that it names."""
    resolved = list(words)
    for index, word in enumerate(resolved):
        if word == "--config" and index + 1 < len(resolved):
            resolved[index + 1] = config_path(resolved[index + 1])
        elif word.startswith("--config="):
            resolved[index] = f"--config={config_path(word.removeprefix('--config='))}"
    return resolved


class SaveConfig(SaveConfigCallback):
    """Keeps the whole configuration, defaults written out, as `training.yaml` in the run's folder: `--config` takes it back."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it, in fit only: other verbs leave the run's folder as it is."""
        if stage == "fit":
            # where a resumed run came from is no part of what it is
            config = self.config.clone()
            config.ckpt_path = None
            text = self.parser.dump(config, skip_none=False)
            write_atomic(Path(trainer.default_root_dir) / "training.yaml", text.encode())


class TrainingCLI(LightningCLI):
    """Lightning's own command line with the callbacks that every run has; `--out` is where everything of a run goes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's folder and the callbacks, each under a short name."""
        parser.add_argument("--out", type=str, default="runs/latest", help="folder of the run: checkpoints, logs, pictures, record")
        parser.add_lightning_class_args(WallClockBudget, "budget")
        parser.add_lightning_class_args(ExponentialAverage, "average")
        parser.add_lightning_class_args(StopOnNonFinite, "guard")
        parser.add_lightning_class_args(PictureGrid, "pictures")
        parser.add_lightning_class_args(TrainingRecord, "record")
        parser.add_lightning_class_args(WritePredictions, "predictions")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        # resumable at any moment: the last state every so many steps, and nothing else unless it is asked for
        parser.set_defaults(
            {
                "checkpoint.every_n_train_steps": 200,
                "checkpoint.save_last": True,
                "checkpoint.save_top_k": 0,
                "checkpoint.filename": "{step}",
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the words that were given; Lightning's own method warns of words beside those of the process, which are the same here."""
        self.config = parser.parse_args(args)

    def after_fit(self) -> None:
        """Keep the last state, which need not fall on a step that is saved anyway, and say what to do with it."""
        last = Path(self.trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if self.trainer.checkpoint_callback is None:
            return
        self.trainer.save_checkpoint(last)
        if self.trainer.is_global_zero:
            print(f"checkpoint  {last}\nnext        pathorestore export {last} -o MODEL; --ckpt_path last goes on with the run")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A trainer whose files lie in the run's folder."""
        out = Path(self._get(self.config, "out"))
        if self._get(self.config_init, "trainer.logger") is None:
            kwargs.setdefault("logger", default_logger(out))
        if self._get(self.config_init, "trainer.enable_progress_bar") is not False:
            self.trainer_defaults["callbacks"] = [TQDMProgressBar(refresh_rate=25)]
        trainer = super().instantiate_trainer(default_root_dir=str(out), **kwargs)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(out / "checkpoints")
        return trainer


class _Quiet(logging.Filter):
    """Drops what Lightning logs that is no concern of the reader: tips for other products, its own defaults."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(word in record.getMessage() for word in ("litlogger", "litmodels", "weights_only"))


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def plain_refusal(message: str) -> str:
    """What a refused option comes to, out of jsonargparse's nested report; other messages lose only its closing dump."""
    refused = re.search(r"class_path '([\w.]+)':(?:(?!class_path).)*Option '([\w.]+)' is not accepted", message, flags=re.DOTALL)
    if refused:
        path, option = refused.groups()
        known = list(inspect.signature(_named(path)).parameters)
        near = difflib.get_close_matches(option, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}"
        return f"{path.rsplit('.', 1)[-1]} has no option '{option}'; {hint}"
    return re.split(r"\s+- Expected a <class 'NoneType'>|\s+Given value type:", message)[0]


def run(words: Sequence[str]) -> int:
    """Run one training command and return its exit code. Errors of configuration and data are raised, for the caller to print."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_Quiet())
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen on purpose
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    resolved = with_files(words)
    try:
        _train(resolved)
    except ArgumentError as error:
        raise ArgumentError(None, plain_refusal(error.message)) from None
    return 0


def _train(words: list[str]) -> None:
    TrainingCLI(
        Stage,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_callback=SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults={
            "max_epochs": -1,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 10,
            "use_distributed_sampler": False,  # the samplers shard by themselves
            "enable_model_summary": False,
        },
        parser_kwargs={"exit_on_error": False},
        args=words,
    )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
