"""Pictures that are files: found in a directory, or named by a list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from florence_jax.batch.job import Item
from florence_jax.inference.requests import Query


@dataclass(frozen=True, kw_only=True)
class Files:
    """One item for each path, which is its id; every one is asked the same."""

    paths: Sequence[str]
    queries: tuple[Query, ...]

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"files": len(self.paths)}

    def __len__(self) -> int:
        return len(self.paths)

    def ids(self) -> Iterator[str]:
        return iter(self.paths)

    def pins(self) -> Iterator[str]:
        """Size and time of change of each file: a digest would read every picture at each start."""
        return map(file_pin, self.paths)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        for path in self.paths[start:stop]:
            yield Item(id=path, image=path, queries=self.queries)


def file_pin(path: str | os.PathLike[str]) -> str:
    """A text that changes when the file does."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return "absent"
    return f"{found.st_size} bytes of {found.st_mtime_ns}"
