"""Lock a directory that a program writes to, so that a second program is refused."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"

# Errors of file systems without locks: some network and FUSE mounts.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


class DirectoryInUseError(ValueError):
    """Another process writes to the directory; the message names it and the remedy."""


@contextlib.contextmanager
def directory_lock(
    directory: str | os.PathLike[str], name: str = LOCK, *, wait: bool = False
) -> Iterator[int]:
    """Hold the lock of an existing directory; it ends with the block or with the process.

    The lock belongs to the open file `directory/name`: a child that is given the descriptor
    (`pass_fds`) keeps it after its parent dies. The file is removed at the end; a process that
    locked a file which is no longer the one of that name tries again. On a file system that has no
    locks, the block runs without one, with a warning on stderr.

    Args:
        directory: the directory that this program writes to.
        name: the lock's file.
        wait: wait until the other process is done, for work that is short and must not be lost.

    Yields:
        The descriptor that holds the lock.

    Raises:
        DirectoryInUseError: another process holds it.
        OSError: the file cannot be made.
    """
    path = Path(directory) / name
    descriptor = _locked(path, Path(directory), wait=wait)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its note
            os.ftruncate(descriptor, 0)
            note = f"process {os.getpid()} on {os.uname().nodename}\n"
            os.pwrite(descriptor, note.encode(), 0)
        yield descriptor
    finally:
        with contextlib.suppress(OSError):  # the directory is gone, or read-only by now
            os.unlink(path)
        os.close(descriptor)


def _of(holder: str) -> str:
    # A child that was given the descriptor outlives the process that wrote its name down.
    return f" ({holder}, or one that it started)" if holder else ""


def _locked(path: Path, directory: Path, *, wait: bool) -> int:
    """A descriptor that holds the lock of the file that is at `path` now."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(descriptor, directory, wait=wait):
                return descriptor
            try:
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
            except FileNotFoundError:  # its last holder has just removed it
                pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, directory: Path, *, wait: bool) -> bool:
    """Lock the open file; False where the file system cannot."""
    import fcntl  # POSIX only, and only needed for writing

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        raise DirectoryInUseError(
            f"another process is writing to {directory}{_of(holder)}: "
            "wait for it, end it, or name another directory"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"warning: {directory} is on a file system without locks ({error.strerror}): nothing "
            "keeps a second process from writing to it",
            file=sys.stderr,
        )
        return False
    return True
