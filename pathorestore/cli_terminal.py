"""What the commands have to do with a terminal and its signals."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def bar(unit: str, *, quiet: bool) -> Callable[..., None]:
    """A progress bar that hears (done, total, anything to be shown beside) and starts anew after the last, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        return lambda *_: None
    from tqdm import tqdm

    bars: list[Any] = []

    def show(done: int, total: int, beside: str = "") -> None:
        if not bars:
            bars.append(tqdm(total=total, unit=unit, leave=False, file=sys.stderr))
        bars[0].set_postfix_str(beside, refresh=False)
        bars[0].update(done - bars[0].n)
        if done >= total:
            bars.pop().close()

    return show


@contextmanager
def termination_as_interruption() -> Iterator[None]:
    """Let SIGTERM (a job queue's way to stop us) end the batch as Ctrl-C does, so that no temporary file is left."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    # only in the main thread may handlers be set, and one that is set already knows better
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
