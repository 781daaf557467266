"""Exceptions as the sentences that users see."""

import errno
import os

import pytest

from florence_jax.batch.job import JobError
from florence_jax.runtime.error_text import MAX_CHARACTERS, error_text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a is 3, expected 4"), "a is 3, expected 4"),
        (MemoryError(), "not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply to be read"),
        (KeyError("bbox"), "'bbox' is missing"),
        (JobError("3 rows for 4 items"), "3 rows for 4 items"),
        (OverflowError("too large"), "OverflowError: too large"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.jsonl"),
            "a.jsonl: No space left on device: make room, or name another place",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "a.txt/run.json"),
            "a.txt/run.json: Not a directory: a file stands where the path needs a directory; name "
            "another place",
        ),
        (
            ModuleNotFoundError("No module named 'x'", name="x"),
            "the package x is not installed: No module named 'x'",
        ),
        (
            ModuleNotFoundError("training needs optax: install it"),
            "training needs optax: install it",
        ),
        (FileNotFoundError("no such list"), "no such list"),
        (ValueError("caf\udce9.png"), "caf\\udce9.png"),
    ],
)
def test_a_sentence(error, text):
    assert error_text(error) == text


def test_it_is_bounded():
    assert len(error_text(ValueError("x" * 10_000))) == MAX_CHARACTERS
