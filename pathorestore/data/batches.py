"""What data sets hand to training: sharp crops still to be degraded, or pairs as they were photographed."""

from typing import NamedTuple

from torch import Tensor


class SharpBatch(NamedTuple):
    """Sharp crops b 3 s s in [0, 1]; key: b, int64, the crop's number, from which all its randomness follows; margin_px: b, int64.

    The margin is a rim that simulation cuts off on every side, so that the blur at the edge of what is left is as true as in the middle.
    """

    sharp: Tensor
    key: Tensor
    margin_px: Tensor


class PairBatch(NamedTuple):
    """Degraded and clean crops b 3 s s in [0, 1]; labels b, NaN where nobody knows: signed defocus in um, CTF value; key: b, int64."""

    degraded: Tensor
    clean: Tensor
    defocus_um: Tensor
    ctf: Tensor
    key: Tensor
