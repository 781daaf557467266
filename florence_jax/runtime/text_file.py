"""Read text, JSON and JSON Lines files that users hand in, with one decoder and one line rule.

A line ends at a newline (with or without a carriage return) and nowhere else: `str.splitlines`
would also split at U+2028, U+0085 and form feeds, which are ordinary characters inside JSON
strings and file names.
"""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections.abc import Iterator
from typing import Any

# The most that is read of a file of settings or a manifest: real ones have a few kB, or a few MB
# where they list a run's files.
MAX_SETTINGS_BYTES = 64 << 20


class TextFileError(ValueError):
    """A text or JSON file cannot be read; the message names the file and the remedy."""


def read_bytes(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        max_bytes: refuse a larger file before it is read; None means no limit.

    Raises:
        FileNotFoundError: there is no such file.
        TextFileError: it is a folder, a pipe, a device or larger than `max_bytes`.
        OSError: it cannot be read.
    """
    check_regular(path)
    with open(path, "rb") as file:
        if max_bytes is None:
            return file.read()
        # By its size first: a sparse file of any size costs nothing to make.
        small = os.fstat(file.fileno()).st_size <= max_bytes
        content = file.read(max_bytes + 1) if small else b""
    if not small or len(content) > max_bytes:
        raise TextFileError(f"{path} is larger than {max_bytes} bytes, the most that is read of it")
    return content


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file before it is opened: a pipe or a device may never end.

    Raises:
        FileNotFoundError: there is no such file.
        TextFileError: it is a folder, a pipe, a socket or a device.
    """
    kind = special_kind(os.stat(path).st_mode)
    if kind is not None:
        raise TextFileError(f"{path} is {kind}, expected a regular file")


def special_kind(mode: int) -> str | None:
    """The kind of a file of this `st_mode` in words; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe (FIFO)"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "a device")


def read_text(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> str:
    """The text of a UTF-8 file, without a byte-order mark; newlines are kept as they are.

    Raises:
        TextFileError: as `read_bytes`, or the file is not UTF-8.
        OSError: as `read_bytes`.
    """
    return decode(read_bytes(path, max_bytes=max_bytes), str(path))


def decode(content: bytes, where: str) -> str:
    """UTF-8 bytes as text, without a byte-order mark.

    Args:
        content: the bytes.
        where: the file, or the file and line, for the message.

    Raises:
        TextFileError: they are not UTF-8.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise TextFileError(f"{where} is UTF-16: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TextFileError(
            f"{where} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start} "
            f"(line {line}). Save it as UTF-8, for example with `iconv -f LATIN1 -t UTF-8`"
        ) from None


def parse_json(content: bytes | str, where: str) -> Any:
    """One JSON value.

    Args:
        content: its text or UTF-8 bytes.
        where: the file, or the file and line, for the message.

    Raises:
        TextFileError: it is not JSON, or nested too deeply to be read.
    """
    text = decode(content, where) if isinstance(content, bytes) else content
    try:
        return json.loads(text)
    except RecursionError:
        raise TextFileError(f"{where} is nested too deeply to be read as JSON") from None
    except ValueError as error:
        raise TextFileError(f"{where} is not JSON ({error})") from None


def read_json(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Any:
    """The value of a JSON file.

    Raises:
        TextFileError: as `read_text` and `parse_json`.
        OSError: as `read_bytes`.
    """
    return parse_json(read_bytes(path, max_bytes=max_bytes), str(path))


def split_lines(text: str) -> list[str]:
    """The lines of a text: they end at a newline or a carriage return and newline only."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def numbered_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of each line of a UTF-8 file that is not blank.

    Raises:
        TextFileError: as `read_text`.
        OSError: as `read_bytes`.
    """
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if line.strip():
            yield number, line


def json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line of a JSON Lines file that is not blank.

    Raises:
        TextFileError: as `read_text`, or a line is no JSON object; the message names the line.
        OSError: as `read_bytes`.
    """
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise TextFileError(f"{where} is a JSON {type(row).__name__}, expected an object")
        yield number, row


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
