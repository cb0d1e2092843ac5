"""Whether restored images still show the same nuclei: those found on the restored image against those found on the clean one."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathorestore.image import to_uint8
from pathorestore.metrics.nuclei import check_pair
from pathorestore.metrics.segmenters import Labels, NucleiSegmenter, Watershed, find_nuclei


class NucleiObjects(NamedTuple):
    """How well nuclei of restored and clean images correspond, one number an image, b.

    f1, precision, recall: of matched nuclei, 0..1; NaN where neither image has a nucleus, 0 where only one has any. matched_iou: mean
    intersection over union of the matched, NaN without a match. dice: of the pixels that belong to nuclei, NaN and 0 as for f1.
    position_error_um: mean distance between the centroids of matched nuclei. restored_count, clean_count: nuclei. *_area_um2: of all nuclei
    together, 0 without any. *_mean_area_um2: of one, NaN without any.
    """

    f1: Tensor
    precision: Tensor
    recall: Tensor
    matched_iou: Tensor
    dice: Tensor
    position_error_um: Tensor
    restored_count: Tensor
    clean_count: Tensor
    restored_area_um2: Tensor
    clean_area_um2: Tensor
    restored_mean_area_um2: Tensor
    clean_mean_area_um2: Tensor


class Matches(NamedTuple):
    """Pairs of nuclei. restored, clean: their labels, k. iou: intersection over union of each pair, k."""

    restored: NDArray[np.int64]
    clean: NDArray[np.int64]
    iou: NDArray[np.float64]


def nuclei_objects(
    restored: Tensor,
    clean: Tensor,
    *,
    segmenter: NucleiSegmenter | None = None,
    restored_segmenter: NucleiSegmenter | None = None,
    iou_at_least: float = 0.5,
) -> NucleiObjects:
    """Find nuclei on restored and clean images b 3 h w in [0, 1] and match those whose intersection over union is large enough.

    segmenter: run on the clean images, `Watershed()` if None; its mpp is the images' um per pixel. restored_segmenter: run on the restored
    ones, the same if None. Nuclei below 16 px are left out. iou_at_least: 0.5..1, so that a nucleus has one partner at most.
    Raises ValueError if the shapes differ, a value is not finite, the segmenters expect different mpp or return no label map.
    Source of the matching: Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4.1.
    """
    check_pair(restored, clean)
    there = segmenter or Watershed()
    here = restored_segmenter or there
    if here.mpp != there.mpp:
        raise ValueError(f"the segmenters expect {here.mpp} and {there.mpp} um per pixel, but see images of one size; see AtScale")
    rows = [
        compare_labels(find_nuclei(here, to_uint8(one)), find_nuclei(there, to_uint8(target)), mpp=there.mpp, iou_at_least=iou_at_least)
        for one, target in zip(restored, clean, strict=True)
    ]
    columns = torch.tensor(rows, dtype=torch.float32, device=restored.device).reshape(-1, len(NucleiObjects._fields))
    return NucleiObjects(*columns.unbind(dim=1))


def nuclei_f1(restored: Tensor, clean: Tensor, *, segmenter: NucleiSegmenter | None = None, iou_at_least: float = 0.5) -> Tensor:
    """The f1 of `nuclei_objects`, b."""
    return nuclei_objects(restored, clean, segmenter=segmenter, iou_at_least=iou_at_least).f1


def nuclei_dice(restored: Tensor, clean: Tensor, *, segmenter: NucleiSegmenter | None = None) -> Tensor:
    """The dice of `nuclei_objects`, b."""
    return nuclei_objects(restored, clean, segmenter=segmenter).dice


def compare_labels(restored: Labels, clean: Labels, *, mpp: float, iou_at_least: float = 0.5) -> tuple[float, ...]:
    """What `nuclei_objects` says of one image, in the order of its fields, from label maps h w with labels 1..n."""
    ours, theirs = int(restored.max(initial=0)), int(clean.max(initial=0))
    matches = match_labels(restored, clean, iou_at_least=iou_at_least)
    found = len(matches.iou)
    apart = mpp * np.linalg.norm(centroids(restored)[matches.restored - 1] - centroids(clean)[matches.clean - 1], axis=1)
    areas = [float(np.count_nonzero(labels)) * mpp**2 for labels in (restored, clean)]
    nowhere = ours + theirs == 0
    return (
        _share(2 * found, ours + theirs),
        np.nan if nowhere else found / max(ours, 1),
        np.nan if nowhere else found / max(theirs, 1),
        _share(float(matches.iou.sum()), found),
        dice(restored, clean),
        _share(float(apart.sum()), found),
        ours,
        theirs,
        *areas,
        *(_share(area, count) for area, count in zip(areas, (ours, theirs), strict=True)),
    )


def match_labels(restored: Labels, clean: Labels, *, iou_at_least: float = 0.5) -> Matches:
    """Pair the nuclei of two label maps h w with labels 1..n, as many as possible with an intersection over union of iou_at_least (0.5..1).

    Above one half no nucleus has two candidates. At exactly one half it may have two, and the pairs are then chosen for their number.
    Raises ValueError for another threshold.
    """
    if not 0.5 <= iou_at_least <= 1:
        raise ValueError(f"iou_at_least={iou_at_least} must lie in [0.5, 1]: below one half a nucleus may match several")
    if restored.shape != clean.shape:
        raise ValueError(f"label maps of shape {restored.shape} and {clean.shape} cannot be compared; expected one shape")
    first, second, shared = _overlaps(restored, clean)
    union = np.bincount(restored.ravel())[first] + np.bincount(clean.ravel())[second] - shared
    enough = shared >= iou_at_least * union
    first, second, iou = first[enough], second[enough], (shared / union)[enough]
    several = (np.bincount(first)[first] > 1) | (np.bincount(second)[second] > 1) if len(first) else np.zeros(0, dtype=bool)
    chosen = ~several
    chosen[_one_each(first, second, several)] = True
    return Matches(first[chosen], second[chosen], iou[chosen])


def dice(restored: Labels, clean: Labels) -> float:
    """Twice the pixels that are nuclei in both label maps over the sum of those in either; NaN without any (Dice 1945)."""
    ours, theirs = restored > 0, clean > 0
    return _share(2 * int((ours & theirs).sum()), int(ours.sum()) + int(theirs.sum()))


def centroids(labels: Labels) -> NDArray[np.float64]:
    """Mean row and column n 2 of the pixels of each label 1..n, in px."""
    rows, columns = np.nonzero(labels)
    owner = labels[rows, columns] - 1
    count = np.maximum(np.bincount(owner), 1)
    return np.stack([np.bincount(owner, along) / count for along in (rows, columns)], axis=1)


def _overlaps(restored: Labels, clean: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The labels of every pair of nuclei that share a pixel, and how many they share: a joint histogram without its zeros."""
    both = (restored > 0) & (clean > 0)
    width = int(clean.max(initial=0)) + 1
    code, shared = np.unique(restored[both].astype(np.int64) * width + clean[both], return_counts=True)
    return code // width, code % width, shared


def _one_each(first: NDArray[np.int64], second: NDArray[np.int64], several: NDArray[np.bool_]) -> Any:
    """Of the candidates marked as one of several, the indices of a largest set in which no nucleus occurs twice."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    rest = np.flatnonzero(several)
    if not len(rest):
        return rest
    table = csr_array((np.ones(len(rest), dtype=bool), (first[rest], second[rest])))
    partner = maximum_bipartite_matching(table, perm_type="column")
    return rest[partner[first[rest]] == second[rest]]


def _share(part: float, whole: float) -> float:
    """Part over whole, NaN of nothing."""
    return part / whole if whole else np.nan
