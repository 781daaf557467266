"""Settings that check themselves: range checks, finite numbers, and suggestions for near misses."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

# The largest float32: what is computed with a larger number is infinite.
_LARGEST = float(np.finfo(np.float32).max)
# Anything closer to zero may be computed with as zero.
_SMALLEST = float(np.finfo(np.float32).smallest_normal)

_collected: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
    "collected problems", default=None
)


class Checked(ABC):
    """A base of settings classes; a subclass yields what is wrong with it from `problems`."""

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """A sentence for each value that does not fit."""

    def __post_init__(self) -> None:
        found = list(self.problems())
        collected = _collected.get()
        if collected is not None:
            collected += found
        elif found:
            raise ValueError("; ".join(found))


@contextlib.contextmanager
def collecting_problems() -> Iterator[list[str]]:
    """While entered, settings that do not fit add their sentences to the list and do not raise."""
    problems: list[str] = []
    token = _collected.set(problems)
    try:
        yield problems
    finally:
        _collected.reset(token)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """ " (did you mean ...?)" for the choice most like a word; empty if none is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.7)
    return f" (did you mean {close[0]}?)" if close else ""


def not_finite(config: Any, prefix: str = "") -> Iterator[str]:
    """A sentence for each number of a dataclass, nested ones included, that no float32 holds.

    Args:
        config: an instance of a dataclass.
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
