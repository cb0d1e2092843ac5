"""Nuclei found twice are matched, counted and measured."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from skimage.measure import regionprops

from pathorestore.image import from_uint8
from pathorestore.metrics.accumulators.nuclei import NucleiF1
from pathorestore.metrics.nuclei_objects import (
    NucleiObjects,
    centroids,
    compare_labels,
    dice,
    match_labels,
    nuclei_dice,
    nuclei_f1,
    nuclei_objects,
)

SEEDS = st.integers(0, 10_000)
BLANK = np.zeros((24, 24), dtype=np.int32)
SQUARE = BLANK.copy()
SQUARE[4:12, 4:12] = 1


class Red:
    """Nuclei are what the red channel says: every level but 255 is a label."""

    mpp = 0.5

    def __call__(self, pixels):
        return np.where(pixels[..., 0] < 255, pixels[..., 0] + 1, 0).astype(np.int32)


def picture(*maps):
    """Images b 3 h w in which `Red` finds these label maps."""
    return torch.cat([from_uint8(np.where(labels > 0, labels - 1, 255).astype(np.uint8)[..., None].repeat(3, axis=2)) for labels in maps])


def cells(seed, side=24, count=6):
    """A label map 1..n of ragged cells."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    away = np.hypot(y[None] - rng.uniform(0, side, (count, 1, 1)), x[None] - rng.uniform(0, side, (count, 1, 1)))
    labels = np.where(away.min(axis=0) < rng.uniform(2, 6), away.argmin(axis=0) + 1, 0)
    return (
        np.unique(labels, return_inverse=True)[1].reshape(side, side).astype(np.int32) if (labels == 0).any() else labels.astype(np.int32)
    )


def moved(labels, seed):
    """The label map shifted a little, with a few nuclei dropped and all renamed."""
    rng = np.random.default_rng(seed)
    there = np.roll(labels, rng.integers(-1, 2, 2), axis=(0, 1))
    names = np.append(0, rng.permutation(labels.max()) + 1)
    names[1:] *= rng.random(labels.max()) < 0.8
    kept = names[there]
    return np.unique(np.append(0, kept), return_inverse=True)[1][1:].reshape(labels.shape).astype(np.int32)


def brute(restored, clean):
    """Intersection over union of every pair of nuclei, pixel set by pixel set."""
    table = np.zeros((restored.max(), clean.max()))
    for i in range(restored.max()):
        for j in range(clean.max()):
            ours, theirs = restored == i + 1, clean == j + 1
            table[i, j] = (ours & theirs).sum() / (ours | theirs).sum()
    return table


@given(seed=SEEDS, threshold=st.sampled_from([0.5, 0.6, 0.75]))
def test_matches_are_those_of_the_optimal_assignment(seed, threshold):
    clean = cells(seed)
    restored = moved(clean, seed + 1)
    table = brute(restored, clean)
    rows, columns = linear_sum_assignment(np.where(table >= threshold, 1 + table, 0), maximize=True)
    expected = {(i + 1, j + 1): table[i, j] for i, j in zip(rows, columns, strict=True) if table[i, j] >= threshold}
    found = match_labels(restored, clean, iou_at_least=threshold)
    pairs = dict(zip(zip(found.restored.tolist(), found.clean.tolist(), strict=True), found.iou.tolist(), strict=True))
    assert pairs == pytest.approx(expected)


@given(seed=SEEDS)
def test_random_label_maps_match_as_many_as_the_optimal_assignment(seed):
    # few pixels a nucleus, so that an overlap of exactly one half occurs and a nucleus has two candidates
    rng = np.random.default_rng(seed)
    restored, clean = (np.unique(rng.integers(0, 9, 20), return_inverse=True)[1].reshape(4, 5).astype(np.int32) for _ in range(2))
    table = brute(restored, clean)
    rows, columns = linear_sum_assignment(table >= 0.5, maximize=True)
    found = match_labels(restored, clean)
    assert len(found.iou) == (table[rows, columns] >= 0.5).sum()
    assert len(set(found.restored)) == len(set(found.clean)) == len(found.iou)
    assert all(table[i - 1, j - 1] == iou >= 0.5 for i, j, iou in zip(*found, strict=True))


