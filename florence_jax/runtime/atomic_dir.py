"""Replace a directory as a whole: a reader sees the old one or the new one, never half of one.

The new directory is written beside its destination under a name of its own, made durable and then
renamed. POSIX only, as are the renames that this rests on.
"""

import contextlib
import ctypes
import errno
import glob
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from florence_jax.runtime.atomic_file import sync

_NEW = "incomplete"
_OLD = "replaced"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class DirectoryError(ValueError):
    """A directory that cannot be written; the message says why and what to do."""


@contextlib.contextmanager
def atomic_directory(
    destination: Path, *, overwrite: bool = False, marker: str = "config.json"
) -> Iterator[Path]:
    """A new, empty directory that takes the place of `destination` when the block ends.

    When the block raises, or the process dies, `destination` stays as it was. The next call for the
    same destination removes what a killed process left behind.

    Args:
        destination: the directory to create or replace; its parents are created.
        overwrite: replace an existing checkpoint. An existing empty directory is always replaced.
        marker: the file that tells a directory that may be replaced from any other.

    Raises:
        DirectoryError: `destination` exists and is not to be replaced or is no checkpoint, or the
            disk is full.
    """
    # Renaming a symlink would replace the link and leave the directory that it names.
    destination = Path(os.path.realpath(destination))
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _locked(destination.parent):
            _clean(destination)
            check_destination(destination, overwrite=overwrite, marker=marker)
            name = f".{destination.name}.{_NEW}-{secrets.token_hex(6)}"
            new = destination.with_name(name)
            new.mkdir()
            lock = _open_locked(new)
    except OSError as error:
        raise _explained(error, destination) from error
    failed = True
    try:
        yield new
        make_durable(new)
        _swap(new, destination)
        sync(destination.parent)
        failed = False
    except OSError as error:
        raise _explained(error, destination) from error
    finally:
        # After a failure this is the new directory, after success the old one, if there was one.
        _remove(new, failed=failed)
        os.close(lock)


def check_destination(
    destination: Path, *, overwrite: bool = False, marker: str = "config.json"
) -> None:
    """Refuse a directory that `atomic_directory` would not write to; arguments are the same.

    Raises:
        DirectoryError: it is a file, or holds something that is not to be replaced.
    """
    if not destination.exists():
        return
    if not destination.is_dir():
        raise DirectoryError(f"{destination} is a file; name a directory to write to")
    content = sorted(path.name for path in destination.iterdir())
    if not content:
        return
    if not overwrite:
        raise DirectoryError(
            f"{destination} exists already: overwrite it (overwrite=True, --overwrite), or name "
            "another directory"
        )
    if marker not in content:
        raise DirectoryError(
            f"{destination} is not overwritten: it has no {marker}, so it is no checkpoint (it "
            f"holds {', '.join(content[:5])}). Name another directory, or remove it yourself"
        )


def check_apart(source: Path, destination: Path) -> None:
    """Refuse a destination that is the source, holds it or lies in it.

    Raises:
        ValueError: it does.
    """
    a, b = source.resolve(), destination.resolve()
    if a.is_relative_to(b) or b.is_relative_to(a):
        raise ValueError(
            f"the destination {destination} and the source {source} overlap: writing one would "
            "destroy the other; name a directory outside it"
        )


def leftovers(destination: Path) -> list[Path]:
    """What killed processes left beside `destination`; `atomic_directory` removes it."""
    found = []
    for path in sorted(destination.parent.glob(f".{glob.escape(destination.name)}.{_NEW}-*")):
        try:
            os.close(_open_locked(path))
        except OSError:  # its writer is alive, or has just finished
            continue
        found.append(path)
    return found


def make_durable(directory: Path) -> None:
    """Every file and folder of a directory is on the disk when this returns."""
    for folder, _, files in os.walk(directory):
        for name in files:
            sync(Path(folder) / name)
        sync(Path(folder))


def _clean(destination: Path) -> None:
    """Finish what a killed process began; call under the lock of the parent."""
    replaced = destination.parent.glob(f".{glob.escape(destination.name)}.{_OLD}-*")
    for path in sorted(replaced):
        if destination.exists():
            shutil.rmtree(path)
        else:  # killed between two renames: the old one is still the valid one
            path.rename(destination)
    for path in leftovers(destination):
        shutil.rmtree(path)


def _swap(new: Path, destination: Path) -> None:
    """Put `new` at `destination`; a directory that was there is at `new` afterwards."""
    if not destination.exists():
        new.rename(destination)
    elif not _exchange(new, destination):
        # Two renames, and for a moment no destination: `_clean` knows what that means.
        old = destination.with_name(new.name.replace(f".{_NEW}-", f".{_OLD}-"))
        destination.rename(old)
        new.rename(destination)
        shutil.rmtree(old)


def _remove(directory: Path, *, failed: bool) -> None:
    """Remove a directory. After a failed write, threads of it may still finish files of theirs."""
    for pause in (0, 0.05, 0.1, 0.2, 0.4, 0.8):
        time.sleep(pause)
        absent = not directory.exists()
        shutil.rmtree(directory, ignore_errors=True)
        if absent or not (failed or directory.exists()):
            return


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directories in one step, where the system and the file system can."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    arguments = (_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    if rename(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number), str(b))


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Only one process at a time looks for leftovers here and adds a directory of its own."""
    descriptor = _open_locked(directory, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)


def _open_locked(directory: Path, *, wait: bool = False) -> int:
    """A descriptor that locks `directory` until it is closed, or its process ends.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    import fcntl  # POSIX only, and only needed for writing

    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _explained(error: OSError, destination: Path) -> Exception:
    if error.errno not in _FULL:
        return error
    kept = "what was there is unchanged" if destination.exists() else "nothing was written"
    free = shutil.disk_usage(destination.parent).free
    return DirectoryError(
        f"cannot write {destination}: {error.strerror} ({free / 1e9:.1f} GB are free); {kept}. "
        "Make room, or name a directory on another disk"
    )
