"""Read a safetensors file as views of a memory mapping, and write one.

The reader replaces the safetensors library's for two reasons: the library copies every tensor into
fresh memory, while these views are cast and transposed straight to their destination; and files
come from strangers, so the header is checked more strictly (duplicate keys, size limit).
Format: https://github.com/huggingface/safetensors#format
"""

import math
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from florence_jax.checkpoint.errors import CheckpointError, clip
from florence_jax.checkpoint.files import parse_json
from florence_jax.checkpoint.pytorch.lazy_tensor import LazyTensor, mapped_view

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
        LazyTensor(name, shape, dtype, label, mapped_view(mapping, start + begin, shape, dtype))
        for name, shape, dtype, begin, _ in entries
    ]


_Entry = tuple[str, tuple[int, ...], np.dtype, int, int]


def save_tensors(
    tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file of contiguous arrays.

    Raises:
        OSError: the disk is full, or the system refuses for another reason.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=dict(metadata or {}))
        # The library makes a file that only its owner may read.
        path.chmod(mode)
    except SafetensorError as error:
        # The library wraps the system's error into its own and keeps the number in the text.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(path)) from error


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
