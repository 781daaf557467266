"""Rows, each with every answer about one image (`florence_jax.results`): their fields, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

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


def result_to_json(record: Any) -> Any:
    """Convert a record to types that `json.dumps(..., allow_nan=False)` writes: dict, list, str,
    numbers.

    Arrays (numpy, jax) become nested lists, their scalars python numbers, and tuples lists.

    Raises:
        ValueError: a number that is NaN or infinite (JSON has none), named by its place.
        TypeError: a key that is not a str, or a value of any other type.
    """
    return _json_safe(record, "record")


def _json_safe(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # np.str_ is a str too, and so is a StrEnum's member
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; JSON keys are strings")
        return {str(k): _json_safe(v, f"{where}[{str(k)!r}]") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item, f"{where}[{n}]") for n, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot hold")
        return float(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind not in "biufUO":  # bfloat16 and the float8s know no tolist of their own
            try:
                array = array.astype(np.float32)
            except (TypeError, ValueError):
                raise TypeError(f"{where} is an array of {array.dtype}") from None
        if array.dtype.kind != "O" or array.ndim:
            return _json_safe(array.tolist(), where)
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold")
