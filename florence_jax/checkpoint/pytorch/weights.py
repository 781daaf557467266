"""List the tensors of a PyTorch checkpoint's weight files; safetensors as views of a mapping.

safetensors files are read here and not by their library for two reasons: the library copies every
tensor into fresh memory, while these views of a memory mapping are cast and transposed straight to
their destination; and files come from strangers, so the header is checked more strictly (duplicate
keys, size limit). Format: https://github.com/huggingface/safetensors#format
"""

import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, clip
from florence_jax.checkpoint.plan import LazyTensor
from florence_jax.checkpoint.pytorch.bin_reader import open_torch
from florence_jax.checkpoint.pytorch.key_map import Shape
from florence_jax.checkpoint.repository import WeightFiles, parse_json

# The published files' headers have about 100 kB. Parsed JSON takes some ten times its text.
MAX_HEADER_BYTES = 8 << 20

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

_Entry = tuple[str, Shape, np.dtype, int, int]


def open_weights(files: WeightFiles) -> list[LazyTensor]:
    """The tensors of a checkpoint's weight files; a name may occur twice, once per file.

    Raises:
        CheckpointError: a file is damaged, or an index disagrees with its shards.
    """
    opened = {
        name: open_tensors(path, str(files.directory / name)) for name, path in files.paths.items()
    }
    if files.index is not None:
        problems = ErrorCollector()
        found = {(tensor.name, file) for file, tensors in opened.items() for tensor in tensors}
        listed = set(files.index.items())
        for name, file in sorted(listed - found):
            problems.add("tensors that the index lists and their shard lacks", name, file)
        for name, file in sorted(found - listed):
            problems.add("tensors in a shard that the index does not list there", name, file)
        problems.raise_if_any(f"{files.directory / files.chosen}")
    return [tensor for tensors in opened.values() for tensor in tensors]


def open_tensors(path: Path, label: str) -> list[LazyTensor]:
    """The tensors of one file; `label`, its name for messages, ends in `.bin` for torch's format.

    Raises:
        CheckpointError: as `open_safetensors` and `open_torch`.
    """
    return (open_torch if label.endswith(".bin") else open_safetensors)(path, label)


def open_safetensors(path: Path, label: str) -> list[LazyTensor]:
    """The tensors of a safetensors file, none of them read yet.

    Args:
        path: the file.
        label: its name for messages.

    Raises:
        CheckpointError: the header is too large or malformed, or the tensors' byte ranges overlap,
            leave gaps or do not end with the file.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < 10:
            raise CheckpointError(
                f"{label} has {size} bytes, too few for safetensors. Is the download complete, or "
                "is it a git-lfs pointer?"
            )
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{label}: the header claims {header_bytes} bytes; the file has {size} and at most "
                f"{MAX_HEADER_BYTES} are read. It is not safetensors, or it is truncated or a "
                "git-lfs pointer: download it again"
            )
        header = parse_json(file.read(header_bytes), f"the header of {label}")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Without this, reads of a few pages at a time get a fifth of the disk's speed.
        mapping.madvise(mmap.MADV_SEQUENTIAL)
    if not isinstance(header, dict):
        raise CheckpointError(f"the header of {label} is not a JSON object")
    start = 8 + header_bytes
    entries = [
        _entry(name, fields, label) for name, fields in header.items() if name != "__metadata__"
    ]
    _check_layout(entries, size - start, label)
    return [
        LazyTensor(name, shape, dtype, label, _mapped(mapping, start + begin, shape, dtype))
        for name, shape, dtype, begin, _ in entries
    ]


def _mapped(
    mapping: mmap.mmap, offset: int, shape: Shape, dtype: np.dtype
) -> Callable[[], np.ndarray]:
    def view() -> np.ndarray:
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.frombuffer(mapping, dtype, math.prod(shape), offset).reshape(shape)

    return view


def _entry(name: str, fields: Any, label: str) -> _Entry:
    """(name, shape, dtype, begin, end) of one header entry, checked."""
    where = f"{label}, tensor {clip(name)!r}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets")
    dtype = _DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(
            f"{where}: dtype {clip(repr(fields['dtype']))} is unknown; known are "
            f"{', '.join(_DTYPES)}"
        )
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not _are_sizes(shape) or len(shape) > 32:
        raise CheckpointError(f"{where}: shape {clip(repr(shape))} is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: data_offsets {clip(repr(offsets))} are not two positions")
    begin, end = offsets
    # Python integers: a product that would overflow int64 cannot pass for a small one.
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{where}: {dtype} of shape {clip(repr(shape))} does not fill the bytes {begin} "
            f"to {end}"
        )
    return name, tuple(shape), dtype, begin, end


def _are_sizes(value: Any) -> bool:
    # `type(...) is int` and not isinstance: JSON's true is a bool, which is an int.
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_layout(entries: list[_Entry], data_bytes: int, label: str) -> None:
    position = 0
    for name, _, _, begin, end in sorted(entries, key=lambda entry: entry[3:]):
        if begin != position:
            fault = "overlaps the one before it" if begin < position else "leaves a gap before it"
            raise CheckpointError(
                f"{label}: tensor {clip(name)!r} at byte {begin} {fault} (expected {position})"
            )
        position = end
    if position != data_bytes:
        raise CheckpointError(
            f"{label}: the header describes {position} bytes of tensors, the file holds "
            f"{data_bytes}. Is the download complete?"
        )
