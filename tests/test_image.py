"""The image contract."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.image import check_image, from_uint8, pad_to, round_up, to_uint8


@given(h=st.integers(1, 40), w=st.integers(1, 40), seed=st.integers(0, 9))
def test_uint8_pixels_survive_the_round_trip_exactly(h, w, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(from_uint8(pixels)), pixels)


@given(h=st.integers(1, 30), w=st.integers(1, 30), grow_h=st.integers(0, 70), grow_w=st.integers(0, 70))
def test_padding_keeps_the_image_in_its_corner_and_adds_no_new_values(h, w, grow_h, grow_w):
    image = torch.arange(3.0 * h * w).reshape(1, 3, h, w)
    padded = pad_to(image, h + grow_h, w + grow_w)
    assert padded.shape[-2:] == (h + grow_h, w + grow_w)
    assert torch.equal(padded[..., :h, :w], image)
    assert set(padded.unique().tolist()) <= set(image.unique().tolist())


def test_padding_reflects_without_repeating_the_border():
    row = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 1, 4)
    assert pad_to(row, 1, 7).flatten().tolist() == [0, 1, 2, 3, 2, 1, 0]


def test_padding_to_a_smaller_size_is_refused():
    with pytest.raises(ValueError, match="smaller"):
        pad_to(torch.zeros(1, 3, 8, 8), 4, 8)


@given(length=st.integers(1, 10_000), multiple=st.integers(1, 300))
def test_round_up_gives_the_least_multiple(length, multiple):
    rounded = round_up(length, multiple)
    assert rounded % multiple == 0
    assert length <= rounded < length + multiple


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((4, 4, 3)), "torch tensor"),
        (torch.zeros(3, 4, 4), r"\(batch, 3, height, width\)"),
        (torch.zeros(1, 1, 4, 4), r"\(1, 1, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4), "shape"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 4, 4), float("nan")), "NaN"),
        (torch.full((1, 3, 4, 4), float("inf")), "infinite"),
        (torch.full((1, 3, 4, 4), 255.0), "divide"),
        (torch.full((1, 3, 4, 4), -0.5), r"\[0, 1\]"),
    ],
)
def test_what_is_not_an_image_is_refused_with_a_remedy(image, says):
    with pytest.raises(ValueError, match=says):
        check_image(image)


def test_what_is_an_image_passes():
    check_image(torch.rand(2, 3, 5, 7))
    check_image(torch.rand(1, 3, 1, 1).half())


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)])
def test_from_uint8_refuses_other_layouts(pixels):
    with pytest.raises(ValueError, match="uint8"):
        from_uint8(pixels)
