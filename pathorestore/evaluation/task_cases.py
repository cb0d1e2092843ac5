"""Examples of tasks made of sharp images on the way, and models that are asked to do them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from pathorestore.data.task_prompts import TaskSpec, spec_of
from pathorestore.data.tasks import Task, builtin_tasks, named
from pathorestore.evaluation.cases import DESIGN_MPP, Case, CaseKey, at_design_mpp, central
from pathorestore.functional.noise import stream
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.provenance import GENERATED_NOTICE

if TYPE_CHECKING:
    from pathorestore.pipelines.lpfm import LPFM

GIVEN, ALL = "given", "all"
Way = Literal["whole", "coarse", "unprompted"]


def asked_tasks(names: Sequence[str]) -> tuple[Task, ...]:
    """The built-in tasks of some names, "all" for those that make examples of sharp images. Raises ValueError for others."""
    known, given = builtin_tasks(), list(names)
    if len(set(given)) < len(given) or (ALL in given and len(given) > 1):
        raise ValueError(f"--task {' '.join(given)}: name each task once, or all of them by {ALL}")
    chosen = [task for task in known if task.makes_examples] if given == [ALL] else [named(known, name) for name in given]
    if mute := [task.name for task in chosen if not task.makes_examples]:
        raise ValueError(f"--task {mute[0]}: makes no examples of sharp images; judge photographed pairs with --restored")
    return tuple(chosen)


class TaskExamples:
    """Sharp files, each an example of every task: what is given, and what the task wants of it.

    Pixel sizes as in `SimulatedDefocus`. An example depends on the seed, the file's name and the task alone.
    """

    degraded_name = GIVEN

    def __init__(self, files: Sequence[CaseKey], *, tasks: Sequence[Task], seed: int = 0, crop_px: int = 0):
        self.tasks, self.seed, self.crop_px = {task.name: task for task in tasks}, seed, crop_px
        self.keys = tuple(
            replace(file, name=f"{file.name}: {task.name}", task=task.name, mpp=DESIGN_MPP) for file in files for task in tasks
        )
        self._source_mpp = {file.image: file.mpp for file in files}

    def load(self, key: CaseKey) -> Case:
        """Read the sharp file and make the example."""
        file = read_image_file(key.clean)
        sharp = self.window(at_design_mpp(file.image, self._source_mpp[key.image] or file.pixel_um))
        digest = hashlib.sha256(f"{self.seed} {key.clean.name} {key.task}".encode("utf-8", "surrogateescape")).digest()
        example = self.tasks[key.task].tried(sharp, stream(int.from_bytes(digest[:4], "big")))
        return Case(key=key, clean=example.wanted, degraded=example.given, shrunk=float(example.theta.downscale))

    def window(self, image: Tensor) -> Tensor:
        """The part of a whole image that is judged."""
        return central(image, self.crop_px)


class Prompted:
    """A prompted model that is told the task of each case: by its prompt in the plainest words, or, to compare, by the empty one.

    "enlarge" names the factor that the image was reduced by. way: the whole model, its first stage alone, or the whole without a prompt.
    notice: what a viewer of its images must know.
    """

    def __init__(
        self, name: str, model: "LPFM", *, way: Way = "whole", seed: int = 0, identity: Any = None, notice: str = GENERATED_NOTICE
    ):
        self.name, self.model, self.way, self.seed = name, model, way, seed
        self.identity, self.notice = identity, notice

    def __call__(self, case: Case) -> Tensor:
        """What it makes of what is given."""
        if case.degraded is None:
            raise ValueError("nothing is given; add --task")
        told = spec_of(self.model.tasks, task=case.key.task, scale=round(case.shrunk, 1) if case.shrunk > 1 else 2.0)
        asked = TaskSpec(task=None, text="") if self.way == "unprompted" else told
        return self.model(case.degraded, asked, scale=1.0, seed=self.seed, coarse_only=self.way == "coarse").cpu()
