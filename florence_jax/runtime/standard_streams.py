"""Standard input, output and error: replace closed ones, and detect and survive broken ones."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TextIO

# Takes what is printed where standard output is closed.
_discarding: TextIO | None = None


def open_standard_streams() -> None:
    """Give every closed standard descriptor something harmless, before any file is opened.

    A program that starts with descriptor 1 closed (`>&-`) opens its first file as descriptor 1, and
    what a library or a child prints then lands in that file. Standard output gets a descriptor that
    refuses to be written to, so that this process and its children know it as closed.
    """
    global _discarding
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            # A child would be without it again otherwise.
            os.set_inheritable(number, True)
        is_refused = name == "stdout" and sys.stdout is sys.__stdout__ and not _is_writable(number)
        if getattr(sys, name) is None or is_refused:
            mode = "r" if name == "stdin" else "w"
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            if name == "stdout":
                _discarding = stream


def standard_output() -> TextIO:
    """Standard output, for results that must not be lost.

    Raises:
        ValueError: it is closed.
    """
    if sys.stdout is _discarding:
        raise ValueError("standard output is closed: name a file to write to (--output)")
    return sys.stdout


def flush_standard_output() -> None:
    """Write what waits in standard output now, and not while the interpreter ends.

    Raises:
        OSError: it cannot be written; the error names standard output.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.filename is None:
            error.filename = "standard output"
        raise


def is_standard_output_gone() -> bool:
    """Whether the reader of standard output has ended, as `| head` does."""
    with contextlib.suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    return False


def discard_standard_output() -> None:
    """Let the interpreter end without trying again to write what nobody takes."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)


def _is_writable(descriptor: int) -> bool:
    import fcntl  # POSIX only

    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        return False
