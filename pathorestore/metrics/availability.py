"""Whether a metric can be computed here: some need weights or packages that are not everywhere, and none invents a number."""

from typing import NamedTuple


class Availability(NamedTuple):
    """ok: whether it can be computed. reason: what is missing and what to do about it, one sentence; empty if nothing is."""

    ok: bool
    reason: str = ""
