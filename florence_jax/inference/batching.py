"""Form batches, and pad them to one of the few batch sizes that are compiled."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

DEFAULT_BATCH_SIZE = 8

Item = TypeVar("Item")


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


class Batcher(Generic[Item]):
    """Sorts items into batches of at most `size`; a batch holds items of one key.

    Among items of one key, those of one `kind` fill batches of their own as long as they can.
    """

    def __init__(
        self,
        size: int,
        *,
        max_wait: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            max_wait: seconds after which `due` gives an item's batch, full or not; None: never.
            now: the clock, in seconds.
        """
        self._size, self._max_wait, self._now = size, max_wait, now
        # By key and kind; each with the time at which its first item came.
        self._waiting: dict[Any, dict[Any, list[Item]]] = defaultdict(dict)
        self._since: dict[Any, float] = {}

    def enqueue(self, item: Item, key: Hashable, kind: Hashable = "") -> list[Item] | None:
        """Add one item; the batch that it has made full, if it has."""
        kinds = self._waiting[key]
        batch = kinds.setdefault(kind, [])
        batch.append(item)
        self._since.setdefault(key, self._now())
        if len(batch) < self._size:
            return None
        del kinds[kind]
        if not kinds:
            self._forget(key)
        return batch

    def due(self) -> list[list[Item]]:
        """The batches whose oldest item has waited `max_wait`."""
        if self._max_wait is None:
            return []
        now = self._now()
        late = [key for key, since in self._since.items() if now - since >= self._max_wait]
        return [batch for key in late for batch in self._take(key)]

    def flush(self) -> list[list[Item]]:
        """All that is left, in the order of keys."""
        return [batch for key in sorted(self._waiting) for batch in self._take(key)]

    def seconds_left(self) -> float | None:
        """The time until something is due; None where nothing will be."""
        if self._max_wait is None or not self._since:
            return None
        return max(0.0, min(self._since.values()) + self._max_wait - self._now())

    def _take(self, key: Any) -> Iterator[list[Item]]:
        """The items of a key, those of one kind behind each other."""
        kinds = self._waiting[key]
        items = [item for kind in sorted(kinds) for item in kinds[kind]]
        self._forget(key)
        for start in range(0, len(items), self._size):
            yield items[start : start + self._size]

    def _forget(self, key: Any) -> None:
        del self._waiting[key], self._since[key]
