"""JSON lines: one row of `florence_jax.results` a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from florence_jax.results.rows import Row
from florence_jax.runtime.jsonl import json_text


class JsonRows:
    """Hands each row to `add_line` before the next is begun."""

    def __init__(self, add_line: Callable[[str], Any]) -> None:
        self._add_line = add_line

    def write(self, row: Row) -> None:
        self._add_line(json_text(row))
