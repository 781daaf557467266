"""The quantizer: floor into 1000 bins per axis, and back to bin centres."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florence_jax.processing import box_to_text, dequantize, quantize, text_to_bins, text_to_box

sizes = st.tuples(st.integers(1, 8000), st.integers(1, 8000))


def test_floor_and_clamp():
    points = [[0, 0], [399.99, 300], [400, 300], [800, 1200], [-5, 1e9]]
    bins = quantize(points, (800, 1200))
    assert bins.dtype == np.int32
    assert bins.tolist() == [[0, 0], [499, 250], [500, 250], [999, 999], [0, 999]]


def test_boxes_and_points_of_any_rank():
    boxes = np.arange(24, dtype=float).reshape(2, 3, 4)
    as_points = quantize(boxes.reshape(2, 3, 2, 2), (30, 40)).reshape(2, 3, 4)
    assert np.array_equal(quantize(boxes, (30, 40)), as_points)
    assert quantize(np.zeros((0, 4)), (30, 40)).shape == (0, 4)


def test_dequantize_is_the_bin_centre():
    assert dequantize([[0, 999]], (1000, 500)).tolist() == [[0.5, 499.75]]


@given(bins=st.lists(st.integers(0, 999), min_size=4, max_size=4), size=sizes)
def test_a_bin_centre_falls_into_its_bin(bins, size):
    assert quantize(dequantize(bins, size), size).tolist() == bins


@given(x=st.integers(0, 8000), size=st.integers(1, 8000))
def test_integer_pixels_are_exact(x, size):
    expected = min(x * 1000 // size, 999)
    assert quantize([x, x], (size, size)).tolist() == [expected, expected]


@pytest.mark.parametrize("size", [(640, 480), (1300, 876), (768, 768)])
def test_transformers_agrees_but_for_its_rounding_on_bin_edges(size):
    x = np.repeat(np.arange(max(size))[:, None], 2, axis=1)
    theirs = torch.floor(torch.tensor(x) / torch.tensor([s / 1000 for s in size])).clamp(0, 999)
    ours = quantize(x, size)
    differing = ours != theirs.numpy()
    assert differing.mean() < 0.002
    assert ((x * 1000) % np.array(size))[differing].sum() == 0


def test_text_round_trip():
    text = box_to_text((33.6, 160, 596.8, 371.7), (640, 480))
    assert text == "<loc_52><loc_333><loc_932><loc_774>"
    assert text_to_box(text, (640, 480)) == pytest.approx([33.6, 160.08, 596.8, 371.76])
    assert text_to_bins(f"a{text}<loc_1000><loc_{'9' * 5000}>") == [52, 333, 932, 774, 999, 999]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize([1, 2, 3], (9, 9)), r"axis of 2 \(x, y\) or 4.*got shape \(3,\)"),
        (lambda: quantize(1.0, (9, 9)), "axis of 2"),
        (lambda: quantize([np.nan, 1], (9, 9)), "finite"),
        (lambda: quantize([1, 1], (0, 9)), r"two positive numbers; got \(0, 9\)"),
        (lambda: dequantize([1, 1], (9,)), "two positive numbers"),
        (lambda: dequantize([1, 1], None), "got None"),
        (lambda: box_to_text([5, 5, 1, 9], (9, 9)), "corners in the wrong order"),
        (lambda: box_to_text([[1, 2, 3, 4]], (9, 9)), "one region at a time"),
        (lambda: text_to_box("<loc_1>", (9, 9)), "exactly four"),
    ],
)
def test_wrong_arguments_are_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
