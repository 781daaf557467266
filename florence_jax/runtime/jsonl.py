"""Write and read JSON Lines: atomic files, files that grow, and lines of command output."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from florence_jax.runtime.atomic_file import (
    atomic_open,
    check_writable,
    named_errors,
    temporary_name,
)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON text that UTF-8 can encode, with letters as they are where that is possible.

    Half of a surrogate pair, as in file names that are no UTF-8, has no encoding: a value that
    holds one is written in ASCII, and reads back as it was.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def sealed_json(fields: Mapping[str, Any]) -> bytes:
    """JSON of `fields` that ends with the sha256 of the text without it."""
    digest = hashlib.sha256(json.dumps(fields, indent=1).encode()).hexdigest()
    return json.dumps({**fields, "sha256": digest}, indent=1).encode() + b"\n"


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Any]) -> int:
    """Write one JSON line per row to `path`, atomically; returns how many.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    count = 0
    with atomic_open(path) as file:
        for row in rows:
            file.write(json_text(row) + "\n")
            count += 1
    return count


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a file; a line that a kill cut short stays a line of its own.

    Raises:
        OSError: the file cannot be written; it is unchanged.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # Half a surrogate pair, as of a file name that is no UTF-8, is JSON's own escape then.
    text = text.encode(errors="backslashreplace")
    append(path, text if _ends_with_a_line(path) else b"\n" + text)


def append(path: Path, content: bytes) -> None:
    """Append all of `content`, or nothing.

    Raises:
        OSError: the file cannot be written; it is unchanged.
    """
    # Unbuffered: a buffer that a full disk refused would be tried again when the file is closed.
    with path.open("ab", buffering=0) as stream:
        end = stream.tell()
        try:
            while content:
                content = content[stream.write(content) :]
        except OSError:
            stream.truncate(end)
            raise


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file without lines that a kill cut short; none if there is no file."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _ends_with_a_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"


class LineWriter:
    """A text file written line by line, which replaces an old one with its first line.

    Nothing is changed before the first line: a start that fails leaves an old file as it was, and
    makes no new one. Every line is flushed when `write` returns, so that an interrupted run keeps
    what it has. Use it as a context manager.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool) -> None:
        """
        Args:
            path: a pipe or a device is written to as it is.
            overwrite: replace an existing file.

        Raises:
            FileExistsError: there is one, and it is not to be replaced.
            OSError: the file's directory cannot be written to.
        """
        # Renaming onto a symbolic link would replace the link.
        self._path, self._name = Path(os.path.realpath(path)), os.fspath(path)
        self._overwrite = overwrite
        self._file: TextIO | None = None
        self._is_stream = self._path.exists() and not stat.S_ISREG(self._path.stat().st_mode)
        if self._is_stream and self._path.is_dir():
            raise IsADirectoryError(f"{self._name} is a directory: name a file")
        if not self._is_stream:
            if self._path.exists() and not overwrite:
                raise self._exists()
            check_writable(self._path.parent)

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with named_errors(self._name):
                file.close()

    def write(self, line: str) -> None:
        """Add one line, without its newline.

        Raises:
            FileExistsError: another process has made the file meanwhile.
            OSError: it cannot be written; the error names the file.
        """
        with named_errors(self._name):
            first = f"{line}\n"
            if self._file is not None:
                self._file.write(first)
                self._file.flush()
            elif self._is_stream:
                self._file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115
                self._file.write(first)
                self._file.flush()
            else:
                self._file = self._in_place(first)

    def _in_place(self, first: str) -> TextIO:
        # Without --overwrite the file is made under its own name: of two commands, one fails.
        made = temporary_name(self._path) if self._overwrite else self._path
        try:
            file = open(made, "w" if self._overwrite else "x", encoding="utf-8")  # noqa: SIM115
        except FileExistsError:
            raise self._exists() from None
        try:
            file.write(first)
            file.flush()
            if self._overwrite:
                with contextlib.suppress(FileNotFoundError):
                    shutil.copymode(self._path, made)
                os.replace(made, self._path)
        except BaseException:
            made.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it fails once more to write what waits
                file.close()
            raise
        return file

    def _exists(self) -> FileExistsError:
        return FileExistsError(
            f"{self._name} exists already: pass --overwrite to replace it, or another --output"
        )
