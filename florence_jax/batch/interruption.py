"""Ctrl-C and SIGTERM: first a request to finish what is in hand, then the end."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


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
