"""What a prompt can ask for: tasks, each with the words for it and a way to make examples.

A task of one's own is a `Task` with templates and a function that makes a pair out of a sharp image; models take any text, so that none of
their sizes depends on the tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pathorestore.degradations.blind import applied, summary
from pathorestore.degradations.blind_stages import GaussianBlur, GaussianNoise, Jpeg, Resize, Stage
from pathorestore.degradations.composed import Composed, Fault, Theta
from pathorestore.degradations.stain import SYNTHETIC_STAINS, synthetic_stain
from pathorestore.functional.noise import stream

STAINS = {"he": "H&E", "pas": "PAS", "ihc": "IHC", "masson": "Masson trichrome", "af": "autofluorescence"}
"""Stains by their short names, and what prompts call them; others are called as they are given."""


class Example(NamedTuple):
    """Images 1 3 h w in [0, 1]: what goes in and what is to come out. theta: what was done to the former, one row."""

    given: Tensor
    wanted: Tensor
    theta: Theta


MakeExample = Callable[[Tensor, torch.Generator], Example]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A thing to ask for.

    templates: ways to say it, the first one the plainest, with {source} and {target} for stains and {scale} for a factor. example: a pair
    out of a sharp image 1 3 h w and a generator; None for tasks that learn from photographed pairs alone. target: stain of what comes out,
    where it is another one. weight: how often it is trained, against others. empty_share: of prompts that are left out in training. trial:
    an example to judge by, in which what the task is for is alone and always there; made like those of training where it is None.
    """

    name: str
    templates: tuple[str, ...]
    example: MakeExample | None = None
    target: str = ""
    weight: float = 1.0
    empty_share: float = 0.1
    trial: MakeExample | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.templates or not all(template.strip() for template in self.templates):
            raise ValueError(f"a task needs a name and templates with words; got name={self.name!r}, templates={self.templates}")
        if self.weight <= 0 or not 0 <= self.empty_share < 1:
            raise ValueError(f"weight must be positive and empty_share in [0, 1); got {self.weight} and {self.empty_share}")
        for template in self.templates:
            try:
                template.format(source="", target="", scale=1.0)
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(f"template {template!r} has a place for {error}; expected {{source}}, {{target}} or {{scale}}") from error

    @property
    def translates(self) -> bool:
        """Whether another stain comes out."""
        return bool(self.target)

    @property
    def makes_examples(self) -> bool:
        """Whether sharp images can be made examples of it."""
        return self.example is not None or self.trial is not None

    def tried(self, sharp: Tensor, generator: torch.Generator) -> Example:
        """An example to judge by. Raises ValueError for a task that makes none of sharp images."""
        make = self.trial or self.example
        if make is None:
            raise ValueError(f"the task {self.name} learns from photographed pairs, and makes no examples of sharp images")
        return make(sharp, generator)


def stain_words(stain: str) -> str:
    """What prompts call a stain."""
    return STAINS.get(stain.lower(), stain)


_STAGES: dict[Fault, type[Stage]] = {"blur": GaussianBlur, "downscale": Resize, "noise": GaussianNoise, "jpeg": Jpeg}
_OTHERS: dict[Fault, tuple[str, ...]] = {
    # noise and blocks that were enlarged are no longer those of the sharp image, so fewer pixels come with blur alone
    "downscale": ("blur_probability",),
    "blur": ("downscale_probability", "noise_probability", "jpeg_probability"),
    "noise": ("blur_probability", "jpeg_probability"),
    "jpeg": ("blur_probability", "noise_probability"),
}


def without(fault: Fault, sharp: Tensor, generator: torch.Generator, *, present: float = 0.85, others: float = 0.2) -> Example:
    """An example of taking one fault away and nothing else: given with it and maybe others, wanted with the others alone.

    present: chance that the fault is there at all; where it is not, the image is wanted as it is. others: chance of each other one. So a
    prompt changes what it names. Noise is the same in both images.
    """
    changes = dict.fromkeys(_OTHERS[fault], others) | {f"{fault}_probability": present}
    plan = replace(Composed.only(fault), **changes).plan(_size(sharp), generator)  # type: ignore[arg-type]
    kept = tuple(stage for stage in plan if not isinstance(stage, _STAGES[fault]))
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    given, wanted = (applied(stages, sharp, generator=stream(seed)) for stages in (plan, kept))
    return Example(given, wanted, Theta.of([summary(plan, _size(sharp))]))


