"""Suggest an existing file for a missing one: backslashes, and other Unicode forms of letters."""

from __future__ import annotations

import os
import unicodedata


def spelled_otherwise(path: str | os.PathLike[str]) -> str | None:
    """An existing file whose path differs from a missing one in its spelling alone.

    Tried are slashes for Windows' backslashes, and the two Unicode forms of accented letters (NFC,
    which most systems write, and NFD, which macOS writes).
    """
    given = os.fsdecode(path)
    slashes = given.replace("\\", "/")
    for spelling in (given, slashes):
        for form in (None, "NFC", "NFD"):
            other = spelling if form is None else unicodedata.normalize(form, spelling)
            if other != given and _exists(other):
                return other
    return None


def missing_file_hint(path: str | os.PathLike[str]) -> str:
    """The end of a sentence about a missing file: empty, or the file that may be meant."""
    other = spelled_otherwise(path)
    if other is None:
        return ""
    if "\\" in os.fsdecode(path) and "\\" not in other:
        return f"; {other!r} does: write slashes for backslashes"
    return (
        f"; a file whose name looks the same does, with accents in another Unicode form: {other!a}"
    )


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a null byte, or half of a surrogate pair
        return False
