"""Contiguous blocks of items, and the files that their rows are in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"block-(\d+)-of-(\d+)\.(\w+)")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How `total` items are cut into blocks of `size`; the last one may be smaller.

    Raises:
        ValueError: a block of no items.
    """

    total: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a block of {self.size} items: expected at least 1")

    def __len__(self) -> int:
        return -(-self.total // self.size)

    def __getitem__(self, number: int) -> range:
        """The numbers of the items in block `number`."""
        start = number * self.size
        return range(start, min(start + self.size, self.total))

    def name(self, number: int, extension: str) -> str:
        """block-00003-of-00120.jsonl: a function of the block's number and how many there are."""
        return f"block-{number:05d}-of-{len(self):05d}.{extension}"

    def names(self, extension: str) -> Iterator[str]:
        """Every block's name, in order."""
        return (self.name(number, extension) for number in range(len(self)))

    def finished(self, directory: Path, extension: str) -> list[int]:
        """The blocks whose files are in `directory`, in order."""
        # One listing: a question for each block takes minutes where the directory is far away.
        there = set(os.listdir(directory)) if directory.exists() else set()
        return [number for number, name in enumerate(self.names(extension)) if name in there]


def is_block_name(name: str) -> bool:
    """Could this be the file of a block, of this run or of another?"""
    return _NAME.fullmatch(name) is not None
