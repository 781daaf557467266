"""Casts are bit for bit numpy's and ml_dtypes' own, in every layout."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from florence_jax.checkpoint.load import cast_into
from florence_jax.checkpoint.pytorch.key_map import NAMINGS, RULES

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
FLOATS = [np.dtype(np.float32), *HALVES]


def cast(view, dtype):
    target = np.empty(view.shape, dtype)
    cast_into(target, view)
    return target


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    bits = np.dtype(f"u{actual.dtype.itemsize}")
    np.testing.assert_array_equal(actual.view(bits), expected.view(bits))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_every_half_precision_value(half, dtype):
    values = np.arange(1 << 16, dtype=np.uint16).view(half)
    assert_same_bits(cast(values, dtype), values.astype(dtype))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_float32_at_and_beside_every_rounding_boundary(half):
    """Every upper half of a float32 with the lower halves at which rounding turns, NaNs too."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    bits = (upper | np.array(lower, np.uint32)[:, None]).reshape(-1)
    assert_same_bits(cast(bits.view(np.float32), half), bits.view(np.float32).astype(half))
    numbers = bits[~np.isnan(bits.view(np.float32))].view(np.float32)
    assert_same_bits(cast(numbers, half), numbers.astype(half))


LAYOUTS = {
    "table": lambda array: array,
    "linear": lambda array: array.T,
    "a part of its rows": lambda array: array.T[3:1000],
    "a part of its columns": lambda array: array[:, 5:300],
    "convolution": lambda array: array.reshape(-1, 60, 3, 2).transpose(2, 3, 1, 0),
    "one row of it": lambda array: array.reshape(-1, 60, 3, 2).transpose(2, 3, 1, 0)[1:2],
    "vector": lambda array: array.reshape(-1),
    "one value": lambda array: array[7, 7:8],
    "nothing": lambda array: array[:0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_beyond_one_strip(layout):
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((181, 1080))
    for stored, dtype in itertools.product([*FLOATS, np.dtype(np.float64)], FLOATS):
        view = LAYOUTS[layout](numbers.astype(stored))
        assert_same_bits(cast(view, dtype), np.ascontiguousarray(view).astype(dtype))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.ours)
def test_every_transform_from_an_unaligned_file(rule):
    for naming in NAMINGS:
        transform = rule.transform(naming)
        shape = (1,) * transform.leading_one + (19, 17, 5, 3)[: len(transform.axes)]
        numbers = np.random.default_rng(0).standard_normal(shape)
        for stored in FLOATS:
            content = b"?" + numbers.astype(stored).tobytes()
            array = np.frombuffer(content, stored, offset=1).reshape(shape)
            view = transform.to_ours(array)
            assert_same_bits(cast(view, np.dtype(np.float16)), view.copy().astype(np.float16))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 3\) does not fill one of \(2, 3\)"):
        cast_into(np.zeros((2, 3), np.float16), np.zeros((1, 3), np.float16))
