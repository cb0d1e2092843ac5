"""One image file worked at: read, made into another, written with the record of how."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from pathorestore.pipelines.batch import Done, Job
from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS, ImageFile, check_target, read_image_file, write_image_file
from pathorestore.pipelines.provenance import Parameter, Provenance
from pathorestore.version import __version__


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """What a file became. image: 1 3 h w in [0, 1]. like: how it is stored, of the same size. parameters, notes: of this file."""

    image: Tensor
    like: ImageFile
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageWork(ABC):
    """The work of `run_batch` on image files: makes the input of a job into its output.

    seed: the same for every file, so results do not depend on order or company. clock: the time of creation, ISO 8601 in UTC.
    """

    model_id: str
    weights_sha256: str | None
    parameters: Mapping[str, Parameter]
    clock: Callable[[], str]
    seed: int = 0
    overwrite: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS

    notice: ClassVar[str]
    """What a viewer of the output must know."""

    def __call__(self, job: Job) -> Done:
        """Do the work on one file. Raises ImageFileError or OSError for what the user can mend."""
        given = read_image_file(job.input, max_pixels=self.max_pixels)
        check_target(job.output, given.path, overwrite=self.overwrite)  # before the long part
        self.check(job, given)
        made = self.made(given)
        provenance = Provenance(
            version=__version__,
            model_id=self.model_id,
            weights_sha256=self.weights_sha256,
            seed=self.seed,
            parameters={**self.parameters, **made.parameters},
            input_sha256=given.input_sha256,
            pixel_um=made.like.pixel_um,
            created_utc=self.clock(),
            notice=self.notice,
        )
        with self.beside(job, given, made, provenance):
            left_out = write_image_file(job.output, made.image, made.like, provenance, overwrite=self.overwrite)
        return Done(megapixels=given.megapixels, notes=given.notes + made.notes + left_out)

    @abstractmethod
    def made(self, given: ImageFile) -> Made:
        """What a file becomes."""

    def check(self, job: Job, given: ImageFile) -> None:
        """Refuse what cannot be done, before the long part."""
        del job, given

    def beside(self, job: Job, given: ImageFile, made: Made, provenance: Provenance) -> AbstractContextManager[None]:
        """The time in which what belongs to the output lies beside it, while that is written."""
        del job, given, made, provenance
        return nullcontext()
