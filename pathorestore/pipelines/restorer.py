"""What a restorer is, and the steps that a tiling engine takes it apart into."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from pathorestore.functional.noise import NoiseField

Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """The progress report that reports nothing."""
    del done, total


class Restorer(Protocol):
    """Degraded images in, restored images of the same size out.

    tile_px: the side of the images it was trained to see, and that a tiling engine should hand it.
    """

    @property
    def tile_px(self) -> int:
        """The side of the tiles it wants."""
        ...

    def restore(self, image: Tensor, *, seed: int = 0) -> Tensor:
        """Restore images b 3 h w in [0, 1]; the result has the same shape and range. Raises ValueError on anything else."""
        ...


class StagedRestorer(Restorer, Protocol):
    """A restorer whose work can be interrupted between stages, so that tiles can be blended after each.

    prepare: what a tile's later stages need to know of the degraded tile (its prompts); a tuple of tensors, batch first.
    stages: functions (current image, degraded image, context, noise) -> next image, unclamped.
    """

    @property
    def multiple_px(self) -> int:
        """Sides of the tiles must be multiples of this."""
        ...

    def prepare(self, degraded: Tensor) -> Any:
        """The context of degraded tiles b 3 tile tile."""
        ...

    @property
    def stages(self) -> tuple[Callable[[Tensor, Tensor, Any, NoiseField], Tensor], ...]:
        """The stages in order."""
        ...
