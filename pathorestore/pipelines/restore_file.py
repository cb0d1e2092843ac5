"""One file restored: read, restore, write, with the record of how."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from pathorestore.pipelines.batch import Job
from pathorestore.pipelines.image_file import ImageFile
from pathorestore.pipelines.image_work import ImageWork, Made
from pathorestore.pipelines.provenance import RESTORED_NOTICE, Provenance
from pathorestore.pipelines.restorer import Restorer
from pathorestore.pipelines.risk_files import check_risk_targets, risk_beside
from pathorestore.pipelines.trust import RiskMap


@dataclass(frozen=True, kw_only=True, eq=False)
class RestoreFile(ImageWork):
    """Restores image files.

    risk: makes the map of expected errors that is written beside the output, see `risk_files`; None writes none. replace_maps: replace maps
    even where no output may be; for runs that leave outputs that exist, in which a map without its image is what a stopped run left.
    """

    restorer: Restorer
    risk: RiskMap | None = None
    replace_maps: bool = False
    notice = RESTORED_NOTICE

    def check(self, job: Job, given: ImageFile) -> None:
        """Refuse where the maps may not be written."""
        if self.risk is not None:
            check_risk_targets(job.output, given.path, overwrite=self.overwrite or self.replace_maps)

    def made(self, given: ImageFile) -> Made:
        """The restored image."""
        return Made(image=self.restorer.restore(given.image, seed=self.seed), like=given)

    def beside(self, job: Job, given: ImageFile, made: Made, provenance: Provenance) -> AbstractContextManager[None]:
        """The risk map lies beside the output."""
        if self.risk is None:
            return nullcontext()
        maps = self.risk.of(given.image, made.image, seed=self.seed)
        made_with = {"risk_seeds": self.risk.seeds, "risk_window_px": self.risk.model.settings.window_px}
        told = replace(provenance, parameters={**provenance.parameters, **made_with})
        return risk_beside(job.output, maps.risk, made.image, given, told, overwrite=self.overwrite or self.replace_maps)
