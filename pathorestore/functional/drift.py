"""Lateral drift between the planes of a focal stack: found between neighbours, undone to a fraction of a pixel."""

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pathorestore.functional.color import luminance, srgb_to_linear

_WINDOW_PX = 1536
_BAND_PX = (2.0, 8.0)  # finer detail comes and goes with the focus, coarser says little about where things are
_START_CYCLES_PX = 0.05
_ITERATIONS, _STEP_PX = 50, 1e-4
_LEAST_CORRELATION = 0.5
STILL_PX = 0.1  # resampling costs more than so small a drift does
_RIM_PX = 16


def stack_drift(planes: Tensor) -> Tensor:
    """How far each of the planes n 3 h w lies from the middle one, n 2 in px: rows downwards, columns to the right.

    Neighbours are compared, for they are blurred alike, and the steps added up. A step starts at the peak of a half-whitened
    cross-correlation and is refined by maximising the correlation coefficient (Evangelidis & Psarakis, IEEE TPAMI 30 (2008) 1858-1865) of
    the linear luminance between 2 and 8 px. Planes that do not correlate, blank ones among them, count as still. Large images are compared
    in their middle. A tilted section seems to move while the focus passes through it, which no comparison can tell from drift.
    """
    details = [_detail(plane[None]) for plane in planes]
    steps = [(0.0, 0.0), *(_step(one, other) for one, other in pairwise(details))]
    position = torch.tensor(steps, dtype=torch.float64).cumsum(0)
    return (position - position[len(planes) // 2]).float()


def shifted(planes: Tensor, by_px: Tensor) -> Tensor:
    """The planes n 3 h w moved by n 2 px (down, right), band-limited, in [0, 1]; moves below 0.1 px are left out, their planes untouched.

    What comes in at the border is the mirror image of what lies inside it. Raises ValueError if a move is as large as the image.
    """
    height, width = planes.shape[-2:]
    moved = planes.clone()
    for index, (down, right) in enumerate(by_px.tolist()):
        if max(abs(down), abs(right)) < STILL_PX:
            continue
        if abs(down) >= height or abs(right) >= width:
            raise ValueError(f"plane {index} would be moved by ({down:.1f}, {right:.1f}) px, out of its {height} x {width} px")
        rows, columns = (min(side - 1, math.ceil(abs(move)) + _RIM_PX) for side, move in ((height, down), (width, right)))
        wide = F.pad(planes[index : index + 1], (columns, columns, rows, rows), mode="reflect")
        moved[index] = _turned(wide, down, right)[0, :, rows : rows + height, columns : columns + width]
    return moved.clamp_(0, 1)


def _turned(image: Tensor, down: float, right: float) -> Tensor:
    """An image moved around its borders, by turning the phases of its spectrum."""
    height, width = image.shape[-2:]
    rows = torch.fft.fftfreq(height, device=image.device)[:, None] * down
    columns = torch.fft.rfftfreq(width, device=image.device) * right
    angle = -2 * math.pi * (rows + columns)
    return torch.fft.irfft2(torch.fft.rfft2(image) * torch.polar(torch.ones_like(angle), angle), s=(height, width))


def _detail(plane: Tensor) -> NDArray[np.float32]:
    """Linear luminance h w of the middle of a plane, between two scales."""
    import cv2

    height, width = plane.shape[-2:]
    top, left = (max(0, (side - _WINDOW_PX) // 2) for side in (height, width))
    light = luminance(srgb_to_linear(plane[..., top : top + _WINDOW_PX, left : left + _WINDOW_PX].float()))[0, 0].cpu().numpy()
    fine, coarse = (cv2.GaussianBlur(light, (0, 0), width_px, borderType=cv2.BORDER_REFLECT) for width_px in _BAND_PX)
    return fine - coarse


def _step(one: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[float, float]:
    """By how many px (down, right) the content of `other` lies from where it is in `one`."""
    import cv2

    down, right = _peak(one, other)
    warp = np.array([[1, 0, right], [0, 1, down]], dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, _ITERATIONS, _STEP_PX)
    try:
        correlation, warp = cv2.findTransformECC(one, other, warp, cv2.MOTION_TRANSLATION, criteria, None, 1)
    except cv2.error:  # blank, or it ran away
        return 0.0, 0.0
    return (float(warp[1, 2]), float(warp[0, 2])) if correlation >= _LEAST_CORRELATION else (0.0, 0.0)


def _peak(one: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[int, int]:
    """The move in whole px at which the low frequencies of two images agree best."""
    height, width = one.shape
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
    first, second = np.fft.rfft2(one * window), np.fft.rfft2(other * window)
    cross = second * first.conj()
    low = np.exp(-0.5 * (np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) / _START_CYCLES_PX) ** 2)
    surface = np.fft.irfft2(cross / np.sqrt(np.abs(cross) + 1e-12) * low, s=(height, width))
    down, right = np.unravel_index(int(surface.argmax()), surface.shape)
    return (int(down) + height // 2) % height - height // 2, (int(right) + width // 2) % width - width // 2
