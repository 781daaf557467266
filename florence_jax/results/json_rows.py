"""JSON lines: one row of `florence_jax.results` a line."""

from __future__ import annotations

from typing import TextIO

from florence_jax.inference.json_text import json_text
from florence_jax.results.rows import Row


class JsonRows:
    """Writes each row before the next is begun: an interrupted run keeps what it has."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def write(self, row: Row) -> None:
        print(json_text(row), file=self._output)
        self._output.flush()
