"""Rows as the bytes of a file, and back: JSON lines, or Parquet with the same content.

A Parquet file has one schema whatever the rows hold: `id`, `image`, `width`, `height` and `error`
as columns, `answers` and whatever else a row has (`extra`) as JSON text.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from florence_jax.batch.job import Item, Row
from florence_jax.inference.export import result_to_json
from florence_jax.inference.json_text import json_text
from florence_jax.runtime.error_text import is_of_one_input, row_error_text

RowFormat = Literal["jsonl", "parquet"]
FORMATS: tuple[RowFormat, ...] = ("jsonl", "parquet")

_TEXT = ("id", "image", "error")
_NUMBERS = ("width", "height")
_ANSWERS, _EXTRA = "answers", "extra"


def encode_rows(rows: Sequence[Row], kind: RowFormat) -> bytes:
    """The file that holds `rows`; equal rows give equal bytes.

    Raises:
        TypeError, ValueError: a row holds what JSON does not, or Parquet without pyarrow.
    """
    plain = [result_to_json(row) for row in rows]
    if kind == "jsonl":
        return b"".join(f"{json_text(row)}\n".encode() for row in plain)
    return _parquet(plain)


def encode_block(rows: list[Row], kind: RowFormat) -> bytes:
    """`encode_rows`; a row that no file can hold is written as its id and the error.

    It replaces that row in `rows` too, for whoever counts errors.
    """
    try:
        return encode_rows(rows, kind)
    except Exception as error:
        if not is_of_one_input(error):
            raise
    kept = list(rows)
    for number, row in enumerate(kept):
        try:
            encode_rows([row], kind)
        except Exception as error:
            kept[number] = {
                "id": row["id"],
                "error": f"its row cannot be written: {row_error_text(error)}",
            }
    rows[:] = kept
    return encode_rows(kept, kind)


def writable(item: Item) -> Item:
    """The item, or one with an error where its row would hold what no file can: found before it is
    asked about, and without a block being lost for it."""
    try:
        result_to_json(item.extra)
        result_to_json([query.record() for query in item.queries])
    except Exception as error:
        text = row_error_text(error)
        return Item(id=item.id, error=f"its row cannot be written: {text}; leave that out")
    return item


def check_format(kind: RowFormat) -> None:
    """Find out now, and not when the first block is to be written.

    Raises:
        ValueError: Parquet without pyarrow.
    """
    if kind == "parquet":
        _pyarrow()


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file that `encode_rows` made, whose format its name tells.

    Raises:
        ValueError: the file is not one.
    """
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
        return
    pyarrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
        for batch in file.iter_batches():
            yield from map(_unpacked, batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error


def _parquet(rows: Sequence[Row]) -> bytes:
    pyarrow, parquet = _pyarrow()
    columns: dict[str, Any] = {}
    for name in (*_TEXT, *_NUMBERS):
        kind = pyarrow.int32() if name in _NUMBERS else pyarrow.string()
        columns[name] = pyarrow.array([_escaped(row.get(name)) for row in rows], kind)
    packed = [json_text(row[_ANSWERS]) if _ANSWERS in row else None for row in rows]
    columns[_ANSWERS] = pyarrow.array(packed, pyarrow.string())
    rest = [{key: row[key] for key in row if key not in columns} for row in rows]
    columns[_EXTRA] = pyarrow.array(
        [json_text(one) if one else None for one in rest], pyarrow.string()
    )
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def _escaped(value: Any) -> Any:
    """Text that Parquet can hold: a file name that is no UTF-8 has its bytes as \\udcXX."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def _unpacked(record: dict[str, Any]) -> Row:
    extra, answers = record.pop(_EXTRA), record.pop(_ANSWERS)
    row = {name: value for name, value in record.items() if value is not None}
    if answers is not None:
        row[_ANSWERS] = json.loads(answers)
    return row | (json.loads(extra) if extra is not None else {})


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            "reading and writing Parquet needs pyarrow: pip install pyarrow, or write JSON lines "
            "(--format jsonl)"
        ) from error
    return pyarrow, parquet
