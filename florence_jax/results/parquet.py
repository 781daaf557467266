"""Rows as a Parquet table with typed columns and one schema.

    id, image: string    width, height: int32    error: string
    answers: list<struct<
        prompt: string, text: string, classes: list<string>, region: list<double>,
        region_text: string, labels: list<string>, error: string, drawing_error: string,
        result: struct<task: string, text: string, bboxes: list<list<double>>, ...>>>
    extra: string

That is a table of answers; other jobs have other columns for `answers`, see `table_columns`.
`result` has the keys of the JSON rows, and null for those that the task does not give. `classes` is
`text` where that was a list, and `region_text` a region given as location tokens. `extra` holds the
other columns of input rows, which may differ from row to row, as a JSON object.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florence_jax.results.table_columns import (
    ANSWERS,
    BOXES,
    EXTRA,
    LABELS,
    NUMBERS,
    OUTLINES,
    SCORES,
    TEXT,
    Columns,
    table_schema,
)
from florence_jax.runtime.jsonl import json_text

Row = dict[str, Any]

_ANSWER = ("prompt", "text", "region", "labels", "error", "drawing_error", "result")
_COLUMNS = (*BOXES, *OUTLINES, *LABELS, *SCORES)


def table_bytes(rows: Sequence[Row], columns: Columns = ANSWERS) -> bytes:
    """Write rows as the bytes of a Parquet file; equal rows give equal bytes.

    Args:
        rows: as JSON.
        columns: those with a type; others are in `extra`.

    Raises:
        ValueError: pyarrow is not installed.
    """
    pyarrow, parquet = load_pyarrow()
    buffer = io.BytesIO()
    packed = [_packed(row, columns) for row in rows]
    table = pyarrow.Table.from_pylist(packed, schema=table_schema(pyarrow, columns))
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def table_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a file that `table_bytes` wrote.

    Raises:
        ValueError: the file is not one.
    """
    pyarrow, parquet = load_pyarrow()
    try:
        file = parquet.ParquetFile(path)
        for batch in file.iter_batches():
            yield from map(_unpacked, batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error


def load_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and pyarrow.parquet.

    Raises:
        ValueError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            "reading and writing Parquet needs pyarrow: pip install pyarrow, or write JSON lines "
            "(--format jsonl)"
        ) from error
    return pyarrow, parquet


def _packed(row: Row, columns: Columns) -> dict[str, Any]:
    own = {name: row.get(name) for name in (*TEXT, *NUMBERS, *columns)}
    rest = {name: value for name, value in row.items() if name not in own}
    for name in TEXT:
        text = own[name]
        if text is not None and _utf8(text) != text:
            # The column shows it readable, and here it is exact.
            own[name], rest[name] = _utf8(text), text
    for name, kind in columns.items():
        value = own[name]
        if kind == "answers" and value is not None:
            own[name] = list(map(_packed_answer, value))
        elif kind == "classes":
            own[name] = _utf8(value)
    return own | {EXTRA: json_text(rest) if rest else None}


def _packed_answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    _check_known(answer, _ANSWER, "an answer")
    packed = _utf8({name: value for name, value in answer.items() if name != "result"})
    if not isinstance(packed.get("text", ""), str):
        packed["classes"] = packed.pop("text")
    if isinstance(packed.get("region"), str):
        packed["region_text"] = packed.pop("region")
    elif "region" in packed:
        packed["region"] = [_number(one) for one in packed["region"]]
    if "result" in answer:
        ((task, value),) = answer["result"].items()
        content = {"text": value} if isinstance(value, str) else value
        _check_known(content, ("text", *_COLUMNS), task)
        packed["result"] = _utf8({"task": task, **content})
    return packed


def _check_known(record: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = sorted(record.keys() - set(known))
    if unknown:
        raise ValueError(f"Parquet has no column for {unknown} of {where}: use jsonl")


def _unpacked(record: dict[str, Any]) -> Row:
    extra = record.pop(EXTRA)
    row = _given(record)
    if "answers" in row:
        row["answers"] = list(map(_unpacked_answer, row["answers"]))
    if "classes" in row:
        row["classes"] = list(map(_given, row["classes"]))
    return row | (json.loads(extra) if extra is not None else {})


def _unpacked_answer(record: Mapping[str, Any]) -> dict[str, Any]:
    answer = _given(record)
    if "classes" in answer:
        answer["text"] = answer.pop("classes")
    if "region_text" in answer:
        answer["region"] = answer.pop("region_text")
    if "result" in answer:
        content = _given(answer["result"])
        task = content.pop("task")
        answer["result"] = {task: content.get("text", content)}
    return answer


def _given(record: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the None values, which a table has for every column that is not set."""
    return {name: value for name, value in record.items() if value is not None}


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _utf8(value: Any) -> Any:
    """Write out lone surrogates, which have no UTF-8, as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {name: _utf8(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_utf8(one) for one in value]
    return value
