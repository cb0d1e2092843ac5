"""How far the two members of a pair are apart, though one of them may be far out of focus."""

import math
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW_PX = 512
SMALLEST_PX = 64
CERTAIN_PX = 0.375  # unrelated images are all but never below
_HIGHEST = 0.2  # cycles/px: above, defocused images hold little but noise
_HIGHEST_COARSE = 0.1
_RING = 0.008  # cycles/px: narrower than the lobes of the transfer function at 10 um of defocus
_FEWEST_BINS = 4
_SHARE = 2.25  # bins of a Hann-windowed spectrum that speak as one
_HONEST = 2.5  # by which the bound below is too good; measured on simulated pairs, where 9 of 10 errors are within two standard errors
_ERRORS, _BIAS_PX = 1.6, 0.1

Plane = NDArray[np.float32]


class Shift(NamedTuple):
    """By how much the content of the second image lies right of and below that of the first, in px, and the standard error of that."""

    x_px: float
    y_px: float
    error_px: float

    @property
    def length_px(self) -> float:
        """How far, whatever the direction."""
        return math.hypot(self.x_px, self.y_px)

    @property
    def certain(self) -> bool:
        """Whether the images say anything: blank and unrelated ones do not."""
        return self.error_px <= CERTAIN_PX

    def surely_exceeds(self, limit_px: float) -> bool:
        """Whether the shift is longer than the limit beyond reasonable doubt."""
        return self.certain and self.length_px > limit_px + _ERRORS * self.error_px + _BIAS_PX


class _Ring(NamedTuple):
    """Unit phases of a cross spectrum within a narrow ring, zero elsewhere in the box that holds it: rows fy by columns fx, cycles/px."""

    phases: NDArray[np.complex128]
    fy: NDArray[np.float64]
    fx: NDArray[np.float64]
    bins: int
    frequency: float

    def correlation(self, y_px: NDArray[np.float64], x_px: NDArray[np.float64]) -> NDArray[np.float64]:
        """In [-1, 1], at the shifts y by x."""
        along_y, along_x = np.exp(2j * np.pi * np.outer(y_px, self.fy)), np.exp(2j * np.pi * np.outer(self.fx, x_px))
        return (along_y @ self.phases @ along_x).real / self.bins


def worst_shift(clean: Plane, degraded: Plane) -> Shift | None:
    """The longest certain shift among up to five windows (corners and middle) of two gray images h w of one size, else the least uncertain.

    Several windows, for a rotation or a wrong scale shifts the corners and not the middle. None for images below 64 px.
    """
    found = [shift_between(clean[part], degraded[part]) for part in _windows(*clean.shape)]
    certain = [shift for shift in found if shift.certain]
    if certain:
        return max(certain, key=lambda shift: shift.length_px - _ERRORS * shift.error_px)
    return min(found, key=lambda shift: shift.error_px, default=None)


def shift_between(clean: Plane, degraded: Plane) -> Shift:
    """The shift between two gray images h w of one size, up to half of it, to a fraction of a pixel.

    Phase correlation in rings of the spectrum. Defocus multiplies the spectrum by a transfer function that is real and all but round, yet
    turns negative at some frequencies, so that the sum over all of them may peak beside the shift. The correlation of a ring is extremal
    at the shift, whatever its sign; what is maximised is the sum of the squares. Rings of pure noise add next to nothing.
    """
    rings = _rings(clean, degraded)
    if not rings:
        return Shift(0.0, 0.0, math.inf)
    y_px, x_px = _coarse([ring for ring in rings if ring.frequency < _HIGHEST_COARSE], clean.shape)
    for reach, spacing in ((2.4, 0.6), (0.6, 0.12), (0.12, 0.02)):
        offsets = np.arange(-reach, reach + spacing / 2, spacing)
        agreed = np.stack([ring.correlation(y_px + offsets, x_px + offsets) for ring in rings])
        weights = np.array([ring.bins for ring in rings])
        row, column = divmod(int(np.argmax(np.einsum("r,ryx->yx", weights, agreed**2))), len(offsets))
        y_px, x_px = y_px + float(offsets[row]), x_px + float(offsets[column])
    return Shift(x_px, y_px, _error_px(rings, agreed[:, row, column]))


