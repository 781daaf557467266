"""Ctrl-C and SIGTERM: first a request to finish the work in hand, then the end of the process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, TypeVar

# What a shell reports of a program that Ctrl-C ended.
INTERRUPTED = 130

Result = TypeVar("Result")


class Interrupted(Exception):
    """A signal asked the program to end; the work in hand should be saved."""


class Interruption:
    """While entered, the first SIGTERM or SIGINT only sets a flag; a second SIGINT interrupts.

    Preempted machines get SIGTERM and about 30 seconds. Signals reach the main thread alone:
    entered in another thread, this changes nothing.
    """

    def __init__(
        self, asked: threading.Event | None = None, notice: str = "", *, alone: bool = True
    ) -> None:
        """
        Args:
            asked: the flag, where other threads wait for it too.
            notice: a line for stderr, printed at each signal.
            alone: False where other processes take every step with this one: `check` then leaves
                the decision to the caller, who reads `asked` and ends all processes together.
        """
        self._asked, self._notice, self._alone = asked or threading.Event(), notice, alone
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.asked and self._alone:
            raise Interrupted

    def wait_for(self, work: Callable[[], Result]) -> Result:
        """`work()`, computed on another thread while the main thread hears signals.

        XLA's compiler runs for minutes and cannot be interrupted.

        Raises:
            Interrupted: a signal came before the work was done. Its thread runs on, and ends with
                the process.
        """
        self.check()
        done = threading.Event()
        results: list[Result] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        threading.Thread(target=run, daemon=True).start()
        # Short waits: Python runs signal handlers only between the main thread's instructions.
        while not done.wait(0.1):
            self.check()
        if errors:
            raise errors[0]
        return results[0]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked.set()
        if self._notice:
            print(f"\n{self._notice}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def exit_on_interrupt(how_to_go_on: str) -> Iterator[None]:
    """While entered, a KeyboardInterrupt prints how to go on and ends the process at once."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped at once; {how_to_go_on}", file=sys.stderr)
        exit_now(INTERRUPTED)


def exit_now(status: int) -> NoReturn:
    """End the process without waiting for threads, which a compiler or a device may hold."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
