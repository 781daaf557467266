"""Invertible changes of layout between torch tensors and our parameters.

Every transform is a view: none copies or rounds, so both directions are exact, and a reader can
apply one to a file mapping and then fetch only the slice that it needs.
"""

import dataclasses

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A transposition, with an optional leading torch dimension of size 1 that we do not keep.

    Attributes:
        layout: what it does, for messages.
        axes: for each of our dimensions, the torch dimension it comes from.
        leading_one: the torch tensor has one more leading dimension, of size 1.
    """

    layout: str
    axes: tuple[int, ...]
    leading_one: bool = False

    def shape_to_ours(self, shape: Shape) -> Shape | None:
        """Our shape of a torch tensor of `shape`; None where this transform cannot apply."""
        if self.leading_one:
            if shape[:1] != (1,):
                return None
            shape = shape[1:]
        if len(shape) != len(self.axes):
            return None
        return tuple(shape[axis] for axis in self.axes)

    def shape_to_torch(self, shape: Shape) -> Shape:
        """The torch shape of one of our tensors; `shape` has `len(axes)` dimensions."""
        torch_shape = tuple(shape[self.axes.index(axis)] for axis in range(len(self.axes)))
        return (1, *torch_shape) if self.leading_one else torch_shape

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """A view of a torch-layout array in our layout."""
        return np.transpose(array[0] if self.leading_one else array, self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """A view of one of our arrays in torch's layout."""
        array = np.transpose(array, tuple(self.axes.index(axis) for axis in range(len(self.axes))))
        return array[None] if self.leading_one else array


VECTOR = Transform("[n]", (0,))
TABLE = Transform("[rows, width]", (0, 1))
LINEAR = Transform("[out, in] -> [in, out]", (1, 0))
CONV = Transform("[O, I, kh, kw] -> [kh, kw, I, O]", (2, 3, 1, 0))
LOGITS_BIAS = Transform("[1, V] -> [V]", (0,), leading_one=True)
