"""`LoadPlan`: the stored tensor of each parameter of a checkpoint, and a report on planning.

A plan is made of tensors that are described and not read: `LazyTensor` in a file's own layout,
`Source` with the way to the layout of the parameter tree.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from florence_jax.checkpoint.pytorch.key_map import Naming, Shape, Transform
from florence_jax.checkpoint.repository import RepositoryConfig
from florence_jax.config import Florence2Config

if TYPE_CHECKING:
    from florence_jax.checkpoint.native.arrays import SavedArrays

# The dtypes of parameters, and those that parameters are read from.
FLOAT_DTYPES: tuple[np.dtype, ...] = tuple(
    np.dtype(dtype) for dtype in (np.float32, np.float16, ml_dtypes.bfloat16)
)
READABLE_DTYPES: tuple[np.dtype, ...] = (*FLOAT_DTYPES, np.dtype(np.float64))


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


@dataclasses.dataclass(frozen=True)
class Source:
    """The stored tensor that fills a parameter; None as `transform` keeps its layout."""

    tensor: LazyTensor
    transform: Transform | None = None

    @property
    def shape(self) -> Shape | None:
        """The parameter's shape; None where the tensor cannot have the parameter's layout."""
        shape = self.tensor.shape
        return shape if self.transform is None else self.transform.shape_to_ours(shape)

    def stored_shape(self, shape: Shape) -> Shape:
        """The shape that the tensor needs for a parameter of `shape`."""
        return shape if self.transform is None else self.transform.shape_to_torch(shape)

    def view(self) -> np.ndarray:
        """The tensor in the parameter's layout: a view, as `LazyTensor.view` gives."""
        array = self.tensor.view()
        return array if self.transform is None else self.transform.to_ours(array)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFormat:
    """The tensors of a PyTorch file beyond its parameters, needed to write the same file back.

    A PyTorch file may hold the token table under up to four names, and an output bias of zeros;
    none of that is a parameter here. To give the same file back, a saved checkpoint remembers it in
    its config.json, section "florence_jax".

    Attributes:
        naming: its naming.
        vocab_size: rows of its token table.
        extra: names in `naming` -> dtype of the tensors that hold the token table, or an output
            bias of zeros.
    """

    naming: Naming
    vocab_size: int
    extra: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The findings of loading a checkpoint; `str(report)` formats them for people.

    Attributes:
        source: the directory that was read.
        files: the weight files.
        naming: which of the two published namings the tensors have.
        parameters: number of elements loaded.
        stored_dtypes: number of tensors per dtype in the files.
        tied: names of tensors that hold the token table's values and were read once.
        untied: why `lm_head` and the output bias were kept apart, one sentence each.
        ignored: tensors that were not read, with the reason.
        warnings: what is odd but harmless, one sentence each.
    """

    source: str
    files: tuple[str, ...]
    naming: Naming
    parameters: int
    stored_dtypes: Mapping[str, int]
    tied: tuple[str, ...] = ()
    untied: tuple[str, ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        dtypes = ", ".join(f"{dtype} ({count})" for dtype, count in self.stored_dtypes.items())
        # Orbax names the files of its directory for itself: the directory stands for them.
        places = dict.fromkeys(re.sub("/.*", "/", name) for name in self.files)
        lines = [
            f"{self.source}: {self.parameters:,} parameters from {', '.join(places)}",
            f"  naming: {self.naming}; stored as {dtypes}",
        ]
        if self.tied:
            lines.append(f"  tied to the token table: {', '.join(self.tied)}")
        lines += [f"  not tied: {sentence}" for sentence in self.untied]
        lines += [f"  ignored: {name}: {reason}" for name, reason in self.ignored.items()]
        lines += [f"  odd: {sentence}" for sentence in self.warnings]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class LoadPlan:
    """The tensor for every parameter of a checkpoint's model; nothing has been read yet.

    Attributes:
        repository: the configuration files.
        config: the model that the checkpoint holds.
        sources: path in the parameter tree -> its stored tensor; complete, with shapes that fit
            `config`.
        report: what planning decided, and what it found odd.
        origin: the PyTorch file's tensors beyond these parameters.
        saved: the same parameters for Orbax, where `save_checkpoint` wrote the checkpoint.
    """

    repository: RepositoryConfig
    config: Florence2Config
    sources: Mapping[str, Source]
    report: Report
    origin: SourceFormat
    saved: "SavedArrays | None" = None
