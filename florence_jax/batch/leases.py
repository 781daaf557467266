"""Who is at work on which block: hints between processes that share nothing but a directory.

A claim is a file that its writer touches again and again. Another process leaves the block alone
for as long as it sees the claim change, by its own clock, and takes it over once it does not, or at
once where the writer was a process of the same host and is gone. Two processes that do the same
block all the same lose time and nothing else: the first result stays.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

FOLDER = ".claims"


class Claims:
    """The claims of this process on blocks of one output directory."""

    def __init__(self, directory: Path, *, patience: float = 60.0) -> None:
        """
        Args:
            patience: seconds without a sign of life after which a claim is void.
        """
        self._folder, self._patience = directory / FOLDER, patience
        self._mine: set[int] = set()
        self._lock = threading.Lock()
        # Of others' claims: the content and time of change last seen, and when it was first seen.
        self._seen: dict[int, tuple[tuple[str, int], float]] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="claims", daemon=True).start()

    def is_held(self, number: int) -> bool:
        """Is another process, as far as can be seen, at work on this block?"""
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
        return time.monotonic() - seen[1] < self._patience

    def take(self, number: int) -> None:
        """Say that this process works on the block."""
        claim = f"{socket.gethostname()} {os.getpid()}"
        written = False
        while not written:
            # A process that sees every block there removes the folder under us, before we write
            # into it or while `mkdir` looks whether what exists is a folder.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                self._folder.mkdir(exist_ok=True)
                written = bool(self._path(number).write_text(claim))
        with self._lock:
            self._mine.add(number)

    def release(self, number: int) -> None:
        """Say that it does no longer."""
        with self._lock:
            self._mine.discard(number)
        self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        """Release what is still held."""
        self._ended.set()
        for number in list(self._mine):
            self.release(number)

    def clear(self) -> None:
        """Remove the folder, when every block is there and no claim means anything."""
        for path in self._folder.glob("*"):
            path.unlink(missing_ok=True)
        try:
            self._folder.rmdir()
        except OSError:  # it never was, or a late process has just claimed
            return

    def _beat(self) -> None:
        while not self._ended.wait(self._patience / 6):
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
    """Was the claim made by an earlier process of this host, or by an earlier one with our id?"""
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
