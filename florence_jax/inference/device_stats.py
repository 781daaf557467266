"""`DeviceStats`: generated tokens, and the share of time in which the device had work."""

from __future__ import annotations

import threading
import time


class DeviceStats:
    """Counts of one job, from any number of threads.

    The device counts as busy from the launch of a computation until its result is there;
    computations that overlap count once. The rest is the time in which the device waited for the
    host.
    """

    def __init__(self, *, counts_tokens: bool = True) -> None:
        """
        Args:
            counts_tokens: whether the job generates tokens; one that does not adds 0 of them when
                its first results are there.
        """
        self.counts_tokens = counts_tokens
        self._lock = threading.Lock()
        self._running = 0
        self._since = 0.0
        self._busy = 0.0
        self._last = 0.0
        self._tokens = self._batches = self._requests = 0
        # When the first tokens were there, and how long the device had been busy by then.
        self._first: tuple[float, float] | None = None

    def begin(self) -> None:
        """Work goes to the device."""
        with self._lock:
            if self._running == 0:
                self._since = time.monotonic()
            self._running += 1

    def end(self) -> None:
        """Its result is there; once for each `begin`."""
        with self._lock:
            self._running -= 1
            self._last = time.monotonic()
            if self._running == 0:
                self._busy += self._last - self._since

    def add_tokens(self, count: int) -> None:
        """`count` more tokens were generated."""
        with self._lock:
            self._tokens += count
            if self._first is None:
                self._first = (time.monotonic(), self._busy_until_now())

    def add_batch(self, requests: int) -> None:
        """A batch of `requests` went to the device."""
        with self._lock:
            self._batches += 1
            self._requests += requests

    @property
    def batches(self) -> tuple[int, int]:
        """The batches that went to the device so far, and the requests in them."""
        with self._lock:
            return self._batches, self._requests

    @property
    def tokens(self) -> int:
        """Generated so far, padding not counted."""
        return self._tokens

    @property
    def utilization(self) -> float | None:
        """Share of the time from the first tokens to the last result in which the device was busy.

        None where there is no such time yet: programs are loaded or compiled until the first
        tokens, and a job of one batch ends with them.
        """
        with self._lock:
            if self._first is None:
                return None
            began, busy_before = self._first
            seconds = (time.monotonic() if self._running else self._last) - began
            busy = self._busy_until_now() - busy_before
            return min(1.0, busy / seconds) if seconds > 0 else None

    def _busy_until_now(self) -> float:
        return self._busy + (time.monotonic() - self._since if self._running else 0.0)
