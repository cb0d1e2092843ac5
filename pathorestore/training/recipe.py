"""How the package's own configurations train, for commands that build their stages themselves: sizes, optimiser, schedule, crops."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

import torch
from pytorch_lightning.cli import OptimizerCallable

from pathorestore.data.drawing import CropConfig
from pathorestore.data.synthetic import Simulation
from pathorestore.training.schedules import WarmupCosine

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One configuration, whatever it says of the run's length and data.

    model: what its stage is made of, as the file has it, lists as tuples. batch_size, crops, workers: of the data module.
    average_decay: of the exponential average. clip: of the gradient's norm, None for none.
    """

    model: Mapping[str, Any]
    optimizer: OptimizerCallable
    schedule: WarmupCosine
    simulation: Mapping[str, float]
    crops: CropConfig
    batch_size: int
    workers: int
    average_decay: float
    clip: float | None
    precision: str

    def stage_options(self, seed: int) -> dict[str, Any]:
        """What every stage takes by name beside its parts. seed: of the simulation."""
        return {"optimizer": self.optimizer, "schedule": self.schedule, "simulation": Simulation(seed=seed, **self.simulation)}

    def sizes(self, part: str) -> dict[str, Any]:
        """The sizes of one part of the stage, by the names of its configuration class."""
        return dict(self.model[part]["init_args"]["config"])


def read_recipe(name: str) -> Recipe:
    """The recipe of one of the package's configurations, such as pformer_tiny. Raises FileNotFoundError for any other name.

    A schedule that is no `WarmupCosine` becomes one: runs of any length end at a small learning rate.
    """
    import yaml

    text = (files("pathorestore.configs") / f"{name}.yaml").read_text(encoding="utf-8")
    content = _with_tuples(yaml.safe_load(text))
    model, data, trainer = content["model"]["init_args"], content["data"]["init_args"], content["trainer"]
    optimizer, schedule = model["optimizer"], model["schedule"]
    cosine = schedule["class_path"].endswith(".WarmupCosine")
    return Recipe(
        model=model,
        optimizer=partial(getattr(torch.optim, optimizer["class_path"].rsplit(".", 1)[1]), **optimizer["init_args"]),
        schedule=WarmupCosine(**schedule["init_args"]) if cosine else WarmupCosine(),
        simulation=model.get("simulation", {}),
        crops=CropConfig(**data["crops"]),
        batch_size=data["batch_size"],
        workers=data.get("num_workers", 0),
        average_decay=content["average"]["decay"],
        clip=trainer.get("gradient_clip_val"),
        precision=trainer.get("precision", "32-true"),
    )


def _with_tuples(value: Any) -> Any:
    """A nest read from YAML with tuples for lists, which is what frozen configurations hold."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value
