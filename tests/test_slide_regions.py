"""What was done where, as outlines that cover those tiles and nothing else."""

import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slide_samples import run_slide, tissue_pixels, write_slide

from pathorestore.slide.events import Event
from pathorestore.slide.plan import SlidePlan
from pathorestore.slide.regions import write_regions
from pathorestore.slide.restoring import Restoring, RestoringRun
from pathorestore.slide.work import SlideOptions


def _filled(geometry, height, width):
    """The pixels inside polygons with holes, by a ray to the right of each pixel's middle."""
    covered = np.zeros((height, width), int)
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    y, x = np.mgrid[:height, :width] + 0.5
    for polygon in polygons:
        crossings = np.zeros((height, width), int)
        for ring in polygon:
            assert ring[0] == ring[-1]
            assert len(ring) >= 5
            assert len({tuple(point) for point in ring}) == len(ring) - 1  # no outline touches itself
            for (ax, ay), (bx, by) in pairwise(ring):
                assert (ax == bx) != (ay == by)  # no edge is slanted, none is a point
                if ax == bx:
                    crossings += (min(ay, by) < y) & (y < max(ay, by)) & (ax > x)
        covered += crossings % 2
    assert covered.max() <= 1  # polygons do not overlap
    return covered.astype(bool)


@given(data=st.data(), height=st.integers(20, 130), width=st.integers(20, 130))
def test_outlines_cover_the_restored_tiles_and_nothing_else(tmp_path_factory, data, height, width):
    plan = SlidePlan(height, width, 24, 4)
    count = plan.mask.size
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))).reshape(plan.shape)
    plan = replace(plan, active=mask)
    _check_outlines(tmp_path_factory.mktemp("regions") / "a.geojson", plan, mask)


@pytest.mark.parametrize("empty", [{(1, 1), (2, 2)}, {(1, 2), (2, 1)}, {(0, 0), (1, 1), (2, 2), (3, 3)}, {(0, 1), (1, 0)}])
def test_outlines_that_touch_at_a_corner_stay_apart(tmp_path, empty):
    mask = np.array([[(row, column) not in empty for column in range(4)] for row in range(4)])
    _check_outlines(tmp_path / "a.geojson", SlidePlan(80, 80, 24, 4, mask), mask)


def run_of(plan, stored_tile_px=(64, 64)):
    """The work that a plan is for."""
    source = SimpleNamespace(facts=SimpleNamespace(stored_tile_px=stored_tile_px))
    options = SlideOptions(tile_px=plan.tile_px, overlap_px=plan.overlap_px)
    return RestoringRun(work=Restoring(system=None), source=source, options=options, plan=plan)


def _check_outlines(path, plan, mask):
    height, width = plan.height_px, plan.width_px
    write_regions(path, run_of(plan), [])
    features = json.loads(path.read_text())["features"]
    assert len(features) == int(mask.any())
    expected = np.zeros((height, width), bool)
    tops, lefts = ([*axis.starts_px, length] for axis, length in ((plan.rows, height), (plan.columns, width)))
    for row, column in np.argwhere(mask).tolist():
        expected[tops[row] : tops[row + 1], lefts[column] : lefts[column + 1]] = True
    if features:
        assert np.array_equal(_filled(features[0]["geometry"], height, width), expected)
        assert features[0]["properties"]["classification"]["name"] == "restored"


def test_events_are_where_they_happened_and_inside_the_slide(tmp_path):
    plan = SlidePlan(100, 90, 64, 16)
    write_regions(tmp_path / "a.geojson", run_of(plan), [Event("unreadable", 64, 64), Event("not finite", 0, 24)])
    _, unreadable, not_finite = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert unreadable["geometry"]["coordinates"] == [[[64, 64], [90, 64], [90, 100], [64, 100], [64, 64]]]
    assert not_finite["geometry"]["coordinates"] == [[[24, 0], [88, 0], [88, 64], [24, 64], [24, 0]]]
    assert {unreadable["properties"]["objectType"], not_finite["type"]} == {"annotation", "Feature"}


def test_a_run_writes_them_on_request(tmp_path):
    source = write_slide(tmp_path / "in.tif", tissue_pixels(100, 90))
    run_slide(source, tmp_path / "out.tif", wishes={"regions": True})
    (feature,) = json.loads((tmp_path / "out.tif.geojson").read_text())["features"]
    assert feature["geometry"]["coordinates"] == [[[[0, 0], [90, 0], [90, 100], [0, 100], [0, 0]]]]
