"""SIGTERM and Ctrl-C as a flag that the loop looks at, even while XLA compiles."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")


class Interrupted(Exception):
    """Somebody asked the run to end; what is in hand should be saved."""


class Interruption:
    """While entered, the first SIGTERM or SIGINT only asks; a second SIGINT kills as usual.

    Preempted machines get SIGTERM and about 30 seconds; a compilation may take longer and cannot
    be interrupted, so it runs on another thread while the main thread stays awake.
    """

    def __init__(self, *, alone: bool = True) -> None:
        """
        Args:
            alone: False where other processes take every step with this one: `check` then leaves
                it to the caller, who looks at `asked`, to end all of them together.
        """
        self._alone = alone
        self._asked = threading.Event()
        self._before: dict[int, object] = {}

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise `Interrupted` if it was asked for."""
        if self.asked and self._alone:
            raise Interrupted

    def wait_for(self, work: Callable[[], Result]) -> Result:
        """`work()`, done on another thread.

        Raises:
            Interrupted: it was asked for before the work was done; the thread is left to itself,
                and dies with the process.
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
