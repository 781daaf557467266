"""Leases on blocks: hints between processes that share nothing but a directory.

A lease is a file that its owner touches again and again. Other processes leave the block alone for
as long as they see the file change, by their own clock. They take the block over once it stops
changing, or at once if the owner was a process of the same host and is gone. Two processes that do
the same block all the same only lose time: the first result stays.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

FOLDER = ".leases"
_BEATS_IN_LEASE = 6


class Leases:
    """The leases of this process on blocks of one output directory."""

    def __init__(self, directory: Path, *, seconds: float = 60.0) -> None:
        """
        Args:
            directory: the output directory of the run.
            seconds: a lease ends after this time without a sign of life.
        """
        self._folder, self._seconds = directory / FOLDER, seconds
        self._mine: set[int] = set()
        self._lock = threading.Lock()
        # Others' leases: content and modification time last seen, and when they were first seen.
        self._seen: dict[int, tuple[tuple[str, int], float]] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._renew, name="leases", daemon=True).start()

    def is_held(self, number: int) -> bool:
        """Whether another process, as far as can be seen, works on this block."""
        path = self._path(number)
        try:
            state = path.read_text(), path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if _is_gone(state[0]):
            return False
        seen = self._seen.get(number)
        if seen is None or seen[0] != state:
            self._seen[number] = (state, time.monotonic())
            return True
        return time.monotonic() - seen[1] < self._seconds

    def acquire(self, number: int) -> None:
        """Announce that this process works on the block."""
        owner = f"{socket.gethostname()} {os.getpid()}"
        written = False
        while not written:
            # A process that finds every block finished removes the folder, before the file is
            # written or while `mkdir` checks that what exists is a folder.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                self._folder.mkdir(exist_ok=True)
                written = bool(self._path(number).write_text(owner))
        with self._lock:
            self._mine.add(number)

    def release(self, number: int) -> None:
        """Announce that this process no longer works on the block."""
        with self._lock:
            self._mine.discard(number)
        self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        """Release what is still held."""
        self._closed.set()
        for number in list(self._mine):
            self.release(number)

    def clear(self) -> None:
        """Remove the folder, once every block is finished and no lease means anything."""
        for path in self._folder.glob("*"):
            path.unlink(missing_ok=True)
        try:
            self._folder.rmdir()
        except OSError:  # it never existed, or a late process has just acquired a lease
            return

    def _renew(self) -> None:
        while not self._closed.wait(self._seconds / _BEATS_IN_LEASE):
            with self._lock:
                mine = list(self._mine)
            for number in mine:
                try:
                    os.utime(self._path(number))
                except FileNotFoundError:  # released meanwhile
                    continue

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}"


def _is_gone(owner: str) -> bool:
    """Whether an earlier process of this host, or an earlier one with our id, wrote the lease."""
    host, _, number = owner.rpartition(" ")
    if host != socket.gethostname() or not number.isdecimal():
        return False
    if int(number) == os.getpid():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is another user's, and alive
        return False
    return False
