"""What Orbax prints of a failed write beside the exception that it raises: left out.

A full disk is reported in one sentence. Orbax also logs a traceback for each of its threads, and
each array that is still being written leaves one more, in a log that may lie on the same disk.
"""

import logging
import sys
from typing import Any

_LOGGED = ("_SignalingThread.run() raised an exception", "in background save thread")
_FORGOTTEN = "exception was never retrieved"
# Raised for an array that is done after the thread that waited for it has ended.
_LEFT_BEHIND = "Event loop is closed"


def quiet_failures() -> None:
    """Leave these messages out for the rest of the process; further calls do nothing."""
    if _is_kept in logging.getLogger("absl").filters:
        return
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_kept)
    sys.unraisablehook = _unraisable(sys.unraisablehook)


def _is_kept(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if _FORGOTTEN in message:
        return "orbax" not in message
    return not any(start in message for start in _LOGGED)


def _unraisable(previous: Any) -> Any:
    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == _LEFT_BEHIND):
            previous(unraisable)

    return hook