def anything(sharp: Tensor, generator: torch.Generator, *, to: str = "", clean: float = 0.0, surely: bool = False) -> Example:
    """An example of taking away whatever was done, and of another synthetic stain as well, if `to` names one.

    clean: chance of nothing. surely: draw until something was done.
    """
    recipe = replace(Composed.any(), identity_probability=clean)
    plan = recipe.plan(_size(sharp), generator)
    while surely and not plan:
        plan = recipe.plan(_size(sharp), generator)
    return Example(
        applied(plan, sharp, generator=generator), synthetic_stain(sharp, to) if to else sharp, Theta.of([summary(plan, _size(sharp))])
    )


def restained(sharp: Tensor, generator: torch.Generator, *, to: str, clean: float) -> Example:
    """An example of another synthetic stain and nothing else: what was done to the image stays. clean: chance of nothing."""
    given, _, theta = anything(sharp, generator, clean=clean)
    return Example(given, synthetic_stain(given, to), theta)


def builtin_tasks() -> tuple[Task, ...]:
    """Restoration, blind and of one fault each, and synthetic stains of sharp and of degraded H&E."""
    return (
        Task(
            name="restore",
            templates=(
                "restore the low-quality {source} image",
                "improve the quality of the {source} image",
                "make a clean image of the degraded {source} image",
            ),
            example=partial(anything, clean=0.1),
            trial=partial(anything, surely=True),
            empty_share=0.3,
        ),
        Task(
            name="sr",
            templates=(
                "enlarge the {source} image {scale:g} times",
                "super-resolve the {source} image",
                "increase the resolution of the {source} image",
            ),
            example=partial(without, "downscale"),
            trial=partial(without, "downscale", present=1.0, others=0.0),
        ),
        Task(
            name="deblur",
            templates=("deblur the {source} image", "remove the blur from the {source} image", "bring the {source} image into focus"),
            example=partial(without, "blur"),
            trial=partial(without, "blur", present=1.0, others=0.0),
        ),
        Task(
            name="denoise",
            templates=("denoise the {source} image", "remove the noise from the {source} image", "reduce the noise of the {source} image"),
            example=partial(without, "noise"),
            trial=partial(without, "noise", present=1.0, others=0.0),
        ),
        Task(
            name="restore_jpeg",
            templates=(
                "remove the JPEG artefacts from the {source} image",
                "repair the compressed {source} image",
                "undo the JPEG compression of the {source} image",
            ),
            example=partial(without, "jpeg"),
            weight=1.5,
            trial=partial(without, "jpeg", present=1.0, others=0.0),
        ),
        *(task for target in (*SYNTHETIC_STAINS, "af", "he") for task in stain_tasks(target)),
    )


def stain_tasks(target: str) -> tuple[Task, Task]:
    """Translation to a stain, of good images and of degraded ones; both learn from synthetic H&E pairs where these can be made."""
    made = target in SYNTHETIC_STAINS
    translate = Task(
        name=f"stain_{target}",
        templates=(
            "translate the {source} image to a {target} stained image",
            "virtually stain the {source} image with {target}",
            "show the {source} image as if stained with {target}",
        ),
        example=partial(restained, to=target, clean=0.6) if made else None,
        trial=partial(restained, to=target, clean=1.0) if made else None,
        target=target,
        weight=0.5,
    )
    both = Task(
        name=f"restore_stain_{target}",
        templates=(
            "restore the low-quality {source} image and translate it to a {target} stained image",
            "improve the {source} image and virtually stain it with {target}",
        ),
        example=partial(anything, to=target) if made else None,
        trial=partial(anything, to=target, surely=True) if made else None,
        target=target,
        weight=0.25,
    )
    return translate, both


def named(tasks: Sequence[Task], name: str) -> Task:
    """The task of a name. Raises ValueError, naming those there are."""
    found = next((task for task in tasks if task.name == name), None)
    if found is None:
        raise ValueError(f"no task {name!r}; expected one of {', '.join(task.name for task in tasks)}")
    return found


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
