"""One file restored: read, restore, write, with the record of how."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pathorestore.pipelines.batch import Done, Job
from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS, check_target, read_image_file, write_image_file
from pathorestore.pipelines.provenance import Parameter, Provenance
from pathorestore.pipelines.restorer import Restorer
from pathorestore.version import __version__


@dataclass(frozen=True, kw_only=True, eq=False)
class RestoreFile:
    """The work of `run_batch`: restores the input of a job into its output.

    seed: the same for every file, so results do not depend on order or company. clock: the time of creation, ISO 8601 in UTC.
    """

    restorer: Restorer
    model_id: str
    weights_sha256: str | None
    parameters: Mapping[str, Parameter]
    clock: Callable[[], str]
    seed: int = 0
    overwrite: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __call__(self, job: Job) -> Done:
        """Restore one file. Raises ImageFileError or OSError for what the user can mend."""
        degraded = read_image_file(job.input, max_pixels=self.max_pixels)
        check_target(job.output, degraded.path, overwrite=self.overwrite)  # before the long part
        restored = self.restorer.restore(degraded.image, seed=self.seed)
        provenance = Provenance(
            version=__version__,
            model_id=self.model_id,
            weights_sha256=self.weights_sha256,
            seed=self.seed,
            parameters=self.parameters,
            input_sha256=degraded.input_sha256,
            pixel_um=degraded.pixel_um,
            created_utc=self.clock(),
        )
        left_out = write_image_file(job.output, restored, degraded, provenance, overwrite=self.overwrite)
        return Done(megapixels=degraded.megapixels, notes=degraded.notes + left_out)
