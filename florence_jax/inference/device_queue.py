"""Work for the device, handed over ahead of time and waited for elsewhere."""

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


class DeviceQueue:
    """Launches computations, a few ahead, and fetches their results on threads of its own.

    Whoever launches goes on to prepare the next batch; it waits only where the queue is full.
    """

    def __init__(self, activity: DeviceStats, depth: int = DEPTH) -> None:
        self._activity = activity
        self._slots = threading.BoundedSemaphore(depth)
        # Devices that speak with each other must all get their programs in one order, or they wait
        # for each other for ever; and a new shape is compiled once.
        self._order = threading.Lock()
        self._threads = ThreadPoolExecutor(depth, thread_name_prefix="fetch")

    def launch(
        self, compute: Callable[[], Any], fetch: Callable[[Any], Fetched]
    ) -> tuple[Any, Future[Fetched]]:
        """Start `compute()`, and `fetch` what it gives once the device is done.

        Args:
            compute: returns arrays before the device has filled them.
            fetch: takes them to the host; runs on another thread.

        Returns:
            The arrays, to be computed with on the device, and what `fetch` will have returned.
        """
        self._slots.acquire()
        try:
            with self._order:
                arrays = compute()
        except BaseException:
            self._slots.release()
            raise
        # After the call, in which a new shape is compiled: that the device does not work on.
        self._activity.begin()
        return arrays, self._threads.submit(self._collect, arrays, fetch)

    def _collect(self, arrays: Any, fetch: Callable[[Any], Fetched]) -> Fetched:
        try:
            jax.block_until_ready(arrays)
        finally:
            self._activity.end()
            self._slots.release()
        return fetch(arrays)
