"""Notice a file of rows that changes under a run: its rows were counted when the run began."""

from __future__ import annotations

import os
from pathlib import Path


class FileChangedError(RuntimeError, ValueError):
    """A file of rows is not the one that was counted; the message names it and the remedy.

    It ends the run: no single row is to blame, so that it is a RuntimeError too.
    """


class Unchanged:
    """A file's size and time of change, to be compared while its rows are read."""

    def __init__(self, path: Path) -> None:
        self._path, self._mark = path, _mark(path)

    def check(self) -> None:
        """Refuse the file if it is another one now.

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
