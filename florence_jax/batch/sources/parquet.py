"""Parquet: rows as JSON lines have them, with pictures as bytes or file names."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence_jax.batch.job import Item
from florence_jax.batch.sources.rows import RowReader, row_id

# Rows that are in memory at a time, their pictures included.
_ROWS = 64


class Parquet:
    """The rows of a `.parquet` file."""

    def __init__(self, path: Path, reader: RowReader) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise ValueError(
                f"{path}: reading Parquet needs pyarrow: pip install pyarrow"
            ) from error
        self._path, self._reader = path, reader
        try:
            metadata = parquet.read_metadata(path)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is no Parquet file: {error}") from error
        self._names = metadata.schema.to_arrow_schema().names
        if not {"image", "image_base64"} & set(self._names):
            raise ValueError(f"{path} has no column `image`; it has {', '.join(self._names)}")
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        self._counts = [group.num_rows for group in groups]

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"parquet": self._path.name, "sha256": self._sha256}

    @functools.cached_property
    def _sha256(self) -> str:
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def __len__(self) -> int:
        return sum(self._counts)

    def ids(self) -> Iterator[str]:
        columns = ["id"] if "id" in self._names else []
        if not columns:
            yield from (self._place(number) for number in range(len(self)))
            return
        for number, row in self._rows(0, len(self), columns):
            yield row_id(self._place(number), row)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        for number, row in self._rows(start, stop, None):
            # A table has a value for every column of every row: none means that it is not given.
            given = {name: value for name, value in row.items() if value is not None}
            yield self._reader.item(self._place(number), given)

    def _rows(
        self, start: int, stop: int, columns: list[str] | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, row) from `start` up to `stop`, a few rows in memory at a time."""
        from pyarrow import parquet

        first, groups = 0, []
        begin = 0
        for group, count in enumerate(self._counts):
            if first < stop and first + count > start:
                begin = begin if groups else first
                groups.append(group)
            first += count
        if not groups:
            return
        with parquet.ParquetFile(self._path) as file:
            number = begin
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=columns):
                low, high = max(start - number, 0), min(stop - number, batch.num_rows)
                if low < high:
                    for row in batch.slice(low, high - low).to_pylist():
                        yield number + low, row
                        low += 1
                number += batch.num_rows
                if number >= stop:
                    return

    def _place(self, number: int) -> str:
        return f"{self._path}:{number}"
