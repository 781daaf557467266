"""Write files that are there as a whole or not at all, and remove what killed writers left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO

# Files under way have this prefix; `remove_leftovers` knows them by it.
INCOMPLETE = ".incomplete-"
LEFTOVER_SECONDS = 3600.0
# File systems take 255; those that encrypt names take fewer, and some count what they add.
_NAME_BYTES = 240


def aside_of(path: Path) -> Path:
    """A name of its own beside `path`, in the same directory, for what is being written."""
    return path.with_name(f"{INCOMPLETE}{secrets.token_hex(8)}")


@contextlib.contextmanager
def replaced_file(
    path: str | os.PathLike[str], mode: str = "w", *, durable: bool = True
) -> Iterator[IO[Any]]:
    """A file that takes the place of `path` when the block ends; UTF-8 where it is text.

    When the block raises, or the process dies, `path` stays as it was.

    Args:
        path: the file to create or replace.
        mode: "w" or "wb".
        durable: wait for the disk, so that a power cut leaves the old file or the new one.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    path = Path(path)
    aside = aside_of(path)
    try:
        with named_errors(path):
            with _opened(aside, mode) as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _opened(path: Path, mode: str) -> IO[Any]:
    # Half a surrogate pair, as in a file name that is no UTF-8, is written as an escape.
    if "b" in mode:
        return open(path, mode)
    return open(path, mode, encoding="utf-8", errors="backslashreplace")


def replace_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content` to `path` in one step, as `replaced_file` does.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    with replaced_file(path, "w" if isinstance(content, str) else "wb") as file:
        file.write(content)


class RowsFile:
    """A text file that takes the place of an old one with its first line.

    Before the first line nothing is changed: a start that fails leaves an old file as it was, and
    no file where there was none. After it every line is on its way to the disk when `write`
    returns, so that an interrupted run keeps what it has. Use it as a context manager.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool) -> None:
        """
        Args:
            path: a pipe or a device is written to as it is.
            overwrite: replace an existing file.

        Raises:
            FileExistsError: there is one, and it is not to be replaced.
            OSError: the file's directory cannot be written to.
        """
        # Renaming onto a symbolic link would replace the link.
        self._path, self._name = Path(os.path.realpath(path)), os.fspath(path)
        self._overwrite = overwrite
        self._file: TextIO | None = None
        self._is_stream = self._path.exists() and not stat.S_ISREG(self._path.stat().st_mode)
        if self._is_stream and self._path.is_dir():
            raise IsADirectoryError(f"{self._name} is a directory: name a file")
        if not self._is_stream:
            if self._path.exists() and not overwrite:
                raise self._exists()
            check_writable(self._path.parent)

    def __enter__(self) -> RowsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with named_errors(self._name):
                file.close()

    def write(self, line: str) -> None:
        """Add one line, without its newline.

        Raises:
            FileExistsError: another process has made the file meanwhile.
            OSError: it cannot be written; the error names the file.
        """
        with named_errors(self._name):
            first = f"{line}\n"
            if self._file is not None:
                self._file.write(first)
                self._file.flush()
            elif self._is_stream:
                self._file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115
                self._file.write(first)
                self._file.flush()
            else:
                self._file = self._in_place(first)

    def _in_place(self, first: str) -> TextIO:
        # Without --overwrite the file is made under its own name: of two commands, one fails.
        made = aside_of(self._path) if self._overwrite else self._path
        try:
            file = open(made, "w" if self._overwrite else "x", encoding="utf-8")  # noqa: SIM115
        except FileExistsError:
            raise self._exists() from None
        try:
            file.write(first)
            file.flush()
            if self._overwrite:
                with contextlib.suppress(FileNotFoundError):
                    shutil.copymode(self._path, made)
                os.replace(made, self._path)
        except BaseException:
            made.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it fails once more to write what waits
                file.close()
            raise
        return file

    def _exists(self) -> FileExistsError:
        return FileExistsError(
            f"{self._name} exists already: pass --overwrite to replace it, or another --output"
        )


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


def remove_leftovers(directory: Path, *, seconds: float = LEFTOVER_SECONDS) -> None:
    """Remove what killed writers left in a directory and has not been written to for so long."""
    found = list(directory.glob(f"{INCOMPLETE}*"))
    if not found:
        return
    now = file_system_time(directory)
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < now - seconds:
                path.unlink()
