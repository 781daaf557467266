"""JSON lines: a row a line, read where it is asked for."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence_jax.batch.job import Item
from florence_jax.batch.sources.rows import RowReader, row_id


class JsonLines:
    """The rows of a `.jsonl` file; of it, only where lines begin is held, 8 bytes a line."""

    def __init__(self, path: Path, reader: RowReader) -> None:
        self._path, self._reader = path, reader
        self._offsets, self._digest = array("q"), hashlib.sha256()
        position = 0
        with path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    self._offsets.append(position)
                self._digest.update(line)
                position += len(line)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"jsonl": self._path.name, "sha256": self._digest.hexdigest()}

    def __len__(self) -> int:
        return len(self._offsets)

    def ids(self) -> Iterator[str]:
        for number, line in enumerate(self._lines(0, len(self))):
            yield row_id(self._place(number), _parsed(line))

    def read(self, start: int, stop: int) -> Iterator[Item]:
        for number, line in enumerate(self._lines(start, stop), start):
            place, row = self._place(number), _parsed(line)
            if isinstance(row, ValueError):
                yield Item(id=place, error=f"{place} is no JSON: {row}")
            else:
                yield self._reader.item(place, row)

    def _lines(self, start: int, stop: int) -> Iterator[bytes]:
        """The rows' lines, blank ones left out."""
        if start >= stop:
            return
        with self._path.open("rb") as file:
            file.seek(self._offsets[start])
            remaining = stop - start
            for line in file:
                if line.strip():
                    yield line
                    remaining -= 1
                    if not remaining:
                        return

    def _place(self, number: int) -> str:
        return f"{self._path}:{number}"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return error
    except RecursionError as error:
        return ValueError(str(error))
