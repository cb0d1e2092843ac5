"""Which keys a process sees, and in what order: counted up from 0 over all epochs, parted among processes, the same after a restart."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DistributedSampler

# Both are DistributedSamplers, as Lightning would otherwise part among the processes what has been parted already.


class KeySampler(DistributedSampler[Any]):
    """Training keys: epoch e counts from e * epoch_size; of the keys s B .. s B + B - 1 of step s, process r has the r-th share.

    batch_size: of one process; times the number of processes it is B. first: keys that an earlier run has used up; the epoch that they
    end in goes on behind them. Raises ValueError if the epoch is not a whole number of global batches.
    """

    def __init__(self, *, epoch_size: int, batch_size: int, rank: int = 0, world: int = 1, first: int = 0):
        whole = batch_size * world
        if epoch_size < 1 or epoch_size % whole:
            raise ValueError(
                f"epoch_size={epoch_size} must be a multiple of batch_size * processes = {batch_size} * {world}; "
                f"try {max(whole, round(epoch_size / whole) * whole)}"
            )
        super().__init__(range(epoch_size), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.epoch_size, self.batch_size, self.first = epoch_size, batch_size, first

    def start(self) -> int:
        """The first key of the current epoch that is not used up."""
        return max(self.first, self.epoch * self.epoch_size)

    def __iter__(self) -> Iterator[int]:
        start = self.start()
        end = (start // self.epoch_size + 1) * self.epoch_size
        whole = self.batch_size * self.num_replicas
        for step in range(start, end - whole + 1, whole):
            yield from range(step + self.rank * self.batch_size, step + (self.rank + 1) * self.batch_size)

    def __len__(self) -> int:
        """Keys of a whole epoch for this process, in a resumed one too: Lightning subtracts what it has done of it."""
        return self.epoch_size // self.num_replicas


class ShareSampler(DistributedSampler[Any]):
    """Validation keys 0 .. count - 1: every key once, on one process, so that figures add up exactly; process r has r, r + world, ..."""

    def __init__(self, count: int, *, rank: int = 0, world: int = 1):
        super().__init__(range(count), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.keys = range(rank, count, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)
