"""JSON Lines as a source: a row per line, read when its block is done."""

from __future__ import annotations

import bisect
import codecs
import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence_jax.batch.job import Item
from florence_jax.batch.sources.files import ChangeGuard
from florence_jax.batch.sources.rows import RowReader, row_id
from florence_jax.inference.image_files import Say
from florence_jax.runtime.text_file import TextFileError, decode, parse_json


class JsonLines:
    """The rows of a `.jsonl` file; only the offsets of its lines are in memory, 8 bytes each."""

    def __init__(self, path: Path, reader: RowReader, say: Say | None = None) -> None:
        self._path, self._reader = path, reader
        self._guard = ChangeGuard(path)
        self._offsets, self._digest = array("q"), hashlib.sha256()
        # For each blank line, the number of rows before it: a row's line number counts blank lines.
        self._blank = array("q")
        position = 0
        with path.open("rb") as lines:
            for line in lines:
                if position == 0:
                    _refuse_utf16(line, path)
                if line.removeprefix(codecs.BOM_UTF8).strip():
                    self._offsets.append(position)
                else:
                    self._blank.append(len(self._offsets))
                self._digest.update(line)
                position += len(line)
        self._guard.check()
        if say is not None and not self._offsets:
            say(f"{path} has no row")

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"jsonl": self._path.name, "sha256": self._digest.hexdigest()}

    def __len__(self) -> int:
        return len(self._offsets)

    def ids(self) -> Iterator[str]:
        for number, line in self._lines(0, len(self)):
            yield row_id(self._place(number), self._parsed(number, line))

    def read(self, start: int, stop: int) -> Iterator[Item]:
        for number, line in self._lines(start, stop):
            place, row = self._place(number), self._parsed(number, line)
            if isinstance(row, TextFileError):
                yield Item(id=place, error=str(row))
            else:
                yield self._reader.item(place, row)

    def _lines(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """(number, line) of the rows from `start` up to `stop`, blank lines left out."""
        if start >= stop:
            return
        self._guard.check()
        with self._path.open("rb") as file:
            for number in range(start, stop):
                file.seek(self._offsets[number])
                yield number, file.readline()
        self._guard.check()

    def _parsed(self, number: int, line: bytes) -> Any:
        """The row, or the error of a line that is none."""
        in_file = number + 1 + bisect.bisect_right(self._blank, number)
        try:
            return parse_json(line, f"{self._place(number)} (line {in_file})")
        except TextFileError as error:
            return error

    def _place(self, number: int) -> str:
        return f"{self._path}:{number}"


def _refuse_utf16(line: bytes, path: Path) -> None:
    if line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        decode(line, str(path))
