"""Sharp crops become degraded and clean pairs: the simulator as a source of training data."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pathorestore.data.batches import PairBatch, SharpBatch
from pathorestore.degradations.optical import Degraded, degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.functional.noise import stream

_EVALUATION = 0x5EED  # streams of validation never meet those of training


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What training sees: `ideal_share` of the images by `Setting.ideal()`, `ideal_max_um` deep, the rest by `Setting.scanner()`.

    seed: image number `key` is degraded by the stream (seed, key), whatever batch, process or resumed run it falls into.
    """

    ideal_share: float = 0.5
    ideal_max_um: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.ideal_share <= 1 or self.ideal_max_um <= 0:
            raise ValueError(f"ideal_share must lie in [0, 1] and ideal_max_um be positive; got {self.ideal_share} and {self.ideal_max_um}")

    def __call__(self, batch: SharpBatch | PairBatch) -> PairBatch:
        """Degrade sharp crops; pairs that were photographed stay as they are."""
        if isinstance(batch, PairBatch):
            return batch
        streams = [stream(self.seed, key) for key in batch.key.tolist()]
        settings = [self._setting(generator) for generator in streams]
        return _pairs(batch, None, settings, streams)

    def _setting(self, generator: torch.Generator) -> Setting:
        if torch.rand((), generator=generator).item() < self.ideal_share:
            return replace(Setting.ideal(), max_defocus_um=self.ideal_max_um)
        return Setting.scanner()


def simulated_at(batch: SharpBatch, z_um: float, *, setting: Setting) -> PairBatch:
    """The batch in one setting at one focus position, with the same draws every time: what validation looks at."""
    streams = [stream(_EVALUATION, round(1000 * z_um), key) for key in batch.key.tolist()]
    return _pairs(batch, torch.full((len(batch.sharp),), z_um), [setting] * len(streams), streams)


def sharp_middle(batch: SharpBatch) -> Tensor:
    """The sharp crops without their margins."""
    margin = int(batch.margin_px[0])
    return batch.sharp[..., margin : batch.sharp.shape[-2] - margin, margin : batch.sharp.shape[-1] - margin]


def _pairs(batch: SharpBatch, z_um: Tensor | None, settings: list[Setting], streams: list[torch.Generator]) -> PairBatch:
    # optics in bfloat16 would be other optics
    with torch.no_grad(), torch.autocast(batch.sharp.device.type, enabled=False):
        made: Degraded = degrade(batch.sharp, z_um, setting=settings, generator=streams, margin_px=int(batch.margin_px[0]))
    return PairBatch(made.degraded, made.clean, made.defocus_um, made.ctf, batch.key)
