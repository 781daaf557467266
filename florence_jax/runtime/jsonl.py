"""JSONL files that grow while a run may be killed at any byte."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows behind those that are there; what a kill cut short stays a line of its own.

    Raises:
        OSError: the file cannot be written; it is as it was.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # Half a surrogate pair, as of a file name that is no UTF-8, is JSON's own escape then.
    text = text.encode(errors="backslashreplace")
    append(path, text if _ends_with_a_line(path) else b"\n" + text)


def append(path: Path, content: bytes) -> None:
    """Add all of it behind what is there, or nothing.

    Raises:
        OSError: the file cannot be written; it is as it was.
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
    """The rows of a file, without those that a kill cut short; none where there is no file."""
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
