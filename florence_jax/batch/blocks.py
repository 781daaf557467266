"""Contiguous blocks of items, and the files that their rows are in."""

from __future__ import annotations

import bisect
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"block-(\d+)-of-(\d+)\.(\w+)")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How `total` items are cut into blocks of `size`; the last one may be smaller.

    Items that were added to a run are in blocks of their own behind those that it began with, which
    keep their names.

    Attributes:
        total, size: as above.
        ends: the numbers of items at the run's beginning and after each addition; the last is
            `total`. Empty where nothing was added.

    Raises:
        ValueError: a block of no items.
    """

    total: int
    size: int
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a block of {self.size} items: expected at least 1")

    def __len__(self) -> int:
        return self._stretches[-1][1]

    def __getitem__(self, number: int) -> range:
        """The numbers of the items in block `number`."""
        first_item, _, first_block, end = self._stretch_of_block(number)
        start = first_item + (number - first_block) * self.size
        return range(start, min(start + self.size, end))

    def name(self, number: int, extension: str) -> str:
        """block-00003-of-00120.jsonl: a function of the block's number and how many there are."""
        return f"block-{number:05d}-of-{self._stretch_of_block(number)[1]:05d}.{extension}"

    def names(self, extension: str) -> Iterator[str]:
        """Every block's name, in order."""
        return (self.name(number, extension) for number in range(len(self)))

    def block_of(self, item: int) -> int:
        """The number of the block that holds an item."""
        ends = [end for *_, end in self._stretches]
        first_item, _, first_block, _ = self._stretches[bisect.bisect_right(ends, item)]
        return first_block + (item - first_item) // self.size

    def finished(self, directory: Path, extension: str) -> list[int]:
        """The blocks whose files are in `directory`, in order."""
        # One listing: a question for each block takes minutes where the directory is far away.
        there = set(os.listdir(directory)) if directory.exists() else set()
        return [number for number, name in enumerate(self.names(extension)) if name in there]

    @functools.cached_property
    def _stretches(self) -> list[tuple[int, int, int, int]]:
        """(first item, blocks up to its end, first block, end) of what came at one time."""
        found, item, block = [], 0, 0
        for end in self.ends or (self.total,):
            after = block - (-(end - item) // self.size)
            found.append((item, after, block, end))
            item, block = end, after
        return found

    def _stretch_of_block(self, number: int) -> tuple[int, int, int, int]:
        return next((one for one in self._stretches if number < one[1]), self._stretches[-1])


def is_block_name(name: str) -> bool:
    """Could this be the file of a block, of this run or of another?"""
    return _NAME.fullmatch(name) is not None
