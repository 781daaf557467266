"""Rows of `image, prefix, suffix`: the columns of training and evaluation data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class DatasetError(ValueError):
    """A data set that does not have its stated form; names the file, the entry and the remedy."""


COLUMNS = ("image", "prefix", "suffix")
# Hugging Face's imagefolder names the image so, in metadata.jsonl.
FILE_NAME = "file_name"


def missing_columns(names: Iterable[str]) -> list[str]:
    """The columns of a row that are not among `names`; `file_name` stands for `image`."""
    present = set(names)
    if FILE_NAME in present:
        present.add("image")
    return [column for column in COLUMNS if column not in present]


def columns_error(where: str, names: Iterable[str]) -> DatasetError:
    """Make the error for rows with other columns."""
    found = list(names)
    listed = ", ".join(found[:12]) + (", ..." if len(found) > 12 else "") if found else "none"
    return DatasetError(
        f"{where} lacks the columns {', '.join(missing_columns(found))}; it has {listed}: rename "
        f"or add columns, expected {COLUMNS[0]} (or {FILE_NAME}), {COLUMNS[1]}, {COLUMNS[2]}"
    )


def row_columns(row: Any, where: str) -> tuple[Any, Any, Any]:
    """(image, prefix, suffix) of a row; their types are not checked.

    Args:
        row: a JSON value, or a row of a table.
        where: the file and the row, for messages.

    Raises:
        DatasetError: it is no object, lacks a column, or `image` and `file_name` name two images.
    """
    if not isinstance(row, Mapping):
        raise DatasetError(
            f"{where} is not an object of image, prefix and suffix, but a {type(row).__name__}"
        )
    if missing_columns(row):
        raise columns_error(where, map(str, row))
    image, name = row.get("image"), row.get(FILE_NAME)
    if image is None:
        image = name
    if isinstance(image, str) and isinstance(name, str) and _last(image) != _last(name):
        raise DatasetError(
            f"{where} names two images, image {image!r:.80} and file_name {name!r:.80}:"
            " remove one of them"
        )
    return image, row["prefix"], row["suffix"]


def _last(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]
