"""What a person sees of a run: images and tokens a second, the device, errors, time left."""

from __future__ import annotations

import threading
import time

from tqdm import tqdm

from florence_jax.batch.activity import Activity


class Progress:
    """A bar on stderr, where that is a terminal, and the counts of this process behind it."""

    def __init__(self, activity: Activity, *, total: int, done: int, shown: bool) -> None:
        """
        Args:
            total: items of the whole run.
            done: those whose rows are there already.
        """
        self._activity = activity
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._tokens_before = activity.tokens
        self._ended: float | None = None
        self.rows = 0
        self.errors = 0
        # None: nothing to see on a dumb terminal but noise in the log.
        self._bar = tqdm(
            total=total, initial=done, unit="image", disable=None if shown else True, smoothing=0.05
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = time.monotonic()
        self.refresh()
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Since the run began, until it ended."""
        return (self._ended or time.monotonic()) - self._started

    def add(self, rows: int, errors: int) -> None:
        """One more block is there."""
        with self._lock:
            self.rows += rows
            self.errors += errors
            self._bar.update(rows)

    def refresh(self) -> None:
        """Show the counts as they are now."""
        if self._bar.disable:
            return
        tokens = (self._activity.tokens - self._tokens_before) / self.seconds
        busy = self._activity.busy_share
        with self._lock:
            self._bar.set_postfix_str(
                f"{tokens:.0f} tokens/s, device {busy:.0%} busy, {self.errors} errors",
                refresh=False,
            )
            self._bar.refresh()
