"""What happened to a slide on the way that was not planned, and how it is told."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

EVENT_NOTES = {
    "unreadable": "{} of the slide's tiles cannot be decoded and show its background colour",
    "not finite": "{} tiles gave no finite result; there, the output shows the input",
    "single precision": "{} tiles were computed in fp32, since bf16 gave no finite result",
    "smaller batch": "{} times the device had too little memory and batches were halved",
}
"""A sentence for each kind, with a place for the number."""
BAD_KINDS = ("unreadable", "not finite")
"""Those that leave pixels as they were, or none."""


class Event(NamedTuple):
    """Something that went another way than planned, at a place of the slide.

    kind: "unreadable", "not finite", "single precision" or "smaller batch".
    """

    kind: str
    y_px: int
    x_px: int


def counted(events: Iterable[Event]) -> dict[str, int]:
    """How many of each kind, by name."""
    return dict(sorted(Counter(event.kind for event in events).items()))
