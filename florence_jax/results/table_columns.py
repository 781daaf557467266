"""Typed columns of a Parquet table of rows, by name and kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

ColumnKind = Literal["answers", "classes", "text", "float32s", "float16s"]
Columns = Mapping[str, ColumnKind]

# Of the rows that answer queries, see `florence_jax.results.parquet`.
ANSWERS: Columns = {"answers": "answers"}
# Beside those that every table of rows has.
TEXT = ("id", "image", "error")
NUMBERS = ("width", "height")
EXTRA = "extra"

BOXES = ("bboxes", "quad_boxes")
OUTLINES = ("polygons",)
LABELS = ("labels", "bboxes_labels", "polygons_labels")
SCORES = ("scores", "bboxes_scores", "polygons_scores", "label_scores")


def table_schema(pyarrow: Any, columns: Columns) -> Any:
    """The schema of a table: the same for every block of a run."""
    text, number = pyarrow.string(), pyarrow.int32()
    return pyarrow.schema(
        [
            *((name, text) for name in TEXT[:2]),
            *((name, number) for name in NUMBERS),
            ("error", text),
            *((name, _type(pyarrow, kind)) for name, kind in columns.items()),
            (EXTRA, text),
        ]
    )


def _type(pyarrow: Any, kind: ColumnKind) -> Any:
    match kind:
        case "answers":
            return pyarrow.list_(pyarrow.struct(_answer(pyarrow)))
        case "classes":
            text, number = pyarrow.string(), pyarrow.float64()
            fields = [("class", pyarrow.int32()), ("name", text), ("probability", number)]
            return pyarrow.list_(pyarrow.struct(fields))
        case "float32s":
            return pyarrow.list_(pyarrow.float32())
        case "float16s":
            return pyarrow.list_(pyarrow.float16())
    return pyarrow.string()


def _answer(pyarrow: Any) -> list[tuple[str, Any]]:
    text, number = pyarrow.string(), pyarrow.float64()
    texts, numbers = pyarrow.list_(text), pyarrow.list_(number)
    boxes = pyarrow.list_(numbers)
    result = [
        ("task", text),
        ("text", text),
        *((name, boxes) for name in BOXES),
        *((name, pyarrow.list_(boxes)) for name in OUTLINES),
        *((name, texts) for name in LABELS),
        *((name, numbers) for name in SCORES),
    ]
    return [
        ("prompt", text),
        ("text", text),
        ("classes", texts),
        ("region", numbers),
        ("region_text", text),
        ("labels", texts),
        ("error", text),
        ("drawing_error", text),
        ("result", pyarrow.struct(result)),
    ]
