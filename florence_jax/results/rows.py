"""Fields of a row, which holds every answer about one image (see `florence_jax.results`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from florence_jax.results.instances import Instance, instances

Row = dict[str, Any]


class UnsuitableRowError(ValueError):
    """A row that the chosen format cannot hold; the message says why."""


def image_name(row: Mapping[str, Any]) -> str:
    """The name of the row's image for people."""
    return row["id"] if "page" in row else row.get("image") or row["id"]


def size_of(row: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) in pixels of a row that has answers."""
    return row["width"], row["height"]


def values(row: Mapping[str, Any]) -> list[Any]:
    """The results of a row, one per prompt.

    Raises:
        UnsuitableRowError: the row or one of its answers is an error.
    """
    if "error" in row:
        raise UnsuitableRowError(str(row["error"]))
    found = []
    for answer in row["answers"]:
        if "error" in answer:
            raise UnsuitableRowError(f"{answer['prompt']}: {answer['error']}")
        found += answer["result"].values()
    return found


def shapes(row: Mapping[str, Any], kind: str) -> list[Instance]:
    """The located answers of a row, for a format that holds nothing else.

    Raises:
        UnsuitableRowError: the row is an error, or an answer is text.
    """
    found: list[Instance] = []
    for value in values(row):
        if isinstance(value, str):
            raise UnsuitableRowError(f"{kind} holds boxes and outlines, and the answer is text")
        found += [one for one in instances(value, size_of(row)) if one.is_finite]
    return found


def class_name(label: str) -> str:
    """A label as a class in one line; "object" where the task names nothing."""
    # Half of a surrogate pair, as in an argument that is no UTF-8, has no encoding.
    text = label.encode("utf-8", "backslashreplace").decode("utf-8")
    return " ".join(text.split()) or "object"
