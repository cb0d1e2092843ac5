"""Tiles become rows: exactly, whatever their size, their order in batches, and where the work was taken up."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.slide.plan import SlidePlan, active_tiles, glass_colour
from pathorestore.slide.rows import WEIGHT_WHOLE, Levels, RowBlend, RowWindow
from pathorestore.tiling import Axis

SIDES = st.integers(1, 150)


def _blended(plan: SlidePlan, image: np.ndarray, *, first: int = 0) -> np.ndarray:
    """Every tile cut from the image and blended again, from a row of tiles on."""
    blend = RowBlend(plan.rows, plan.columns, first)
    size = plan.tile_px
    rows = [blend.add_row(image[y : y + size, x : x + size] for x in plan.columns.starts_px) for y in plan.rows.starts_px[first:]]
    return np.concatenate(rows)


@given(height=SIDES, width=SIDES, tile=st.sampled_from([8, 24, 32]), overlap=st.integers(0, 16), data=st.data())
def test_tiles_that_nobody_touched_blend_to_the_image_they_were_cut_from(height, width, tile, overlap, data):
    plan = SlidePlan(height, width, tile, min(overlap, tile // 2))
    image = np.random.default_rng(height * 151 + width).integers(0, 65536, (*plan.padded_px, 3)).astype(np.uint16)
    assert np.array_equal(_blended(plan, image), image)
    start = data.draw(st.integers(0, height - 1), label="the row that work is taken up at")
    first = plan.first_row(start)
    top = plan.rows.starts_px[first]
    assert top <= start
    assert np.array_equal(_blended(plan, image, first=first)[start - top :], image[start:])


def test_a_blend_is_the_weighted_mean_of_the_tiles():
    rows, columns = (Axis(length, 16, 6, whole=WEIGHT_WHOLE) for length in (37, 45))
    tiles = np.random.default_rng(0).integers(0, 65536, (len(rows.starts_px), len(columns.starts_px), 16, 16, 3)).astype(np.uint16)
    expected = np.zeros((37, 45, 3))
    for row, y in enumerate(rows.starts_px):
        for column, x in enumerate(columns.starts_px):
            weight = (rows.weights[row][:, None] * columns.weights[column][None]).numpy() / WEIGHT_WHOLE**2
            expected[y : y + 16, x : x + 16] += weight[..., None] * tiles[row, column]
    blend = RowBlend(rows, columns)
    found = np.concatenate([blend.add_row(iter(line)) for line in tiles])
    assert np.abs(found - expected).max() <= 1  # rounded once along rows and once along columns


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_grey_level_of_a_slide_passes_unchanged(dtype):
    levels = Levels.of(8 * np.dtype(dtype).itemsize)
    every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(1, -1, 1).repeat(3, axis=2)
    stored = levels.from_pixels(every)
    assert np.array_equal(levels.to_pixels(stored, np.dtype(dtype)), every)
    assert np.array_equal(levels.encode(levels.decode(stored[None]))[0], stored)
    image = torch.from_numpy(every.astype(np.float32) / np.iinfo(dtype).max).permute(2, 0, 1)[None]
    assert np.array_equal(levels.encode(image)[0], stored)


def test_what_a_network_overshoots_is_kept_for_the_blend_and_cut_at_the_end():
    levels = Levels.of(8)
    image = torch.tensor([-0.4, 1.4, -7.0, 7.0]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    stored = levels.encode(image)
    assert levels.decode(stored)[0, 0, 0].tolist() == pytest.approx([-0.4, 1.4, -0.5, 1.5], abs=2e-5)
    assert levels.to_pixels(stored, np.dtype(np.uint8))[0, 0, :, 0].tolist() == [0, 255, 0, 255]


@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
def test_a_window_holds_the_rows_it_was_given_until_it_is_told_to_forget_them(cuts, data):
    image = np.random.default_rng(1).integers(0, 256, (sum(cuts), 5, 3)).astype(np.uint8)
    window, top = RowWindow(5), 0
    for height in cuts:
        window.append(image[top : top + height])
        top += height
    keep = data.draw(st.integers(0, sum(cuts) - 1))
    window.forget(keep)
    assert window.top_px <= keep
    assert np.array_equal(window.cut(keep, 1, sum(cuts) - keep, 3), image[keep:, 1:4])
    with pytest.raises(ValueError, match="not in the window"):
        window.cut(keep, 0, sum(cuts) - keep + 1, 5)
    with pytest.raises(ValueError, match="expected 5"):
        window.append(image[:, :4])


@given(height=st.integers(40, 400), width=st.integers(40, 400), data=st.data())
def test_tissue_is_never_left_out(height, width, data):
    plan = SlidePlan(height, width, 32, 8)
    x, y = data.draw(st.integers(0, width - 8)), data.draw(st.integers(0, height - 8))
    overview = np.full((height // 4 + 1, width // 4 + 1, 3), 240, np.uint8)
    glass = glass_colour(overview)
    overview[y // 4 : (y + 8) // 4 + 1, x // 4 : (x + 8) // 4 + 1] = (200, 150, 180)
    assert glass.tolist() == [240, 240, 240]
    active = active_tiles(plan, overview, glass)
    for row, top in enumerate(plan.rows.starts_px):
        for column, left in enumerate(plan.columns.starts_px):
            if top < y + 8 and y < top + 32 and left < x + 8 and x < left + 32:
                assert active[row, column]
    far = np.full_like(overview, 240)
    assert not active_tiles(plan, far, glass).any()
    assert not active_tiles(plan, far + np.random.default_rng(0).integers(-4, 5, far.shape).astype(np.int8).view(np.uint8), glass).any()


def test_a_picture_of_tissue_alone_has_no_glass():
    for colour in ((200, 150, 180), (90, 90, 90), (235, 200, 225)):
        assert glass_colour(np.full((50, 60, 3), colour, np.uint8)) is None


def test_a_plan_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="overlap_px=40"):
        SlidePlan(100, 100, 64, 40)
    with pytest.raises(ValueError, match="rows and columns of tiles"):
        SlidePlan(100, 100, 64, 16, np.ones((3, 3), bool))
