"""Ctrl-C and SIGTERM: first a request to finish what is in hand, then the end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# What a shell reports of a program that Ctrl-C ended.
INTERRUPTED = 130


class Interruption:
    """While entered, the first SIGTERM or SIGINT only asks; a second SIGINT is as always.

    Signals reach the main thread alone: entered in another one, it changes nothing.
    """

    def __init__(self, asked: threading.Event, notice: str) -> None:
        """
        Args:
            asked: set when somebody asks.
            notice: printed to stderr then.
        """
        self._asked, self._notice = asked, notice
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked.set()
        print(f"\n{self._notice}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def exit_on_interrupt(how_to_go_on: str) -> Iterator[None]:
    """While entered, a KeyboardInterrupt says how to go on and ends the process there and then."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped at once; {how_to_go_on}", file=sys.stderr)
        sys.stderr.flush()
        # Threads that wait for the device would otherwise be waited for.
        os._exit(INTERRUPTED)
