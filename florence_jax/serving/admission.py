"""`Admission`: the bounded number of requests under way, and when to come again."""

from __future__ import annotations

import threading
import time

from florence_jax.serving.errors import ServingError

_MEMORY = 0.9


class Admission:
    """Counts requests from their arrival until all work on them has ended.

    Attributes:
        under_way: requests now.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._seconds_each = 0.0
        self._last = time.monotonic()
        self.under_way = 0

    def take(self, count: int) -> None:
        """Places for `count` requests.

        Raises:
            ServingError: 503, there are not so many; 422, there never are.
        """
        if count > self._most:
            raise ServingError(
                422, f"{count} requests in one call, and the server's queue holds {self._most}: "
                "send them in several calls",
            )  # fmt: skip
        with self._lock:
            if self.under_way + count <= self._most:
                if not self.under_way:
                    self._last = time.monotonic()
                self.under_way += count
                return
            wait = self._seconds_each * self.under_way
        raise ServingError(
            503, f"{self._most} requests are under way: try again later", retry_after=wait
        )

    def free(self) -> None:
        """Work on one of them has ended."""
        with self._lock:
            self.under_way -= 1
            now = time.monotonic()
            self._seconds_each += (1 - _MEMORY) * (now - self._last - self._seconds_each)
            self._last = now
