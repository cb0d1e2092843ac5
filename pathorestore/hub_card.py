"""The model card: what a person must know before trusting weights, written beside them as README.md."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

_UNRECORDED = "not recorded"

_INTENDED = (
    "Research on computational pathology: making an out-of-focus, noisy or low-resolution image of stained tissue easier to read by people "
    "and programs, with the original kept beside it."
)
_OUT_OF_SCOPE = (
    "Not for primary diagnosis. The output is an estimate: it can show structure that the specimen does not have and lose some that it "
    "has. It is no medical device, and nothing is claimed for stains, scanners or tissues that the data below do not hold."
)
_CITATION = """@software{pathorestore,
  title  = {pathorestore: restoration of pathology images},
  author = {{The pathorestore authors}},
  url    = {https://github.com/pathorestore/pathorestore}
}"""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known about a set of weights.

    data, seed, command, duration, hardware, code: how they were made, in words that let a reader repeat it. hardware: machine, memory and
    precision; code: versions and commit. metrics: name (with its unit and the split it was measured on) to value. references: papers, one
    per entry. Empty fields are printed as "not recorded", so that silence is seen.
    Raises ValueError for an empty title or licence.
    """

    title: str
    summary: str = ""
    license: str = "apache-2.0"
    pipeline_tag: str = "image-to-image"
    tags: tuple[str, ...] = ("pathology", "microscopy", "image-restoration")
    intended_use: str = _INTENDED
    out_of_scope: str = _OUT_OF_SCOPE
    data: str = ""
    seed: str = ""
    command: str = ""
    duration: str = ""
    hardware: str = ""
    code: str = ""
    metrics: Mapping[str, float | str] = field(default_factory=dict)
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("title", "license"):
            if not getattr(self, name).strip():
                raise ValueError(f"a model card's {name} is empty; expected text, e.g. title='mop-tiny', license='apache-2.0'")


def render(card: ModelCard, *, parts: Mapping[str, int]) -> str:
    """The card as Markdown under a YAML front matter that the Hugging Face hub reads; `parts` maps class names to parameter counts."""
    sections = [
        _front_matter(card),
        f"# {card.title}",
        card.summary or f"Weights for {', '.join(parts)} of pathorestore.",
        f"## Parts\n\n{_table('part', 'parameters', {name: f'{count:,}' for name, count in parts.items()})}",
        f"## Intended use\n\n{card.intended_use}",
        f"## Out of scope\n\n{card.out_of_scope}",
        f"## Training\n\n{_training(card)}",
        f"## Metrics\n\n{_table('metric', 'value', card.metrics) if card.metrics else _UNRECORDED}",
        f"## How to cite\n\n```bibtex\n{_CITATION}\n```",
        *card.references,
        f"## Licence\n\n{card.license}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(card: ModelCard) -> str:
    # JSON strings and lists are YAML too, and quote what a bare scalar would misread
    rows = {"license": card.license, "library_name": "pathorestore", "pipeline_tag": card.pipeline_tag, "tags": list(card.tags)}
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in rows.items()), "---"])


def _training(card: ModelCard) -> str:
    command = f"`{card.command}`" if card.command else ""
    rows = {"data": card.data, "seed": card.seed, "command": command}
    rows |= {"duration": card.duration, "hardware": card.hardware, "code": card.code}
    return "\n".join(f"* **{name}**: {text or _UNRECORDED}" for name, text in rows.items())


def _table(left: str, right: str, rows: Mapping[str, float | str]) -> str:
    cells = [(name, value if isinstance(value, str) else format(value, ".4g")) for name, value in rows.items()]
    body = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in cells]
    return "\n".join([f"| {left} | {right} |", "|---|---|", *body])