def test_a_nucleus_that_was_halved_matches_one_half():
    halved = SQUARE.copy()
    halved[8:12, 4:12] = 2
    for restored, clean in ((halved, SQUARE), (SQUARE, halved)):
        assert match_labels(restored, clean).iou.tolist() == [0.5]
        assert not len(match_labels(restored, clean, iou_at_least=0.51).iou)


def test_equal_label_maps_are_perfect_whatever_the_names():
    labels = cells(3)
    names = np.append(0, np.random.default_rng(0).permutation(labels.max()) + 1)
    scores = NucleiObjects(*compare_labels(names[labels].astype(np.int32), labels, mpp=0.25))
    assert scores[:6] == (1, 1, 1, 1, 1, 0)
    assert scores.restored_count == scores.clean_count == labels.max()


@given(seed=SEEDS)
def test_turning_the_comparison_round_swaps_precision_and_recall(seed):
    clean = cells(seed)
    restored = moved(clean, seed + 1)
    there, back = (NucleiObjects(*compare_labels(*maps, mpp=0.25)) for maps in ((restored, clean), (clean, restored)))
    assert (there.precision, there.recall) == pytest.approx((back.recall, back.precision), nan_ok=True)
    for name in ("f1", "matched_iou", "dice", "position_error_um"):
        assert getattr(there, name) == pytest.approx(getattr(back, name), nan_ok=True)
    assert (there.restored_count, there.restored_area_um2) == (back.clean_count, back.clean_area_um2)


def test_scores_of_a_case_worked_by_hand():
    # clean: squares of 64 and 16 px; restored: the first, moved by 2 of its 8 columns (48 of 80 px), and two specks elsewhere
    clean, restored = SQUARE.copy(), BLANK.copy()
    clean[18:22, 18:22] = 2
    restored[4:12, 6:14] = 1
    restored[18:22, 0:4] = 2
    restored[0:2, 15:23] = 3
    scores = NucleiObjects(*compare_labels(restored, clean, mpp=0.5))
    assert scores.precision == pytest.approx(1 / 3)
    assert scores.recall == pytest.approx(1 / 2)
    assert scores.f1 == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert scores.matched_iou == pytest.approx(48 / 80)
    assert scores.dice == pytest.approx(2 * 48 / (96 + 80))
    assert scores.position_error_um == pytest.approx(1.0)
    assert (scores.restored_count, scores.clean_count) == (3, 2)
    assert (scores.restored_area_um2, scores.clean_area_um2) == (24, 20)
    assert (scores.restored_mean_area_um2, scores.clean_mean_area_um2) == (8, 10)


def test_no_nuclei_on_either_side_is_unknown_and_on_one_side_is_nought():
    both = NucleiObjects(*compare_labels(BLANK, BLANK, mpp=0.25))
    assert all(math.isnan(number) for number in both[:6])
    assert (both.restored_count, both.clean_count, both.restored_area_um2) == (0, 0, 0)
    for maps in ((BLANK, SQUARE), (SQUARE, BLANK)):
        one = NucleiObjects(*compare_labels(*maps, mpp=0.25))
        assert (one.f1, one.precision, one.recall, one.dice) == (0, 0, 0, 0)
        assert math.isnan(one.matched_iou)
        assert math.isnan(one.position_error_um)
        assert sorted((one.restored_count, one.clean_count)) == [0, 1]
        assert math.isnan(one.restored_mean_area_um2) == (one.restored_count == 0)


@given(seed=SEEDS)
def test_centroids_are_those_of_scikit_image(seed):
    labels = cells(seed)
    assert centroids(labels) == pytest.approx(np.array([region.centroid for region in regionprops(labels)]).reshape(-1, 2))


@given(seed=SEEDS)
def test_dice_is_that_of_the_jaccard_index(seed):
    ours, theirs = cells(seed) > 0, cells(seed + 1) > 0
    jaccard = (ours & theirs).sum() / (ours | theirs).sum()
    assert dice(ours.astype(np.int32), theirs.astype(np.int32)) == pytest.approx(2 * jaccard / (1 + jaccard))


