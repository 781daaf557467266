"""Read a stored tensor, or a part of one, into memory: cast and transposed in one pass.

Values are cast and transposed in strips that stay in the processor's cache, in calls that release
the GIL. Values of 16 bits are looked up: numpy's own cast from float16 takes nearly twice as long.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from florence_jax.checkpoint.errors import CheckpointError
from florence_jax.checkpoint.plan import Source
from florence_jax.checkpoint.pytorch.lazy_tensor import FLOAT_DTYPES

_FLOAT16 = np.dtype(np.float16)
_STRIP_ELEMENTS = 1 << 16
# Rows of the file that are transposed together; more would not share the cache lines they go to.
_ROWS = 16

# Casts the second array into the first, a contiguous one of the same shape.
_Cast = Callable[[np.ndarray, np.ndarray], None]


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


def cast_into(target: np.ndarray, view: np.ndarray) -> None:
    """Fill `target` with `view`, each value rounded to the nearest, ties to even, as numpy does.

    Args:
        target: C-ordered array of float32, float16 or bfloat16.
        view: array of the same shape, of those or float64, transposed or not.

    Raises:
        ValueError: the shapes differ.
    """
    if target.shape != view.shape:
        raise ValueError(f"an array of shape {view.shape} does not fill one of {target.shape}")
    if target.size == 0:
        return
    # Both with their axes in the order in which the view lies in memory.
    order = sorted(range(view.ndim), key=lambda axis: view.strides[axis], reverse=True)
    source, target = view.transpose(order), target.transpose(order)
    with np.errstate(over="ignore", invalid="ignore"):
        if source.flags.c_contiguous and target.flags.c_contiguous:
            _cast_flat(target.reshape(-1), source.reshape(-1))
        else:
            _cast_strided(target, source)


def _cast_flat(target: np.ndarray, source: np.ndarray) -> None:
    cast = _cast(target.dtype, source.dtype, min(source.size, _STRIP_ELEMENTS))
    for start in range(0, source.size, _STRIP_ELEMENTS):
        strip = slice(start, start + _STRIP_ELEMENTS)
        cast(target[strip], source[strip])


def _cast_strided(target: np.ndarray, source: np.ndarray) -> None:
    """Cast strips of the source's rows in their own order, then spread them over the target."""
    width = source.size // len(source)
    step = min(len(source), max(_ROWS, _STRIP_ELEMENTS // width // _ROWS * _ROWS))
    strip = np.empty((step, *source.shape[1:]), target.dtype)
    cast = _cast(target.dtype, source.dtype, strip.size)
    for start in range(0, len(source), step):
        rows = source[start : start + step]
        if rows.dtype != target.dtype:
            done = strip[: len(rows)]
            cast(done, rows)
            rows = done
        for row in range(0, len(rows), _ROWS):
            target[start + row :][:_ROWS] = rows[row : row + _ROWS]


def _cast(target: np.dtype, source: np.dtype, size: int) -> _Cast:
    """How to cast up to `size` elements at a time."""
    if source.itemsize == 2 and source != target:
        return _by_table(_table(target, source), size)
    return functools.partial(np.copyto, casting="unsafe")


def _by_table(table: np.ndarray, size: int) -> _Cast:
    indices = np.empty(size, np.intp)  # numpy would convert them at every look-up otherwise

    def cast(target: np.ndarray, source: np.ndarray) -> None:
        index = indices[: source.size].reshape(source.shape)
        index[...] = source.view(np.uint16)
        np.take(table, index, out=target.view(table.dtype), mode="clip")

    return cast


@functools.cache
def _table(target: np.dtype, source: np.dtype) -> np.ndarray:
    """The bits in `target` of each of the 65,536 values of a 16-bit `source`."""
    values = np.arange(1 << 16, dtype=np.uint16).view(source)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(target).view(np.dtype(f"u{target.itemsize}"))
