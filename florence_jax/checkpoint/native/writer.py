"""The data files of a checkpoint to be saved, written as fast as the machine allows.

Parameters are read, cast and transposed some rows at a time, by two threads, while two more hash
and write what is ready. All of this leaves Python's lock alone.
"""

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from florence_jax.checkpoint.native.block_file import BLOCK_BYTES, StreamWriter, WriterPool
from florence_jax.checkpoint.native.manifest import FileEntry
from florence_jax.checkpoint.native.orbax_format import ArrayLocation

# Less is not worth handing to another thread.
_SHARED_BYTES = 256 << 10


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter that is read when its turn comes, some rows at a time.

    Attributes:
        path: "encoder/layers/0/fc1/kernel".
        shape: its shape, of one dimension or more.
        dtype: float32, float16 or bfloat16.
        read: fills a C-ordered array of `dtype` with the rows, along the first axis, of a slice;
            called from several threads.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[np.ndarray, slice], None] = dataclasses.field(repr=False, compare=False)


def write_data_files(
    directory: Path, placed: Sequence[ArrayLocation], leaves: Mapping[str, Leaf], *, progress: bool
) -> dict[str, FileEntry]:
    """Write every leaf to its place in a new file below `directory`; nothing is synced yet."""
    total = sum(parameter.nbytes for parameter in placed)
    files: dict[str, StreamWriter] = {}
    with (
        contextlib.ExitStack() as open_files,
        WriterPool() as writers,
        ThreadPoolExecutor(1) as helper,
        tqdm(
            total=total, desc="writing", unit="B", unit_scale=True, disable=not progress
        ) as progress_bar,
    ):
        for name, members in itertools.groupby(placed, lambda parameter: parameter.file):
            file = open_files.enter_context(StreamWriter(directory / name, writers))
            for parameter in members:
                file.pad(parameter.offset)
                for rows, shape in _pieces(parameter):
                    with file.space(shape, parameter.dtype) as array:
                        _read(leaves[parameter.path], array, rows, helper)
                    progress_bar.update(array.nbytes)
            file.finish()
            files[name] = file
        writers.wait()
        return {name: file.entry() for name, file in files.items()}


def write_small_file(path: Path, content: bytes) -> FileEntry:
    """Write one new file; it is not synced yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


def _pieces(parameter: ArrayLocation) -> Iterator[tuple[slice, tuple[int, ...]]]:
    """Rows of a parameter that fill about a block, and their shape."""
    length, *rest = parameter.shape
    step = max(1, BLOCK_BYTES * length // parameter.nbytes)
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield slice(start, stop), (stop - start, *rest)


def _read(leaf: Leaf, array: np.ndarray, rows: slice, helper: ThreadPoolExecutor) -> None:
    """Read half of the rows here and half on the other thread."""
    half = len(array) // 2 if array.nbytes >= _SHARED_BYTES else 0
    middle = rows.start + half
    first = helper.submit(leaf.read, array[:half], slice(rows.start, middle)) if half else None
    leaf.read(array[half:], slice(middle, rows.stop))
    if first is not None:
        first.result()
