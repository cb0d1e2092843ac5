"""The work on images and slides alike, each by the engine that it needs, and how it is asked to stop."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathorestore.pipelines.batch import Done, Job
    from pathorestore.pipelines.image_work import ImageWork
    from pathorestore.slide.restore import RestoreSlide


class StopSignal:
    """Ctrl-C and SIGTERM, by which job queues stop their jobs: a slide finishes its row of tiles first; a second one ends it at once."""

    def __init__(self, say: Callable[[str], None]):
        self.asked = False
        self._say, self._slide = say, False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen; outside the main thread, where nobody may, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def between_rows(self) -> Iterator[None]:
        """Let what runs now stop where it wants to."""
        self._slide = True
        try:
            yield
        finally:
            self._slide = False

    def _hear(self, _signal: int, _frame: object) -> None:
        if not self._slide or self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping after this row of tiles, which is kept; once more stops at once")


@dataclass(frozen=True, kw_only=True, eq=False)
class RestoreAny:
    """The work of `run_batch` on images and slides.

    pyramid: plain images are slides too. for_slides: wishes that images cannot have, as on the command line. for_images: whether something
    is asked that slides cannot have.
    """

    image: "ImageWork"
    slide: "RestoreSlide"
    pyramid: bool
    stop: StopSignal
    for_slides: tuple[str, ...] = ()
    for_images: bool = False

    def __call__(self, job: "Job") -> "Done":
        """Restore one file by the engine that it needs."""
        if self.stop.asked:  # too late for the slide before, which was being written
            raise KeyboardInterrupt
        if not self.takes_slide(job):
            self._check_for_images(job)
            return self.image(job)
        if self.for_images:
            check_no_slides([job], pyramid=self.pyramid)
        with self.stop.between_rows():
            return self.slide(job)

    def _check_for_images(self, job: "Job") -> None:
        """Refuse what would be passed over in silence."""
        from pathorestore.pipelines.batch import PlanError

        if self.for_slides:
            raise PlanError(
                f"{job.input}: {self.for_slides[0]} is for slides, and this is a plain image; treat it as a slide with --pyramid, or leave "
                "it out"
            )

    def takes_slide(self, job: "Job") -> bool:
        """Whether a file goes through the slide engine."""
        return takes_slide(job, pyramid=self.pyramid)

    def size(self, job: "Job") -> tuple[int, ...]:
        """How long a job will take beside others: slides by their tiles, then images by their bytes, then what cannot be read."""
        try:
            return (1, self.slide.estimate(job.input).tiles) if self.takes_slide(job) else (0, job.input.stat().st_size)
        except Exception:  # told when it is the job's turn
            return (-1,)

    def ask_to_stop(self) -> None:
        """Have a slide stop after the row of tiles that it is at."""
        self.stop.asked = True

    @property
    def stopping(self) -> bool:
        """Whether it has been asked to."""
        return self.stop.asked

    def patiently(self) -> AbstractContextManager[None]:
        """A time in which Ctrl-C asks first, and interrupts only when it comes again."""
        return self.stop.between_rows()


def takes_slide(job: "Job", *, pyramid: bool) -> bool:
    """Whether a file goes through the slide engine. pyramid: all do."""
    from pathorestore.slide.readers import is_slide

    return pyramid or is_slide(job.input)


def check_no_slides(jobs: "Sequence[Job]", *, pyramid: bool) -> None:
    """Raise PlanError, saying what to do, if a risk map was asked for and any of the files goes through the slide engine."""
    from pathorestore.pipelines.batch import PlanError

    for job in jobs:
        if takes_slide(job, pyramid=pyramid):
            remedy = "export the region of interest as PNG or TIFF and restore that, or leave it out"
            raise PlanError(f"{job.input}: --risk-map is for plain images, and this is treated as a slide; {remedy}")
