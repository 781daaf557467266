"""Run a program's main: its errors become one sentence on stderr and an exit status."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from florence_jax.runtime.error_text import error_text
from florence_jax.runtime.standard_streams import (
    discard_standard_output,
    flush_standard_output,
    is_standard_output_gone,
    open_standard_streams,
)

TRACEBACK = "FLORENCE_JAX_TRACEBACK"
INTERRUPTED = 130
# The exit status that a shell reports for a program that SIGPIPE ended.
NO_READER = 141

# Exceptions that only a mistake in our code raises, as the input was checked before.
_BUGS = (AssertionError, AttributeError, LookupError, NameError, TypeError)


def run_program(
    name: str,
    action: Callable[[], int],
    *,
    failed: int = 2,
    interrupted: str = "interrupted; what was finished is written",
) -> int:
    """Call `action` and turn whatever ends it into an exit status.

    Args:
        name: the beginning of the message, such as the program's name or "error".
        action: parses the arguments and does the work; returns the exit status.
        failed: the exit status of an error.
        interrupted: the message after Ctrl-C.

    Returns:
        `action`'s status, `failed`, 130 after Ctrl-C, or 141 where the reader of standard output
        has ended (`| head`). With FLORENCE_JAX_TRACEBACK=1 errors are raised instead.
    """
    open_standard_streams()
    try:
        try:
            status = action()
        except SystemExit:  # argparse has printed its help or its message
            flush_standard_output()
            raise
        flush_standard_output()
        return status
    except KeyboardInterrupt:
        _say(f"\n{interrupted}")
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and is_standard_output_gone():
            discard_standard_output()
            return NO_READER
        if getattr(error, "filename", None) == "standard output":
            discard_standard_output()
        if os.environ.get(TRACEBACK):
            raise
        print_error(name, f"{error_text(error)}{_report(error)}")
        return failed


def print_error(name: str, text: str) -> None:
    """Print "name: text" on standard error; on a terminal with colours, the name in bold red."""
    _say(f"\033[1;31m{name}:\033[0m {text}" if has_colours() else f"{name}: {text}")


def has_colours() -> bool:
    """Whether standard error is a terminal that shows colours, and the user wants them."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    with contextlib.suppress(OSError, ValueError):  # closed
        return sys.stderr.isatty()
    return False


def _report(error: Exception) -> str:
    if not isinstance(error, _BUGS):
        return ""
    return (
        f" ({type(error).__name__}, a mistake in this program: please report it with what the "
        f"same command says under {TRACEBACK}=1)"
    )


def _say(line: str) -> None:
    # Standard error may be closed or without a reader too; the exit status still says it.
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