def _windows(height: int, width: int) -> list[tuple[slice, slice]]:
    tall, wide = min(height, WINDOW_PX), min(width, WINDOW_PX)
    if min(tall, wide) < SMALLEST_PX:
        return []
    corners = set(product((0, height - tall), (0, width - wide))) | {((height - tall) // 2, (width - wide) // 2)}
    return [(slice(top, top + tall), slice(left, left + wide)) for top, left in sorted(corners)]


def _rings(clean: Plane, degraded: Plane) -> list[_Ring]:
    """The cross spectrum of both images in rings from two bins of frequency upwards: below, the window speaks and not the image."""
    height, width = clean.shape
    fade = np.outer(np.hanning(height), np.hanning(width))
    last_y, last_x = int(_HIGHEST * height), int(_HIGHEST * width)

    def band(image: Plane) -> NDArray[np.complex128]:
        whole = np.fft.rfft2((image - image.mean()) * fade)
        return np.concatenate([whole[-last_y:, : last_x + 1], whole[: last_y + 1, : last_x + 1]])

    cross = band(clean) * band(degraded).conj()
    strength = np.abs(cross)
    phases = cross.conj() / np.maximum(strength, 1e-12)
    fy, fx = np.arange(-last_y, last_y + 1) / height, np.arange(last_x + 1) / width
    frequency = np.hypot(fy[:, None], fx[None])
    finest = 2 / min(height, width)
    index = np.floor((frequency - finest) / max(_RING, finest)).astype(np.int64)
    index[(frequency < finest) | (frequency >= _HIGHEST) | (strength < 1e-6)] = -1
    index[:last_y, 0] = -1  # the other half of this column says the same again
    rings = []
    for number in range(int(index.max(initial=-1)) + 1):
        inside = index == number
        if inside.sum() >= _FEWEST_BINS:
            rows, columns = inside.any(axis=1).nonzero()[0], inside.any(axis=0).nonzero()[0]
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            kept = (phases * inside)[box]
            rings.append(_Ring(kept, fy[box[0]], fx[box[1]], int(inside.sum()), float(frequency[inside].mean())))
    return rings


def _coarse(rings: list[_Ring], size_px: tuple[int, ...]) -> tuple[float, float]:
    """Where the sum of squared ring correlations peaks among all shifts, in steps of about 2 px."""
    height, width = size_px
    sides = tuple(max(2 * math.ceil(side / 4), 8) for side in size_px)
    total = np.zeros(sides)
    for ring in rings:
        padded = np.zeros((sides[0], sides[1]), dtype=np.complex128)
        rows, columns = np.rint(ring.fy * height).astype(int), np.rint(ring.fx * width).astype(int)
        padded[np.ix_(rows, columns)] = ring.phases
        total += (np.fft.ifft2(padded).real * padded.size) ** 2 / ring.bins
    row, column = divmod(int(total.argmax()), sides[1])
    y, x = (row + sides[0] // 2) % sides[0] - sides[0] // 2, (column + sides[1] // 2) % sides[1] - sides[1] // 2
    return y * height / sides[0], x * width / sides[1]


def _error_px(rings: list[_Ring], correlations: NDArray[np.float64]) -> float:
    """Standard error of the shift, from how well each ring agrees with itself (after the Cramer-Rao bound of a phase ramp)."""
    information = 0.0
    for ring, correlation in zip(rings, correlations, strict=True):
        agreement = min(max(float(correlation) ** 2 - 1 / ring.bins, 0.0), 0.999)  # 1 / bins is what noise reaches
        information += ring.bins / _SHARE * (2 * math.pi * ring.frequency) ** 2 * agreement / (1 - agreement)
    return _HONEST / math.sqrt(information) if information > 0 else math.inf
