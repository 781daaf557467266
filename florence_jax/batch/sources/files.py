"""Image files as a source, and how a change of a file is noticed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.batch.job import Item
from florence_jax.inference.requests import Query


@dataclass(frozen=True, kw_only=True)
class Files:
    """One item for each path, which is its id; all have the same queries."""

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
        """Size and modification time of each file; digests would read every image at each start."""
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


class FileChangedError(RuntimeError, ValueError):
    """A file of rows changed after its rows were counted; the message names it and the remedy.

    It is a RuntimeError too, which ends the run: no single row is to blame.
    """


class ChangeGuard:
    """The size and modification time of a file, compared while its rows are read."""

    def __init__(self, path: Path) -> None:
        self._path, self._mark = path, _mark(path)

    def check(self) -> None:
        """Refuse the file if it has changed.

        Raises:
            FileChangedError: it was written to, replaced or removed.
        """
        try:
            mark = _mark(self._path)
        except FileNotFoundError:
            raise FileChangedError(
                f"{self._path} was removed while it was read: put it back"
            ) from None
        if mark != self._mark:
            raise FileChangedError(
                f"{self._path} changed while it was read (it had {self._mark[0]} bytes, now "
                f"{mark[0]}): leave files of rows alone until a run over them is done. Put the "
                "file back as it was, or begin another run"
            )


def _mark(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
