"""Results in the types that JSON has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


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
