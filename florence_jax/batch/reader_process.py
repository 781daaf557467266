"""The program of one worker process.

It says that it is ready; then pickled (function, arguments) come in on standard input and pickled
(succeeded, value) go out on standard output, one after the other, until the input ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import Any

from florence_jax.processing.errors import ImageError
from florence_jax.runtime.error_text import row_error_text

READY = b"ready"


def main() -> None:
    """Serve until the other end is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A scheduler signals every process; the one that feeds us knows what to finish first.
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What a decoder prints must not get between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tasks = sys.stdin.buffer
    try:
        answers.write(READY)
        answers.flush()
    except BrokenPipeError:  # the other end was killed meanwhile
        return
    while True:
        try:
            function, arguments = pickle.load(tasks)
        except EOFError:
            return
        try:
            reply = _pickled((True, function(*arguments)))
        except Exception as error:
            reply = _refusal(error)
        try:
            answers.write(reply)
            answers.flush()
        except BrokenPipeError:
            return


def _pickled(reply: tuple[bool, Any]) -> bytes:
    return pickle.dumps(reply, protocol=pickle.HIGHEST_PROTOCOL)


def _refusal(error: Exception) -> bytes:
    """The error, or its text where other processes could not read it."""
    try:
        reply = _pickled((False, error))
        pickle.loads(reply)
    except Exception:
        return _pickled((False, ImageError(row_error_text(error))))
    return reply
