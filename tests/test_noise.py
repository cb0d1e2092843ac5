"""Noise keyed by coordinates."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.functional.noise import NoiseField, stream


@given(y=st.integers(0, 3000), x=st.integers(0, 3000), dy=st.integers(0, 20), dx=st.integers(0, 20), seed=st.integers(0, 2**40))
def test_overlapping_windows_hold_the_same_bits(y, x, dy, dx, seed):
    near = NoiseField(seed, ((y, x),)).draw(2, channels=3, height_px=24, width_px=24)
    far = NoiseField(seed, ((y + dy, x + dx),)).draw(2, channels=3, height_px=24, width_px=24)
    assert torch.equal(near[..., dy:, dx:], far[..., : 24 - dy, : 24 - dx])


def test_a_window_does_not_depend_on_the_batch_it_is_drawn_in():
    batch = NoiseField(5, ((0, 0), (100, 7), (3, 3))).draw(1, channels=2, height_px=9, width_px=11)
    alone = NoiseField(5, ((100, 7),)).draw(1, channels=2, height_px=9, width_px=11)
    assert torch.equal(batch[1:2], alone)


def test_noise_is_standard_normal():
    draws = NoiseField(0).draw(1, channels=4, height_px=512, width_px=512).double()
    assert abs(draws.mean()) < 4e-3
    assert abs(draws.var() - 1) < 6e-3
    assert abs((draws**3).mean()) < 1e-2
    assert abs((draws**4).mean() - 3) < 3e-2
    ordered = draws.flatten().sort().values
    expected = torch.special.ndtri((torch.arange(len(ordered)).double() + 0.5) / len(ordered))
    assert (torch.special.ndtr(ordered) - torch.special.ndtr(expected)).abs().max() < 2e-3  # Kolmogorov-Smirnov at n = 2^20


def test_neighbours_steps_channels_and_seeds_are_uncorrelated():
    field = NoiseField(11).draw(1, channels=2, height_px=400, width_px=400)
    others = [
        (field[..., 1:], field[..., :-1]),
        (field[..., 1:, :], field[..., :-1, :]),
        (field[:, 0], field[:, 1]),
        (field, NoiseField(11).draw(2, channels=2, height_px=400, width_px=400)),
        (field, NoiseField(12).draw(1, channels=2, height_px=400, width_px=400)),
        (field, NoiseField(11 + 2**32).draw(1, channels=2, height_px=400, width_px=400)),
    ]
    for first, second in others:
        assert abs((first * second).mean()) < 1.2e-2


def test_streams_are_told_apart_by_every_number_of_their_key():
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (2**32,), (2**32, 1), (-1,), (0, 2**40)]
    draws = [tuple(torch.rand(2, generator=stream(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(torch.rand(2, generator=stream(*key)).tolist()) for key in keys]


def test_one_value_is_what_it_was_when_this_was_written():
    """A change of the hash would silently change every restored image of a given seed."""
    value = NoiseField(2023, ((17, 42),)).draw(3, channels=3, height_px=1, width_px=1)
    assert torch.allclose(value.flatten(), torch.tensor(GOLDEN), atol=1e-6)


GOLDEN = [1.088786, 0.359497, 1.945371]
