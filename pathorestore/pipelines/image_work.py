"""One image file worked at: read, made into another, written with the record of how."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from pathorestore.pipelines.batch import Done, Job
from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS, ImageFile, check_target, read_image_file, write_image_file
from pathorestore.pipelines.provenance import RESTORED_NOTICE, Parameter, Provenance, inherited
from pathorestore.pipelines.risk_files import check_risk_targets, risk_beside
from pathorestore.pipelines.risk_model import RiskModel
from pathorestore.version import __version__


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """What a file became. image: 1 3 h w in [0, 1]. like: how it is stored, of the same size. parameters, notes: of this file."""

    image: Tensor
    like: ImageFile
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Risk(Protocol):
    """Makes the map of the errors that an output is expected to have."""

    @property
    def notice(self) -> str:
        """What a viewer of the map must know."""
        ...

    @property
    def model(self) -> RiskModel:
        """What turns signals into errors."""
        ...

    @property
    def seeds(self) -> int:
        """How often images are made anew for it."""
        ...

    def expected_error(self, before: Tensor, after: Tensor, *, seed: int = 0) -> Tensor:
        """The map b 1 H W in grey levels of outputs b 3 H W, made of inputs b 3 h w with a seed."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageWork(ABC):
    """The work of `run_batch` on image files: makes the input of a job into its output.

    seed: the same for every file, so results do not depend on order or company. clock: the time of creation, ISO 8601 in UTC.
    notice: what a viewer of the output must know. risk: makes the map of expected errors that is written beside the output, see
    `risk_files`; None writes none. replace_maps: replace maps even where no output may be; for runs that leave outputs that exist, in which
    a map without its image is what a stopped run left.
    """

    model_id: str
    weights_sha256: str | None
    parameters: Mapping[str, Parameter]
    clock: Callable[[], str]
    seed: int = 0
    overwrite: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS
    notice: str = RESTORED_NOTICE
    risk: Risk | None = None
    replace_maps: bool = False

    def __call__(self, job: Job) -> Done:
        """Do the work on one file. Raises ImageFileError or OSError for what the user can mend."""
        given = read_image_file(job.input, max_pixels=self.max_pixels)
        check_target(job.output, given.path, overwrite=self.overwrite)  # before the long part
        self.check(job, given)
        if self.risk is not None:
            check_risk_targets(job.output, given.path, overwrite=self.overwrite or self.replace_maps)
        made = self.made(given)
        before = inherited(given.path, self.notice)
        provenance = Provenance(
            version=__version__,
            model_id=self.model_id,
            weights_sha256=self.weights_sha256,
            seed=self.seed,
            parameters=before.over({**self.parameters, **made.parameters}),
            input_sha256=given.input_sha256,
            pixel_um=made.like.pixel_um,
            created_utc=self.clock(),
            notice=before.notice,
        )
        with self._maps(job, given, made, provenance):
            left_out = write_image_file(job.output, made.image, made.like, provenance, overwrite=self.overwrite)
        return Done(megapixels=given.megapixels, notes=given.notes + made.notes + left_out + before.notes)

    @abstractmethod
    def made(self, given: ImageFile) -> Made:
        """What a file becomes."""

    def check(self, job: Job, given: ImageFile) -> None:
        """Refuse what cannot be done, before the long part."""
        del job, given

    def _maps(self, job: Job, given: ImageFile, made: Made, provenance: Provenance) -> AbstractContextManager[None]:
        """The time in which the risk map lies beside the output, while that is written."""
        if self.risk is None:
            return nullcontext()
        expected = self.risk.expected_error(given.image, made.image, seed=self.seed)
        made_with = {"risk_seeds": self.risk.seeds, "risk_window_px": self.risk.model.settings.window_px}
        told = replace(provenance, parameters={**provenance.parameters, **made_with}, notice=self.risk.notice)
        return risk_beside(job.output, expected, made.image, made.like, told, overwrite=self.overwrite or self.replace_maps)
