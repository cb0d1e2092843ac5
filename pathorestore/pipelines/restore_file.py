"""One file restored: read, restore, write, with the record of how."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from torch import Tensor

from pathorestore.pipelines.batch import Done, Job
from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS, ImageFile, check_target, read_image_file, write_image_file
from pathorestore.pipelines.provenance import Parameter, Provenance
from pathorestore.pipelines.restorer import Restorer
from pathorestore.pipelines.risk_files import check_risk_targets, risk_beside
from pathorestore.pipelines.trust import RiskMap
from pathorestore.version import __version__


@dataclass(frozen=True, kw_only=True, eq=False)
class RestoreFile:
    """The work of `run_batch`: restores the input of a job into its output.

    seed: the same for every file, so results do not depend on order or company. clock: the time of creation, ISO 8601 in UTC.
    risk: makes the map of expected errors that is written beside the output, see `risk_files`; None writes none. replace_maps: replace maps
    even where no output may be; for runs that leave outputs that exist, in which a map without its image is what a stopped run left.
    """

    restorer: Restorer
    model_id: str
    weights_sha256: str | None
    parameters: Mapping[str, Parameter]
    clock: Callable[[], str]
    seed: int = 0
    overwrite: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS
    risk: RiskMap | None = None
    replace_maps: bool = False

    def __call__(self, job: Job) -> Done:
        """Restore one file. Raises ImageFileError or OSError for what the user can mend."""
        degraded = read_image_file(job.input, max_pixels=self.max_pixels)
        check_target(job.output, degraded.path, overwrite=self.overwrite)  # before the long part
        if self.risk is not None:
            check_risk_targets(job.output, degraded.path, overwrite=self.overwrite or self.replace_maps)
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
        with self._risk_written(job, restored, degraded, provenance):
            left_out = write_image_file(job.output, restored, degraded, provenance, overwrite=self.overwrite)
        return Done(megapixels=degraded.megapixels, notes=degraded.notes + left_out)

    def _risk_written(self, job: Job, restored: Tensor, degraded: ImageFile, provenance: Provenance) -> AbstractContextManager[None]:
        """The time in which the risk map lies beside the output that is being written."""
        if self.risk is None:
            return nullcontext()
        maps = self.risk.of(degraded.image, restored, seed=self.seed)
        made_with = {"risk_seeds": self.risk.seeds, "risk_window_px": self.risk.model.settings.window_px}
        told = replace(provenance, parameters={**provenance.parameters, **made_with})
        return risk_beside(job.output, maps.risk, restored, degraded, told, overwrite=self.overwrite or self.replace_maps)
