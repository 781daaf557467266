"""Atomic file writes: a file is there as a whole or not at all, whoever is killed meanwhile.

Content is written to a temporary file of the same directory, made durable, and renamed into place.
`remove_leftovers` removes the temporary files of writers that were killed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# Temporary files have this prefix; `remove_leftovers` knows them by it.
INCOMPLETE = ".incomplete-"
_LEFTOVER_SECONDS = 3600.0
# File systems take 255; those that encrypt names take fewer, and some count what they add.
_NAME_BYTES = 240
# Errors of file systems without hard links: FAT, some network and FUSE mounts.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
# Errors of file systems that cannot sync a directory; theirs are durable in their own way.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def atomic_open(
    path: str | os.PathLike[str], mode: str = "w", *, durable: bool = True
) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` when the block ends; UTF-8 if it is text.

    If the block raises or the process dies, `path` stays as it was.

    Args:
        path: the file to create or replace.
        mode: "w" or "wb".
        durable: wait for the disk, so that a power cut leaves the old file or the new one.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with named_errors(path):
            with _opened(temporary, mode) as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content` to `path` in one step.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    with atomic_open(path, "w" if isinstance(content, str) else "wb") as file:
        file.write(content)


def write_once(path: Path, content: bytes) -> bool:
    """Write `path` durably and in one step, unless it exists.

    Of several writers, in whichever processes and hosts, the first one's content stays.

    Returns:
        Whether this call made the file.

    Raises:
        OSError: the file cannot be written; nothing is left at `path`.
    """
    temporary = temporary_name(path)
    try:
        with named_errors(path), temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.replace(temporary, path)
        sync(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A unique name beside `path` for a file that is being written."""
    return path.with_name(f"{INCOMPLETE}{secrets.token_hex(8)}")


def _opened(path: Path, mode: str) -> IO[Any]:
    # Half a surrogate pair, as in a file name that is no UTF-8, is written as an escape.
    if "b" in mode:
        return open(path, mode)
    return open(path, mode, encoding="utf-8", errors="backslashreplace")


def sync(path: Path) -> None:
    """One file's bytes, or one directory's names, are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE mounts cannot; their directories are durable in their own way.
        if not path.is_dir() or error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name `path` in an OSError of the block that names no file, as a full disk's does."""
    try:
        yield
    except OSError as error:
        name = error.filename
        is_aside = isinstance(name, str) and os.path.basename(name).startswith(INCOMPLETE)
        if error.errno is not None and (name is None or is_aside):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def file_name(stem: str, ending: str) -> str:
    """`stem` and `ending` as one name that every file system takes: at most 240 bytes.

    A stem that is too long is cut, and a digest of the whole of it keeps two such names apart.
    """
    whole = stem.encode("utf-8", "surrogateescape")
    room = _NAME_BYTES - len(ending.encode("utf-8", "surrogateescape"))
    if len(whole) <= room:
        return stem + ending
    digest = hashlib.blake2b(whole, digest_size=6).hexdigest()
    cut = whole[: max(room - len(digest) - 1, 0)].decode("utf-8", "ignore")
    return f"{cut}-{digest}{ending}"


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Make sure at the start that a file can be made in a directory at the end.

    Raises:
        OSError: the directory is missing, or nothing can be made in it.
    """
    probe = Path(directory) / f"{INCOMPLETE}{secrets.token_hex(8)}"
    with named_errors(directory):
        try:
            probe.touch()
        finally:
            with contextlib.suppress(OSError):  # the directory is missing: `touch` says so
                probe.unlink(missing_ok=True)


def file_system_time(directory: str | os.PathLike[str]) -> float:
    """Now, in seconds since the epoch, by the clock that gives a directory's files their times.

    The clocks of two hosts that share a directory may be hours apart.

    Raises:
        OSError: nothing can be made in the directory.
    """
    probe = Path(directory) / f"{INCOMPLETE}{secrets.token_hex(8)}"
    try:
        probe.write_bytes(b"now")
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed writers left in a directory and has not been written to for so long."""
    found = list(directory.glob(f"{INCOMPLETE}*"))
    if not found:
        return
    now = file_system_time(directory)
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < now - _LEFTOVER_SECONDS:
                path.unlink()
