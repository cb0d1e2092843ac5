"""One file restored: read, restore, write, with the record of how."""

from dataclasses import dataclass

from pathorestore.pipelines.image_file import ImageFile
from pathorestore.pipelines.image_work import ImageWork, Made
from pathorestore.pipelines.restorer import Restorer


@dataclass(frozen=True, kw_only=True, eq=False)
class RestoreFile(ImageWork):
    """Restores image files."""

    restorer: Restorer

    def made(self, given: ImageFile) -> Made:
        """The restored image."""
        return Made(image=self.restorer.restore(given.image, seed=self.seed), like=given)
