"""Casting while reading: the fast ways give the bits of the plain ones."""

import ml_dtypes
import numpy as np
import pytest

from florence_jax.checkpoint.load import fetch
from florence_jax.checkpoint.plan import LazyTensor, Source
from florence_jax.checkpoint.pytorch.key_map import LINEAR

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def fetched(view, dtype):
    tensor = LazyTensor("fc1.weight", view.shape, view.dtype, "file", lambda: view)
    return fetch(Source(tensor, LINEAR), view, np.dtype(dtype))


@pytest.mark.parametrize(
    "arrange",
    [
        lambda flat: flat,
        lambda flat: flat.reshape(512, 128),
        lambda flat: flat.reshape(512, 128).T,
        lambda flat: flat.reshape(512, 128).T[3:99, 5:400],
        lambda flat: flat.reshape(64, 64, 4, 4).transpose(2, 3, 1, 0),
        lambda flat: flat[:65530],
    ],
)
def test_every_half_becomes_the_bfloat16_that_astype_makes_of_it(arrange):
    view = arrange(EVERY_HALF)
    with np.errstate(invalid="ignore"):
        expected = view.astype(ml_dtypes.bfloat16)
    array = fetched(view, ml_dtypes.bfloat16)
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(
        array.view(np.uint16), np.ascontiguousarray(expected).view(np.uint16)
    )


def test_what_overflows_is_refused_and_what_was_infinite_is_not():
    with pytest.raises(ValueError, match=r"fc1\.weight holds values beyond float16"):
        fetched(np.float32([[1, 1e5]]), np.float16)
    assert np.isinf(fetched(np.float32([[1, np.inf]]), np.float16)).any()
