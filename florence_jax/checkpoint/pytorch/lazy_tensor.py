"""`LazyTensor`: one tensor of a weight file, described but not read yet."""

import dataclasses
import math
import mmap
from collections.abc import Callable

import ml_dtypes
import numpy as np

from florence_jax.checkpoint.pytorch.transforms import Shape

# The dtypes of parameters, and those that parameters are read from.
FLOAT_DTYPES: tuple[np.dtype, ...] = tuple(
    np.dtype(dtype) for dtype in (np.float32, np.float16, ml_dtypes.bfloat16)
)
READABLE_DTYPES: tuple[np.dtype, ...] = (*FLOAT_DTYPES, np.dtype(np.float64))

# Elements compared or tested at a time: a table of 50 M elements then takes a few MB of memory.
_CHUNK_ELEMENTS = 1 << 20


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """One tensor of a weight file.

    Attributes:
        name: its name in the file.
        shape: its shape in the file (torch layout).
        dtype: its dtype in the file.
        file: the file's name, for messages and the report.
        view: gives the tensor as an array, which in a PyTorch file is a read-only view of the
            file's mapping. Copy what you keep: the mapping's pages belong to the file.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    file: str
    view: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_readable(self) -> bool:
        """Whether a parameter can be read from this dtype."""
        return self.dtype in READABLE_DTYPES


def mapped_view(
    mapping: mmap.mmap, offset: int, shape: Shape, dtype: np.dtype
) -> Callable[[], np.ndarray]:
    """`LazyTensor.view` for plain bytes from `offset` of a mapped file."""

    def view() -> np.ndarray:
        count = math.prod(shape)
        if count == 0:
            return np.zeros(shape, dtype)
        return np.frombuffer(mapping, dtype, count, offset).reshape(shape)

    return view


def same_values(left: LazyTensor, right: LazyTensor) -> bool:
    """Whether two readable tensors hold the same values; bit for bit where they share a dtype.

    Tensors of different dtypes are compared in float32, which holds every float16 and bfloat16.
    """
    if left.shape != right.shape:
        return False
    a, b = left.view(), right.view()
    if a.__array_interface__ == b.__array_interface__:  # two names of one torch storage
        return True
    return all(
        _same_chunk(a[rows], b[rows], bitwise=left.dtype == right.dtype)
        for rows in _row_chunks(left.shape)
    )


def is_zero(tensor: LazyTensor) -> bool:
    """Whether every element of a readable tensor is zero."""
    array = tensor.view()
    return not any(np.any(array[rows]) for rows in _row_chunks(tensor.shape))


def _same_chunk(a: np.ndarray, b: np.ndarray, *, bitwise: bool) -> bool:
    if bitwise:
        return np.array_equal(
            np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8)
        )
    return np.array_equal(a.astype(np.float32), b.astype(np.float32))


def _row_chunks(shape: Shape) -> list[slice]:
    width = max(math.prod(shape[1:]), 1)
    step = max(_CHUNK_ELEMENTS // width, 1)
    return [slice(start, start + step) for start in range(0, shape[0], step)]
