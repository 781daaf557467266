"""Rows as lines: CSV (RFC 4180) and JSON; rows that a format cannot hold are reported."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from florence_jax.processing.locations import without_locations
from florence_jax.results.instances import Instance, instances
from florence_jax.results.rows import Row, UnsuitableRowError, image_name, size_of
from florence_jax.runtime.jsonl import json_text

COLUMNS = ("image", "task", "label", "score", "x0", "y0", "x1", "y1", "text", "polygons", "input",
           "error")  # fmt: skip

# Spreadsheets run cells that begin so as formulas.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

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


class CsvRows:
    """One line for each box, quad or polygon, and for each answer in text; `add_line` takes them.

    An image without boxes or with an error has a line too. Lines end with CRLF: `add_line` adds
    the LF of the last one.
    """

    def __init__(self, add_line: Callable[[str], Any]) -> None:
        self._add_line, self._is_new = add_line, True

    def write(self, row: Row) -> None:
        # Not before there is a row: a run that fails to start writes nothing.
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\r\n")
        if self._is_new:
            writer.writeheader()
            self._is_new = False
        for line in csv_lines(row):
            writer.writerow({name: _cell(value) for name, value in line.items()})
        self._add_line(text.getvalue().removesuffix("\n"))


def csv_lines(row: Row) -> Iterator[dict[Any, Any]]:
    """The row's lines, column by column; empty columns are left out."""
    image = {"image": image_name(row)}
    if "answers" not in row:
        yield image | {"error": row["error"]}
        return
    for answer in row["answers"]:
        line = image | {"task": answer["prompt"], "input": _input(answer)}
        if "error" in answer:
            yield line | {"error": answer["error"]}
            continue
        for value in answer["result"].values():
            found = instances(value, size_of(row))
            if isinstance(value, str):
                box = _box(found[0]) if found else {}
                yield line | box | {"text": without_locations(value)}
                continue
            # An image in which nothing was found is not one that was forgotten.
            yield from (line | _shape(one) for one in found) if found else (line,)


def _shape(instance: Instance) -> dict[str, Any]:
    outline = [part.ravel().tolist() for part in instance.parts]
    return (
        _box(instance)
        | {"label": instance.label, "score": instance.score}
        | ({} if instance.kind == "box" else {"polygons": json.dumps(outline)})
    )


def _box(instance: Instance) -> dict[str, Any]:
    return dict(zip(("x0", "y0", "x1", "y1"), instance.bounds(), strict=True))


def _input(answer: Mapping[str, Any]) -> str:
    """The text or region that was asked with the prompt."""
    given = answer.get("text", answer.get("region", ""))
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # Half of a surrogate pair, as in a file name that is no UTF-8, has no encoding.
    text = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"'{text}" if text.startswith(_FORMULA) else text
