"""A queue of device computations: launched ahead of time, fetched on other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from florence_jax.inference.device_stats import DeviceStats

Fetched = TypeVar("Fetched")

# Computations in the device's queue: enough that it finds the next one when it has done one.
DEPTH = 4
# Shared, so that a queue made for one call starts no threads: more than all queues ever need.
_FETCHERS = ThreadPoolExecutor(64, thread_name_prefix="fetch")


class DeviceQueue:
    """Launches computations, a few ahead, and fetches their results on other threads.

    The launching thread goes on to prepare the next batch. It waits only where the queue is full.
    """

    def __init__(
        self, stats: DeviceStats, depth: int = DEPTH, order: threading.Lock | None = None
    ) -> None:
        """
        Args:
            stats: counts the time in which the device has work.
            depth: the computations that are launched ahead.
            order: shared by all queues of the same devices.
        """
        self._stats = stats
        self._slots = threading.BoundedSemaphore(depth)
        # Devices with collectives between them must all get their programs in one order, or they
        # deadlock; and a new shape is compiled once.
        self._order = order or threading.Lock()

    def launch(
        self, compute: Callable[[], Any], fetch: Callable[[Any], Fetched] = lambda _: None
    ) -> tuple[Any, Future[Fetched]]:
        """Start `compute()`, and pass its result to `fetch` when the device is done.

        Args:
            compute: returns arrays before the device has filled them.
            fetch: takes them to the host, by default none; runs on another thread.

        Returns:
            The arrays, for further computations on the device, and the result of `fetch`.
        """
        self._slots.acquire()
        try:
            with self._order:
                arrays = compute()
        except BaseException:
            self._slots.release()
            raise
        # After the call, which compiles a new shape: the device is idle meanwhile.
        self._stats.begin()
        return arrays, _FETCHERS.submit(self._collect, arrays, fetch)

    def _collect(self, arrays: Any, fetch: Callable[[Any], Fetched]) -> Fetched:
        try:
            jax.block_until_ready(arrays)
        finally:
            self._stats.end()
            self._slots.release()
        return fetch(arrays)
