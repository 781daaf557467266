"""Files that are there as a whole or not at all, whoever is killed while writing them."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from florence_jax.runtime.output_file import aside_of, named_errors

# What file systems without hard links say: FAT, some network and FUSE mounts.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


def commit(path: Path, content: bytes) -> bool:
    """Write `path` unless it is there already: aside, to the disk, and then into place at once.

    Of several writers, in whichever processes and hosts, the first one's content stays.

    Returns:
        Whether this call made the file.

    Raises:
        OSError: it cannot be written; nothing is left at `path`.
    """
    aside = aside_of(path)
    try:
        with named_errors(path), aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.replace(aside, path)
        _sync_directory(path.parent)
        return True
    finally:
        aside.unlink(missing_ok=True)


def commit_with_digest(path: Path, content: bytes) -> bool:
    """`commit`, and beside the file its digest (`digest_path`), which `sha256sum -c` reads."""
    made = commit(path, content)
    if made:
        # Of an earlier file of this name, which somebody removed to have it made again.
        digest_path(path).unlink(missing_ok=True)
        _write_digest(path, hashlib.sha256(content).hexdigest())
    return made


def ensure_digests(directory: Path, names: Iterable[str]) -> None:
    """Write the digests that processes killed after these files had no time for."""
    there = set(os.listdir(directory))
    for path in (directory / name for name in names):
        if digest_path(path).name not in there:
            with path.open("rb") as file:
                _write_digest(path, hashlib.file_digest(file, "sha256").hexdigest())


def digest_path(path: Path) -> Path:
    """Where the digest of `path` is.

    Readers of a directory of Parquet files pass over names with an underscore alone.
    """
    hidden = "_" if path.suffix == ".parquet" else ""
    return path.with_name(f"{hidden}{path.name}.sha256")


def _write_digest(path: Path, digest: str) -> None:
    commit(digest_path(path), f"{digest}  {path.name}\n".encode())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE mounts cannot; their directories are durable in their own way.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)
