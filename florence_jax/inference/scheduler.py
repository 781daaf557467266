"""Dynamic batching: a batch leaves when it is full, or when its oldest item has waited enough."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


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


class Clock:
    """The time, and waiting for it or for a condition; tests bring their own."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait until the condition is notified or `seconds` are over; the condition is held."""
        condition.wait(seconds)


class BatchScheduler(Generic[Item]):
    """Launches the batches of a `Batcher` on a thread of its own, in the order they leave."""

    def __init__(
        self,
        launch: Callable[[list[Item]], None],
        size: int,
        max_wait: float,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            launch: takes a batch; must not raise.
            size, max_wait: as for `Batcher`.
        """
        self._launch, self._clock = launch, clock or Clock()
        self._batcher: Batcher[Item] = Batcher(size, max_wait=max_wait, now=self._clock.now)
        self._ready: deque[list[Item]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def submit(self, item: Item, key: Hashable) -> None:
        """Add an item, from any thread.

        Raises:
            RuntimeError: the scheduler is closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("no request is taken: the engine is closed")
            full = self._batcher.enqueue(item, key)
            if full is not None:
                self._ready.append(full)
            self._changed.notify()

    def close(self) -> None:
        """Launch the batches that are left, and take no more items."""
        with self._changed:
            self._closed = True
            self._ready.extend(self._batcher.flush())
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._launch(batch)

    def _next(self) -> list[Item] | None:
        """The next batch, when there is one; None when there will be none."""
        with self._changed:
            while True:
                self._ready.extend(self._batcher.due())
                if self._ready:
                    return self._ready.popleft()
                if self._closed:
                    return None
                self._clock.wait(self._changed, self._batcher.seconds_left())
