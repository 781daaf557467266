"""Writers of rows: rows that a format cannot hold, and the formats of lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from florence_jax.results.csv_rows import CsvRows
from florence_jax.results.rows import Row, UnsuitableRowError
from florence_jax.runtime.jsonl import json_text

# Takes the rows of a run, one by one; one that its format cannot hold is an UnsuitableRowError.
RowWriter = Callable[[Row], Any]


def write_rows(rows: Iterable[Row], write: RowWriter) -> int:
    """Write rows, and report those that the format cannot hold on stderr; returns how many."""
    unsuitable = 0
    for row in rows:
        try:
            write(row)
        except UnsuitableRowError as error:
            unsuitable += 1
            print(f"{row['id']} is left out: {error}", file=sys.stderr)
    return unsuitable


def line_writer(kind: str, add_line: Callable[[str], Any]) -> RowWriter:
    """A writer of "csv" or "jsonl" that gives its lines to `add_line`."""
    return CsvRows(add_line).write if kind == "csv" else lambda row: add_line(json_text(row))


def skipped_text(skipped: int, count: int, kind: str) -> str:
    """The message about sidecars that exist already."""
    return f"{skipped} of {count} {kind} files exist and are skipped (--overwrite writes them anew)"
