"""Batch buckets: a few batch sizes are compiled, and every batch is padded to one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

DEFAULT_BATCH_SIZE = 8


def batch_buckets(batch_size: int) -> tuple[int, ...]:
    """1, 2, 4, ... below `batch_size`, and `batch_size` itself.

    Raises:
        ValueError: `batch_size` is no integer of at least 1.
    """
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, expected at least 1 and an integer")
    batch_size = int(batch_size)
    powers = [1 << power for power in range(batch_size.bit_length())]
    return tuple(sorted({*(size for size in powers if size < batch_size), batch_size}))


def padded_rows(count: int, buckets: Sequence[int]) -> np.ndarray:
    """Row numbers of `count` rows, the last one repeated up to the smallest bucket that fits.

    A last, smaller batch would otherwise be a new shape, and compile anew, for every length.
    """
    return np.minimum(np.arange(min(size for size in buckets if size >= count)), count - 1)


def pad_prompts(
    prompts: Sequence[Sequence[int]], pad_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """B prompts as int32[B, L], padded to the longest, and their mask, bool[B, L]."""
    lengths = np.array([len(prompt) for prompt in prompts])
    mask = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.full(mask.shape, pad_token_id, np.int32)
    input_ids[mask] = np.concatenate(prompts)
    return input_ids, mask


def split_into_buckets(count: int, buckets: Sequence[int]) -> Iterator[slice]:
    """`count` rows cut into the largest buckets that fit: 7 into 4, 2 and 1.

    For computations that cost as much as their rows, where padding would be wasted. A rest below
    the smallest bucket is a piece of its own.
    """
    start = 0
    while start < count:
        size = max((size for size in buckets if size <= count - start), default=min(buckets))
        yield slice(start, min(start + size, count))
        start += size