def test_images_are_scored_one_by_one_in_um():
    shifted = np.roll(SQUARE, 2, axis=1)
    scores = nuclei_objects(picture(shifted, BLANK, BLANK), picture(SQUARE, SQUARE, BLANK), segmenter=Red())
    assert scores.f1.tolist()[:2] == [1, 0]
    assert scores.f1[2].isnan()
    assert scores.position_error_um[0].item() == pytest.approx(1.0)
    assert scores.clean_area_um2.tolist() == [16, 16, 0]
    assert all(column.shape == (3,) and column.dtype == torch.float32 for column in scores)
    assert torch.equal(nuclei_f1(picture(shifted), picture(SQUARE), segmenter=Red()), scores.f1[:1])
    assert torch.equal(nuclei_dice(picture(shifted), picture(SQUARE), segmenter=Red()), scores.dice[:1])
    assert nuclei_f1(picture(shifted), picture(SQUARE), segmenter=Red(), iou_at_least=0.61).item() == 0


def test_nuclei_below_16_pixels_count_on_neither_side():
    small = SQUARE.copy()
    small[20:23, 20:25] = 2
    scores = nuclei_objects(picture(small), picture(SQUARE), segmenter=Red())
    assert (scores.f1.item(), scores.restored_count.item()) == (1, 1)


def test_the_restored_image_may_have_a_segmenter_of_its_own():
    class Fixed(Red):
        def __call__(self, pixels):
            return SQUARE

    assert nuclei_objects(picture(BLANK), picture(SQUARE), segmenter=Red(), restored_segmenter=Fixed()).f1.item() == 1


def test_a_blurred_image_keeps_its_nuclei_and_a_blank_one_loses_them(nuclei_image):
    blurred = torch.nn.functional.avg_pool2d(nuclei_image, 3, stride=1, padding=1, count_include_pad=False)
    scores = nuclei_objects(torch.cat([nuclei_image, blurred, torch.full_like(nuclei_image, 0.9)]), nuclei_image.repeat(3, 1, 1, 1))
    assert scores.f1[0] == scores.dice[0] == 1
    assert 0.7 < scores.f1[1] <= 1
    assert 0.8 < scores.dice[1] < 1
    assert scores.f1[2] == 0


def test_what_does_not_fit_is_refused():
    class Coarse(Red):
        mpp = 1.0

    with pytest.raises(ValueError, match=r"1.0 and 0.5 um per pixel"):
        nuclei_objects(picture(SQUARE), picture(SQUARE), segmenter=Red(), restored_segmenter=Coarse())
    with pytest.raises(ValueError, match="one shape"):
        nuclei_f1(picture(SQUARE), picture(SQUARE[:-1]))
    with pytest.raises(ValueError, match="may match several"):
        match_labels(SQUARE, SQUARE, iou_at_least=0.4)
    with pytest.raises(ValueError, match="cannot be compared"):
        match_labels(SQUARE, SQUARE[:-1])


def test_accumulated_scores_are_means_over_the_images_that_have_them():
    shifted = np.roll(SQUARE, 2, axis=1)
    restored, clean = picture(shifted, BLANK, BLANK, SQUARE), picture(SQUARE, SQUARE, BLANK, SQUARE)
    whole, parts = NucleiF1(segmenter=Red()), NucleiF1(segmenter=Red())
    whole.update(restored, clean)
    for part in (slice(0, 1), slice(1, 4)):
        parts.update(restored[part], clean[part])
    found = whole.compute()
    assert found["f1"].item() == pytest.approx((1 + 0 + 1) / 3)
    assert found["position_error_um"].item() == pytest.approx((1 + 0) / 2)
    assert found["clean_count"].item() == pytest.approx(3 / 4)
    assert found["images_without_nuclei"] == 1
    assert {name: value.item() for name, value in parts.compute().items()} == pytest.approx({k: v.item() for k, v in found.items()})
    strict = NucleiF1(segmenter=Red(), iou_at_least=0.9)
    strict.update(restored, clean)
    assert strict.compute()["f1"].item() == pytest.approx(1 / 3)
    strict.reset()
    strict.update(restored[2:3], clean[2:3])
    assert strict.compute()["f1"].isnan()
