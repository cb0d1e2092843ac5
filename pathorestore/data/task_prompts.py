"""Between tasks and the words for them: prompts of tasks, tasks of prompts, and what was done to an image as words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

import torch

from pathorestore.data.tasks import STAINS, Task, named, stain_words
from pathorestore.degradations.composed import Theta

LONGEST_PROMPT = 190
"""In bytes of UTF-8."""

_DESCRIPTOR = re.compile(r"; (?:blur|reduced|noise|JPEG) .*$")
_NUMBER = r"(?P<scale>\d+(?:\.\d+)?)"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069]+")


class UnknownPrompt(UserWarning):
    """Words that no task has, which are passed on."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What is asked for. task: None for free text that is no known one's. text: the prompt, as the model reads it. scale: of "enlarge"."""

    task: Task | None
    text: str
    source: str = "he"
    target: str = ""
    scale: float = 1.0

    @property
    def known(self) -> bool:
        """Whether some task has these words."""
        return self.task is not None

    @property
    def translates(self) -> bool:
        """Whether another stain comes out."""
        return bool(self.target)


def render(task: Task, *, source: str = "he", scale: float = 2.0, way: int = 0, theta: Theta | None = None) -> str:
    """The prompt for a task: the template number `way`, modulo their number; theta, one row, is described behind it."""
    template = task.templates[way % len(task.templates)]
    words = template.format(source=stain_words(source), target=stain_words(task.target), scale=scale)
    return words + (descriptor(theta) if theta is not None else "")


def descriptor(theta: Theta) -> str:
    """One row as words: sigma of the blur along x and y in px, scale, sigma of the noise of 255, quality; nothing of what was not done."""
    x, y, scale, noise, quality = (float(one) for one in theta)
    said = [f"blur {x:.2f} {y:.2f}"] if max(x, y) >= 0.005 else []
    said += [f"reduced {scale:.2f}"] if scale >= 1.005 else []
    said += [f"noise {255 * noise:.2f}"] if 255 * noise >= 0.005 else []
    said += [f"JPEG {quality:.0f}"] if quality < 99.5 else []
    return "; " + ", ".join(said) if said else ""


def drawn_prompt(task: Task, theta: Theta, generator: torch.Generator, *, source: str = "he", described: float = 0.5) -> str:
    """A prompt to train with: empty in `task.empty_share` of all draws, else one of the ways to say it, described or not.

    Factors have one decimal, as people write them; where nothing was reduced, that asked for is any from 1.5 to 4.
    """
    empty, tells, asked = (float(torch.rand((), generator=generator)) for _ in range(3))
    way = int(torch.randint(len(task.templates), (), generator=generator))
    if empty < task.empty_share:
        return ""
    scale = float(theta.downscale) if float(theta.downscale) > 1 else 1.5 + 2.5 * asked
    return render(task, source=source, way=way, scale=round(scale, 1), theta=theta if tells < described else None)


def checked(prompt: str) -> str:
    """A prompt that can be read, recorded and shown, its words one space apart.

    Raises ValueError for one without words, with characters that cannot be printed, or longer than 190 bytes.
    """
    if _UNPRINTABLE.search(prompt.strip()):
        raise ValueError(f"the prompt {prompt!a} holds line breaks or characters that cannot be printed; write it on one line")
    text = " ".join(prompt.split())
    if not text:
        raise ValueError('the prompt is empty; say what to do, such as "denoise the H&E image"')
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"the prompt {prompt!a} is no text; expected characters of Unicode") from None
    if length > LONGEST_PROMPT:
        raise ValueError(f"the prompt has {length} bytes; the most is {LONGEST_PROMPT}")
    return text


def parse(prompt: str, tasks: Sequence[Task]) -> TaskSpec:
    """What a prompt asks for: the task one of whose templates it is, whatever its case, spaces and descriptor; else free text.

    A known one goes on as the model learned it, free text as it is. Raises ValueError as `checked`.
    """
    text = checked(prompt)
    found = _DESCRIPTOR.search(text)
    described, plain = found.group() if found else "", _DESCRIPTOR.sub("", text).rstrip(".")
    for task in tasks:
        for template in task.templates:
            if match := _pattern(template, task).fullmatch(plain):
                told = match.groupdict()
                source, scale = _code(told.get("source") or "he"), float(told.get("scale") or 1)
                words = template.format(source=stain_words(source), target=stain_words(task.target), scale=scale)
                return TaskSpec(task=task, text=words + described, source=source, target=task.target, scale=scale)
    return TaskSpec(task=None, text=text)


def spec_of(tasks: Sequence[Task], *, task: str, source: str = "he", scale: float = 2.0) -> TaskSpec:
    """The plainest prompt of the task of a name. scale: for those that name one; of others it is 1.

    Raises ValueError for a name that no task has, and as `checked`.
    """
    chosen = named(tasks, task)
    text = checked(render(chosen, source=source, scale=scale))
    said = scale if "{scale" in chosen.templates[0] else 1.0
    return TaskSpec(task=chosen, text=text, source=source, target=chosen.target, scale=said)


def _pattern(template: str, task: Task) -> re.Pattern[str]:
    # a stain that nobody listed may have any short name
    sources = "|".join(re.escape(name) for name in (*STAINS.values(), *STAINS))
    first = {"scale": _NUMBER, "source": rf"(?P<source>{sources}|[\w&+-]+)"}
    words = ""
    for text, place, _, _ in Formatter().parse(template):
        words += re.escape(text)
        if place == "target":
            words += _either(task.target)
        elif place is not None:
            words += first.pop(place, f"(?P={place})")
    return re.compile(words, re.IGNORECASE)


def _either(stain: str) -> str:
    return "(?:" + "|".join(re.escape(name) for name in {stain, stain_words(stain)}) + ")"


def _code(words: str) -> str:
    """The short name of a stain that a prompt names."""
    return next((code for code, name in STAINS.items() if words.lower() in (code, name.lower())), words)
