"""Parquet as a source: rows as in JSON Lines, with images as bytes or file names."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence_jax.batch.job import Item
from florence_jax.batch.sources.rows import IMAGE_COLUMNS, ChangeGuard, RowReader, row_id
from florence_jax.inference.image_files import Say
from florence_jax.runtime.error_text import error_text

# Rows that are in memory at a time, their images included.
_ROWS = 64


class _DamagedError(Exception):
    """The rest of a row group cannot be read."""


class Parquet:
    """The rows of a `.parquet` file; each row of a damaged part has an error."""

    def __init__(self, path: Path, reader: RowReader, say: Say | None = None) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise ValueError(
                f"{path}: reading Parquet needs pyarrow: pip install pyarrow"
            ) from error
        self._path, self._reader = path, reader
        self._guard = ChangeGuard(path)
        try:
            metadata = parquet.read_metadata(path)
            self._names = metadata.schema.to_arrow_schema().names
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is no Parquet file: {error_text(error)}") from error
        if not set(IMAGE_COLUMNS) & set(self._names):
            raise ValueError(
                f"{path} has no column `image` (names or bytes), `image_base64` or `file_name`; it "
                f"has {', '.join(self._names)}"
            )
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        self._counts = [group.num_rows for group in groups]
        if say is not None and not self._counts:
            say(f"{path} has no row")

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
        if "id" not in self._names:
            yield from map(self._place, range(len(self)))
            return
        with self._open() as file:
            first = 0
            for group, count in enumerate(self._counts):
                yield from self._group_ids(file, group, first)
                first += count

    def read(self, start: int, stop: int) -> Iterator[Item]:
        self._guard.check()
        with self._open() as file:
            first = 0
            for group, count in enumerate(self._counts):
                if first < stop and first + count > start:
                    low, high = max(start - first, 0), min(stop - first, count)
                    yield from self._group_items(file, group, first, low, high)
                first += count
        self._guard.check()

    def _open(self) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(self._path, page_checksum_verification=True)

    def _group_items(
        self, file: Any, group: int, first: int, low: int, high: int
    ) -> Iterator[Item]:
        """The items `low` to `high` of a row group whose first row is `first`."""
        done, names = 0, []

        def lost(number: int, error: Exception, what: str) -> Item:
            names[:] = names or self._group_ids(file, group, first)
            place = self._place(first + number)
            why = error if isinstance(error, _DamagedError) else error_text(error)
            return Item(id=names[number], error=f"{place} cannot be read: {what} ({why})")

        try:
            for row in self._rows(file, group, None):
                if done >= low and isinstance(row, Exception):
                    yield lost(done, row, "a value of its is not what its column says")
                elif done >= low:
                    yield self._reader.item(self._place(first + done), _given(row))
                done += 1
                if done >= high:
                    return
        except _DamagedError as error:
            for number in range(max(low, done), high):
                yield lost(number, error, f"row group {group} of {self._path} is damaged")

    def _group_ids(self, file: Any, group: int, first: int) -> Iterator[str]:
        """The ids of a row group's rows; their places where the column cannot be read."""
        done, count = 0, self._counts[group]
        if "id" in self._names:
            try:
                for row in self._rows(file, group, ["id"]):
                    yield row_id(self._place(first + done), row)
                    done += 1
            except _DamagedError:
                pass  # `read` has an error for each of these rows
        yield from (self._place(first + number) for number in range(done, count))

    def _rows(self, file: Any, group: int, columns: list[str] | None) -> Iterator[Any]:
        """The rows of a group, a few in memory at a time.

        One with a value that Python cannot hold is the exception that says so.

        Raises:
            _DamagedError: behind the last one that can be read.
        """
        import pyarrow

        remaining = self._counts[group]
        try:
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=columns):
                for row in _plain_rows(batch)[:remaining]:
                    yield row
                    remaining -= 1
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise _DamagedError(" ".join(error_text(error).split())) from error
        if remaining:
            raise _DamagedError(f"it ends {remaining} rows before its end")

    def _place(self, number: int) -> str:
        return f"{self._path}:{number}"


def _plain_rows(batch: Any) -> list[Any]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # text that is no UTF-8, or a year 300,000
        return [_plain_row(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _plain_row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return error


def _given(row: dict[str, Any]) -> dict[str, Any]:
    """The row without empty columns: a table has every column in every row."""
    given = {name: value for name, value in row.items() if value is not None}
    return given if set(IMAGE_COLUMNS) & set(given) else given | {"image": None}
