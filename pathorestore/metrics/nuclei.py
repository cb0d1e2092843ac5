"""How well restoration keeps nuclei: intensity and texture of each nucleus of the clean image, compared pixel set by pixel set.

The pixel sets come from a segmenter run on the clean image. Array code (uint8, h w 3) stays inside this file and the segmenters.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathorestore.image import to_uint8
from pathorestore.metrics.segmenters import Labels, NucleiSegmenter, Pixels, Watershed, find_nuclei

Region = Literal["mask", "bbox"]

INTENSITY = ("mean", "deviation", "skewness", "excess_kurtosis")
TEXTURE = ("contrast", "dissimilarity", "homogeneity", "energy")
_LEVELS = 256
_STEPS = ((0, 1), (1, 1), (1, 0), (1, -1))  # 0, 45, 90 and 135 degrees; symmetric pairs make the opposite directions the same


class NucleiDifference(NamedTuple):
    """Absolute differences between restored and clean nuclei, averaged over the nuclei of each image; NaN where an image has none.

    intensity: b 4 in the order of INTENSITY. texture: b 4 in the order of TEXTURE. nuclei: how many were compared, b.
    """

    intensity: Tensor
    texture: Tensor
    nuclei: Tensor

    @property
    def l1_intensity(self) -> Tensor:
        """Sum of the four intensity components, b."""
        return self.intensity.sum(dim=1)

    @property
    def l1_texture(self) -> Tensor:
        """Sum of the four texture components, b; contrast dominates it."""
        return self.texture.sum(dim=1)


def nuclei_difference(
    restored: Tensor, clean: Tensor, *, segmenter: NucleiSegmenter | None = None, region: Region = "mask"
) -> NucleiDifference:
    """Compare restored images b 3 h w in [0, 1] with clean ones, nucleus by nucleus, on the grey levels of their 8-bit values.

    segmenter: run on the clean images; `Watershed()` if None. Nuclei below 16 px are left out. region: of the texture; "bbox" takes the
    whole bounding box of a nucleus instead of its pixels. Raises ValueError if the shapes differ, a value is
    not finite, or the segmenter returns no label map.
    """
    check_pair(restored, clean)
    if region not in ("mask", "bbox"):
        raise ValueError(f"region must be mask or bbox; got {region!r}")
    find = segmenter or Watershed()
    rows = [_difference(to_uint8(one), to_uint8(target), find, region) for one, target in zip(restored, clean, strict=True)]
    vectors = torch.from_numpy(np.stack([np.concatenate(row[:2]) for row in rows])).float().to(restored.device)
    nuclei = torch.tensor([count for *_, count in rows], device=restored.device)
    return NucleiDifference(vectors[:, : len(INTENSITY)], vectors[:, len(INTENSITY) :], nuclei)


def check_pair(restored: Tensor, clean: Tensor) -> None:
    """Raise ValueError unless both are b 3 h w of one shape and hold finite values."""
    if restored.ndim != 4 or restored.shape[1] != 3 or restored.shape != clean.shape:
        raise ValueError(f"restored and clean must both be b 3 h w of one shape; got {tuple(restored.shape)} and {tuple(clean.shape)}")
    if not (restored.isfinite().all() and clean.isfinite().all()):
        raise ValueError("restored or clean holds NaN or infinite values, which have no grey level; expected finite values in [0, 1]")


def grey_levels(pixels: Pixels) -> NDArray[np.int64]:
    """Grey levels 0..255 of RGB pixels h w 3: 0.299 R + 0.587 G + 0.114 B, rounded."""
    return np.asarray((pixels.astype(np.int64) @ np.array([299, 587, 114]) + 500) // 1000)


def intensity(grey: NDArray[np.int64], labels: Labels) -> NDArray[np.float64]:
    """Mean, population standard deviation, skewness, excess kurtosis n 4 of the grey levels of each label 1..n; the last two 0 if flat."""
    inside = labels > 0
    owner, values = labels[inside] - 1, grey[inside].astype(np.float64)
    count = np.bincount(owner)
    mean = np.bincount(owner, values) / count
    off = values - mean[owner]
    second, third, fourth = (np.bincount(owner, off**power) / count for power in (2, 3, 4))
    flat = second < 1e-6
    spread = np.where(flat, 1.0, second)
    return np.stack([mean, np.sqrt(second), np.where(flat, 0, third / spread**1.5), np.where(flat, 0, fourth / spread**2 - 3)], axis=1)


def texture(grey: NDArray[np.int64], labels: Labels) -> NDArray[np.float64]:
    """Contrast, dissimilarity, homogeneity and energy n 4 of the grey-level co-occurrences inside each label 1..n.

    256 levels, distance 1, angles 0, 45, 90 and 135 degrees, symmetric, both pixels of a pair under the same label; averaged over the
    angles, an angle without pairs counting as 0.
    Source: Haralick, Shanmugam, Dinstein, IEEE Trans. SMC 3 (1973) 610-621; energy is the root of its angular second moment.
    """
    count = int(labels.max())
    return np.asarray(np.mean([_cooccurrence(*pair, count) for pair in _pairs(grey, labels)], axis=0))


def _pairs(grey: NDArray[np.int64], labels: Labels) -> Iterator[tuple[Any, Any, Any]]:
    """For each angle, the owner (from 0) of every neighbouring pair of pixels under one label, and the two grey levels."""
    height, width = labels.shape
    for down, right in _STEPS:
        here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, height), slice(max(0, right), width - max(0, -right)))
        together = (labels[here] == labels[there]) & (labels[here] > 0)
        yield labels[here][together] - 1, grey[here][together], grey[there][together]


def _cooccurrence(owner: Any, first: Any, second: Any, count: int) -> NDArray[np.float64]:
    """The four measures n 4 at one angle, from the pairs alone: three are means over them, energy needs only how often each entry occurs.

    Building 256 x 256 matrices for some hundred nuclei would take seconds.
    """
    pairs = np.maximum(np.bincount(owner, minlength=count), 1)
    apart = np.abs(first - second).astype(np.float64)
    means = [np.bincount(owner, values, count) / pairs for values in (apart**2, apart, 1 / (1 + apart**2))]
    entries = np.concatenate([(owner * _LEVELS + first) * _LEVELS + second, (owner * _LEVELS + second) * _LEVELS + first])
    entry, times = np.unique(entries, return_counts=True)
    moment = np.bincount(entry // _LEVELS**2, times.astype(np.float64) ** 2, count) / (2 * pairs) ** 2
    return np.stack([*means, np.sqrt(moment)], axis=1)


def _difference(restored: Pixels, clean: Pixels, segmenter: NucleiSegmenter, region: Region) -> tuple[Any, Any, int]:
    labels = find_nuclei(segmenter, clean)
    count = int(labels.max())
    if count == 0:
        return np.full(4, np.nan), np.full(4, np.nan), 0
    ours, theirs = grey_levels(restored), grey_levels(clean)
    boxes = _boxes(labels) if region == "bbox" else None
    first, second = (texture(*_lay_out(grey, boxes)) if boxes else texture(grey, labels) for grey in (ours, theirs))
    return np.abs(intensity(ours, labels) - intensity(theirs, labels)).mean(axis=0), np.abs(first - second).mean(axis=0), count


def _boxes(labels: Labels) -> list[tuple[slice, slice]]:
    """The bounding boxes of labels 1..n."""
    from scipy import ndimage

    found: list[tuple[slice, slice]] = ndimage.find_objects(labels)
    return found


def _lay_out(grey: NDArray[np.int64], boxes: list[tuple[slice, slice]]) -> tuple[NDArray[np.int64], Labels]:
    """Copy the boxes under each other, each under its own label from 1, so that boxes which overlap in the image are measured at once."""
    crops = [grey[box] for box in boxes]
    size = sum(crop.shape[0] for crop in crops), max(crop.shape[1] for crop in crops)
    canvas, labels = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int32)
    top = 0
    for label, crop in enumerate(crops, start=1):
        here = (slice(top, top + crop.shape[0]), slice(0, crop.shape[1]))
        canvas[here], labels[here] = crop, label
        top += crop.shape[0]
    return canvas, labels
