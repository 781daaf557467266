"""Streams: data that can be read from their start alone, as sources by number.

A stream is read in passes, each a function of the seed and the number of the pass. Its rows are
numbered through all passes, and shuffled within blocks of `shuffle_rows`. So row r of a run is the
same in every process and after every resumption: whoever asks for it reads on to its block, and
decodes no image on the way there.
"""

from __future__ import annotations

import itertools
import threading
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from florence_jax.training.data.example import DataError, Example, Source

# Blocks that are kept: threads that make batches ahead ask for rows of two at a time.
_KEPT = 2


class Stream(Source):
    """A source whose rows are read in order, and whose numbers never end.

    `len` is the number of rows of a pass as far as it is known, for epochs and evaluation; numbers
    beyond it are rows of later passes.

    Args:
        rows: rows of one pass, as the data set or the user says.
        seed: seed of the order.
        shuffle_rows: rows of a block; 1 leaves the order as it is.
    """

    endless = True

    def __init__(self, *, rows: int, seed: int, shuffle_rows: int):
        self._rows, self._seed, self._shuffle_rows = rows, seed, shuffle_rows
        self._forget()

    @abstractmethod
    def read_pass(self, number: int) -> Iterator[Any]:
        """The rows of one pass, not decoded; equal numbers give equal rows in equal order."""

    @abstractmethod
    def example(self, row: Any, where: str) -> Example:
        """A row as an example.

        Args:
            where: what it is called in messages.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """What the stream is called in messages."""

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Example:
        block, place = divmod(index, self._shuffle_rows)
        with self._lock:
            rows = self._block(block)
        number, row = rows[self._order(block)[place]]
        return self.example(row, f"{self.name}:{number}")

    def __getstate__(self) -> dict[str, Any]:
        gone = ("_lock", "_blocks", "_reading")
        return {name: value for name, value in self.__dict__.items() if name not in gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._blocks: dict[int, list[tuple[int, Any]]] = {}
        self._reading: Iterator[list[tuple[int, Any]]] | None = None
        self._next = 0

    def _order(self, block: int) -> np.ndarray:
        return np.random.default_rng((self._seed, block)).permutation(self._shuffle_rows)

    def _block(self, block: int) -> list[tuple[int, Any]]:
        """The rows of a block, each with its number in its pass; earlier blocks are read over."""
        if block in self._blocks:
            return self._blocks[block]
        if self._reading is None or block < self._next:
            self._forget_blocks()
            self._reading = self._read_blocks()
        try:
            while self._next <= block:
                self._blocks[self._next] = next(self._reading)
                self._next += 1
                self._blocks.pop(self._next - 1 - _KEPT, None)
        except BaseException:
            # The next row starts anew: after a failure an iterator only ends.
            self._forget_blocks()
            raise
        return self._blocks[block]

    def _forget_blocks(self) -> None:
        self._blocks, self._reading, self._next = {}, None, 0

    def _read_blocks(self) -> Iterator[list[tuple[int, Any]]]:
        rows = self._every_row()
        while True:
            yield list(itertools.islice(rows, self._shuffle_rows))

    def _every_row(self) -> Iterator[tuple[int, Any]]:
        """(number in its pass, row) of all passes, one after the other."""
        for number in itertools.count():
            count = 0
            for row in self.read_pass(number):
                yield count, row
                count += 1
            if not count:
                raise DataError(f"{self.name} holds no rows")
