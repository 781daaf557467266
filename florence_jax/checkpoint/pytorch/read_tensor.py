"""A stored tensor, or a part of one, as an array in memory: cast and transposed in one pass."""

from typing import Any

import numpy as np

from florence_jax.checkpoint.errors import CheckpointError
from florence_jax.checkpoint.plan import Source
from florence_jax.checkpoint.pytorch.cast import cast_into
from florence_jax.checkpoint.pytorch.lazy_tensor import FLOAT_DTYPES

_FLOAT16 = np.dtype(np.float16)


def checked_dtype(dtype: Any) -> np.dtype:
    """`dtype` as one that a parameter may have.

    Raises:
        ValueError: it is not float32, bfloat16 or float16.
    """
    message = f"dtype is {dtype!r}, expected 'float32', 'bfloat16', 'float16' or None (as stored)"
    try:
        checked = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(message) from error
    if checked not in FLOAT_DTYPES:
        raise ValueError(message)
    return checked


def leaf_dtype(entry: Source, target: np.dtype | None) -> np.dtype:
    """The dtype in which `entry` is loaded: `target`, or for None the stored one.

    Raises:
        CheckpointError: it is stored in a dtype that jax does not keep.
    """
    if target is not None:
        return target
    stored = entry.tensor.dtype
    if stored not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{entry.tensor.file}: {entry.tensor.name} is {stored}, which jax does not keep: pass "
            "dtype='float32'"
        )
    return stored


def fetch(entry: Source, view: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A fresh, C-ordered copy of `view`, which is `entry`'s tensor in our layout or a part of it.

    Always a copy: on the CPU jax keeps aligned numpy memory instead of copying it, and the mapping
    of a file, which may change or shrink, must never become a parameter.

    Raises:
        CheckpointError: finite values would become infinite in float16.
    """
    array = np.empty(view.shape, dtype)
    cast_into(array, view)
    narrows = dtype == _FLOAT16 and view.dtype != _FLOAT16
    if narrows and np.isinf(array).any() and not np.isinf(view).any():
        raise CheckpointError(
            f"{entry.tensor.file}: {entry.tensor.name} holds values beyond float16's 65504: load "
            "it in bfloat16 or float32"
        )
    return array
