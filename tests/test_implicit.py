"""Coordinates on maps, and the four cells around a query."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.nn.implicit import Lattice, bicubic, bicubic_on, centres, check_skip, corners, gather, grid, mlp

SIDES = st.integers(1, 9)


@given(count=st.integers(1, 50))
def test_pixel_centres_are_evenly_spaced_and_symmetric(count):
    places = centres(count)
    assert torch.allclose(places, -places.flip(0), atol=1e-15)
    assert torch.allclose(places.diff(), torch.full((count - 1,), 2 / count, dtype=torch.float64))
    assert places[0] == pytest.approx(-1 + 1 / count)


@given(height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_the_weights_of_the_corners_are_shares(height, width, seed):
    places = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    found = corners(places, (height, width))
    total = sum(corner.weight for corner in found)
    assert torch.allclose(total, torch.ones(40), atol=1e-6)
    assert all((corner.weight >= 0).all() for corner in found)
    for corner in found:
        assert corner.cell.min() >= 0
        assert corner.cell.max() < height * width


@given(height=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 99))
def test_the_ensemble_of_cell_values_is_bilinear_interpolation_within_the_outer_centres(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 2, height, width, generator=generator)
    reach = torch.tensor([1 - 1 / height, 1 - 1 / width], dtype=torch.float64)
    places = (torch.rand(60, 2, dtype=torch.float64, generator=generator) * 2 - 1) * reach * 0.999
    blended = sum(corner.weight[:, None] * gather(image, corner.cell)[0] for corner in corners(places, (height, width)))
    expected = F.grid_sample(image, places.float().flip(-1)[None, None], mode="bilinear", align_corners=False)[0, :, 0].T
    assert torch.allclose(blended, expected, atol=2e-5)


def test_at_the_centre_of_a_cell_that_cell_alone_speaks_and_relative_positions_are_in_half_cells():
    places = grid(4, 6)
    found = corners(places, (4, 6))
    for query in range(24):
        speaking = {corner.cell[query].item(): corner.weight[query].item() for corner in found if corner.weight[query] > 1e-4}
        assert set(speaking) == {query}
    between = torch.tensor([[0.0, 0.0]])  # where four cells of a 2 x 2 map meet
    for corner, relative in zip(corners(between, (2, 2)), ((1, 1), (1, -1), (-1, 1), (-1, -1)), strict=True):
        assert torch.allclose(corner.relative[0], torch.tensor(relative, dtype=torch.float32))
        assert corner.weight[0] == pytest.approx(0.25, abs=1e-6)


@given(height=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 99))
def test_weights_are_the_areas_of_the_opposite_rectangles(height, width, seed):
    places = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    found = corners(places, (height, width))
    areas = torch.stack([corner.relative.prod(dim=1).abs() for corner in found])
    assert torch.allclose(torch.stack([corner.weight for corner in found]), areas.flip(0) / areas.sum(dim=0), atol=1e-4)


def test_queries_of_a_wide_slide_are_told_apart():
    count = 200_000
    places = torch.stack([torch.zeros(3, dtype=torch.float64), centres(4 * count)[400_001:400_004]], dim=1)
    relative = corners(places, (1, count))[0].relative[:, 1]
    assert torch.allclose(relative.diff().remainder(2), torch.tensor(0.5), atol=1e-4)


@given(height=st.integers(4, 12), width=st.integers(4, 12), scale=st.floats(1, 5))
def test_bicubic_is_the_interpolation_of_pytorch_and_pillow(height, width, scale):
    """Two pixels from the edges, where both leave weights out and we go on with the edge."""
    image = torch.rand(1, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    size = (round(height * scale), round(width * scale))
    theirs = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    ours = bicubic(image, grid(*size)).T.reshape(1, 2, *size)
    inner = [
        slice(math.ceil(2 * out / length), out - math.ceil(2 * out / length)) for length, out in zip((height, width), size, strict=True)
    ]
    assert torch.allclose(ours[..., inner[0], inner[1]], theirs[..., inner[0], inner[1]], atol=1e-6)


@given(height=st.integers(1, 12), width=st.integers(1, 12), rows=st.integers(1, 20), columns=st.integers(1, 20))
def test_bicubic_where_rows_and_columns_cross_is_bicubic_at_each_place(height, width, rows, columns):
    image = torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lattice = Lattice(centres(rows) * 0.9, centres(columns) * 1.1)
    crossed = bicubic_on(image, lattice)
    for one, own in zip(crossed, image, strict=True):
        assert torch.allclose(one.flatten(1).T, bicubic(own[None], lattice.places()), atol=1e-12)


def test_bicubic_draws_quadratics_as_they_are_and_pixels_at_their_centres():
    x = centres(9)
    image = (0.3 + 0.2 * x - 0.4 * x**2).expand(1, 1, 7, 9)
    places = torch.tensor([[0.0, at] for at in torch.linspace(-0.6, 0.6, 31).tolist()], dtype=torch.float64)
    at = places[:, 1]
    assert torch.allclose(bicubic(image, places)[:, 0], 0.3 + 0.2 * at - 0.4 * at**2, atol=1e-12)
    noise = torch.rand(1, 3, 5, 6, dtype=torch.float64)
    assert torch.allclose(bicubic(noise, grid(5, 6)).T.reshape(3, 5, 6), noise[0], atol=1e-12)
    with pytest.raises(ValueError, match="none, bilinear, bicubic"):
        check_skip("nearest")


def test_an_mlp_has_its_layers():
    network = mlp(5, (7, 6), 3)
    assert [tuple(layer.weight.shape) for layer in network if hasattr(layer, "weight")] == [(7, 5), (6, 7), (3, 6)]
