"""Settings that check themselves: every problem is collected, and every number must be finite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

# The largest float32: what is computed with a larger number is infinite.
_LARGEST = float(np.finfo(np.float32).max)
# Anything closer to zero may be computed with as zero.
_SMALLEST = float(np.finfo(np.float32).smallest_normal)


class Checked:
    """A base of settings classes; a subclass yields what is wrong with it from `problems`.

    `problems` reads fields alone and takes None for a field that could not be read, so that
    `florence_jax.training.config_loader.from_tree` can report the rest beside it.
    """

    def problems(self) -> Iterator[str]:
        """A sentence for each value that does not fit."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        found = list(type(self).problems(self))
        if found:
            raise ValueError("; ".join(found))


def not_finite(config: Any, prefix: str = "") -> Iterator[str]:
    """A sentence for each number of a dataclass, nested ones included, that no float32 holds.

    Args:
        config: an instance of a dataclass, or an object with the fields of one.
        prefix: what the names of its fields begin with, such as "optimizer.".
    """
    for name, value in vars(config).items():
        yield from _in_value(value, f"{prefix}{name}")


def within(name: str, value: float | None, least: float, below: float = math.inf) -> Iterator[str]:
    """A sentence where a number that is set is not in [least, below) as a float32."""
    if value is None or not abs(value) <= _LARGEST:
        return
    # In float32 a share just below 1 is 1, and 1 minus it nothing.
    if not (least <= value and np.float32(value) < below):
        wanted = f"at least {least:g}" if below == math.inf else f"within [{least:g}, {below:g})"
        yield f"{name} must be {wanted}, got {value}"


def counted(name: str, value: int | None, least: int, most: int = 2**31 - 1) -> Iterator[str]:
    """A sentence where a whole number that is set is not in [least, most]; an int32 by default."""
    if value is not None and not least <= value <= most:
        wanted = f"within [{least}, {most}]" if value > least else f"at least {least}"
        yield f"{name} must be {wanted}, got {value if abs(value) < 1e15 else 'far more'}"


def positive(name: str, value: float | None) -> Iterator[str]:
    """A sentence where a number that is set is not above zero as a float32."""
    if value is not None and not math.isnan(value) and not value >= _SMALLEST:
        yield f"{name} must be positive, got {value}"


def _in_value(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        if not abs(value) <= _LARGEST:
            shown = value if isinstance(value, float) else "a number of more than 38 digits"
            yield f"{name} must be a finite number, got {shown}"
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from _in_value(item, f"{name}[{number}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from not_finite(value, f"{name}.")
