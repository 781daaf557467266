"""Progress of a run: images and tokens per second, device utilization, errors, time left."""

from __future__ import annotations

import sys
import threading
import time

from tqdm import tqdm

from florence_jax.inference.device_stats import DeviceStats

_LOG_SECONDS = 60.0


class Progress:
    """A bar on stderr, or a line a minute if that is a log, and this process's counts."""

    def __init__(self, activity: DeviceStats, *, total: int, done: int, shown: bool) -> None:
        """
        Args:
            activity: counts of the job.
            total: items of the whole run.
            done: items whose rows are there already.
            shown: show the bar or the lines.
        """
        self._activity = activity
        self._lock = threading.Lock()
        self._started = self._logged = time.monotonic()
        self._tokens_before = activity.tokens
        self._ended: float | None = None
        self._total, self._before, self._done = total, done, done
        self.rows = 0
        self.errors = 0
        is_terminal = sys.stderr.isatty()
        self._is_logged = shown and not is_terminal
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="image",
            disable=not (shown and is_terminal),
            smoothing=0.05,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = time.monotonic()
        self._show_bar()
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Seconds from the beginning of the run to its end, or until now."""
        return (self._ended or time.monotonic()) - self._started

    def add(self, rows: int, errors: int) -> None:
        """Count a block of this process."""
        with self._lock:
            self.rows += rows
            self.errors += errors
        self.add_others(rows)

    def add_others(self, rows: int) -> None:
        """Count rows that other processes finished."""
        with self._lock:
            self._done += rows
            self._bar.update(rows)

    def refresh(self) -> None:
        """Show the counts as they are now."""
        self._show_bar()
        now = time.monotonic()
        if self._is_logged and now - self._logged >= _LOG_SECONDS:
            self._logged = now
            print(self._line(), file=sys.stderr, flush=True)

    def _show_bar(self) -> None:
        if not self._bar.disable:
            with self._lock:
                self._bar.set_postfix_str(self._state(), refresh=False)
                self._bar.refresh()

    def _state(self) -> str:
        made = self._activity.tokens - self._tokens_before
        speed = f"{made / self.seconds:.0f} tokens/s, " if self._activity.counts_tokens else ""
        share = self._activity.utilization
        busy = "" if share is None else f"device {share:.0%} busy, "
        return f"{speed}{busy}{self.errors} errors"

    def _line(self) -> str:
        done, rate = self._done, (self._done - self._before) / self.seconds
        left = tqdm.format_interval((self._total - done) / rate) if rate else "?"
        return f"{done} of {self._total} images, {rate:.2f} images/s, {self._state()}, {left} left"
