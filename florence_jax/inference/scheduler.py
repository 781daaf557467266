"""Dynamic batching: a batch leaves when it is full, or when its oldest item has waited enough."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic

from florence_jax.inference.batching import Batcher, Item


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
