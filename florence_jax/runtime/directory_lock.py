"""Lock a directory that a program writes to, so that a second one is refused and not mixed in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class DirectoryInUseError(ValueError):
    """Another process writes to the directory; the message names it and the remedy."""


@contextlib.contextmanager
def directory_lock(directory: str | os.PathLike[str], name: str = ".lock") -> Iterator[int]:
    """Hold the lock of an existing directory; it ends with the block or with the process.

    The lock belongs to the open file `directory/name`: a child that is given the descriptor
    (`pass_fds`) keeps it after its parent dies. The file stays, since removing it would let two
    processes lock two files of the same name.

    Args:
        directory: the directory that this program writes to.
        name: the lock's file.

    Yields:
        The descriptor that holds the lock.

    Raises:
        DirectoryInUseError: another process holds it.
        OSError: the file cannot be made.
    """
    import fcntl  # POSIX only, and only needed for writing

    path = Path(directory) / name
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise DirectoryInUseError(
                f"another process is writing to {directory}{f' ({holder})' if holder else ''}: "
                "wait for it, end it, or name another directory"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
