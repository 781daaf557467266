"""Paths of data: files of this machine, and objects behind URLs by `etils.epath`.

Behind a URL, files of rows are copied to this machine once, because they are read in small pieces
and in any order; images are fetched when their rows are drawn.
"""

import atexit
import functools
import posixpath
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from etils import epath
from PIL import Image

from florence_jax.processing import ImageError
from florence_jax.processing.image.load import MAX_BYTES
from florence_jax.runtime.text_file import TextFileError, parse_json, read_bytes
from florence_jax.training.data.example import DataError

Place = Path | epath.Path

# What reads each kind of URL for etils.
_READERS = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface-hub"}
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*://")
_copies: list[Path] = []


def is_url(text: str) -> bool:
    return _SCHEME.match(text) is not None


def as_path(text: str | Path | epath.Path) -> Place:
    """The place of a path or URL.

    Raises:
        DataError: a URL of a kind that is not read.
    """
    if not is_url(str(text)):
        return Path(text).expanduser()
    try:
        return epath.Path(text)
    except KeyError:
        known = ", ".join(f"{scheme}://" for scheme in _READERS)
        raise DataError(f"{text}: data are read from files and from {known} URLs") from None


def require_exists(text: str, meaning: str, kind: str = "file or directory") -> Place:
    """The place of a path or URL where there is something; a URL's storage is asked.

    Raises:
        DataError: there is nothing, or nobody who could be asked.
    """
    found = as_path(text)
    try:
        there = found.exists()
    # Each storage's client raises errors of its own.
    except Exception as error:
        raise DataError(f"{meaning}: {_unreadable(found, error)}") from error
    if not there:
        raise DataError(f"there is no {kind} {found}, named as {meaning}")
    return found


def resolve_inside(root: Place, name: str, where: str) -> Place:
    """The file `name` below the directory `root`.

    Raises:
        DataError: it lies outside of `root`, by "..", an absolute path, a link or another URL.
    """
    try:
        if isinstance(root, Path):
            base = root.resolve()
            found: Place = (base / name).resolve()
            inside = found.is_relative_to(base) and not is_url(name)
        else:
            found, inside = _object_below(str(root), name)
    except (OSError, ValueError, KeyError) as error:  # a null byte, or another kind of URL
        raise DataError(f"{where}: the image {name!r:.80} is no file name ({error})") from None
    if not inside:
        raise DataError(
            f"{where}: the image {name!r} lies outside of {root}; move it there, or name the "
            "directory that holds all images as the data set's image_root"
        )
    return found


def _object_below(root: str, name: str) -> tuple[Place, bool]:
    """The object of a name, and whether it is below `root`.

    To a storage ".." is a name like any other, and to some of its clients it is not: it is resolved
    here, so that what is fetched is what was checked.
    """
    scheme, _, base = root.partition("://")
    base = posixpath.normpath(base)
    if is_url(name):
        other, _, key = name.partition("://")
    else:
        other, key = scheme, posixpath.join(base, name)
    key = posixpath.normpath(key)
    inside = other == scheme and key.startswith(f"{base}/")
    return epath.Path(f"{scheme}://{key.lstrip('/')}"), inside


def readable_image(image: Place | bytes | Image.Image) -> Path | bytes | Image.Image:
    """Fetch an object's bytes, which `load_image` opens; return anything else as it is.

    Raises:
        ImageError: there is no such object, or it cannot be fetched.
    """
    if not isinstance(image, epath.Path):
        return image
    try:
        with image.open("rb") as stream:
            # One more than is allowed: load_image then says that it is too large.
            return stream.read(MAX_BYTES + 1)
    except Exception as error:
        raise ImageError(f"image {_unreadable(image, error)}") from error


def local_copy(found: Place, suffix: str = "") -> Path:
    """A file that can be read at any offset; the copy of an object ends with the process.

    Args:
        suffix: where given, `found` is a directory; its files whose names end so are copied.

    Raises:
        DataError: it cannot be copied.
    """
    return found if isinstance(found, Path) else _copied(str(found), suffix)


def read_value(path: Place) -> Any:
    """The JSON value of a file.

    Raises:
        DataError: no such file, or no JSON.
    """
    try:
        return parse_json(read_bytes(local_copy(path)), str(path))
    except TextFileError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def read_object(path: Place, *, all_of: Collection[str] = ()) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
        all_of: keys that it must have.

    Raises:
        DataError: no such file, no JSON, no object, or a key is missing.
    """
    content = read_value(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    missing = [key for key in all_of if key not in content]
    if missing:
        raise DataError(
            f"{path} lacks {' and '.join(f'`{key}`' for key in missing)}; it has "
            f"{', '.join(list(content)[:8]) or 'nothing'}"
        )
    return content


@functools.cache
def _copied(url: str, suffix: str) -> Path:
    found = epath.Path(url)
    target = Path(tempfile.mkdtemp(prefix="florence-data-"))
    _copies.append(target)
    try:
        files = [one for one in found.iterdir() if one.name.endswith(suffix)] if suffix else [found]
        for file in files:
            with file.open("rb") as stream, (target / file.name).open("wb") as copy:
                shutil.copyfileobj(stream, copy, 2**22)
    except Exception as error:
        raise DataError(_unreadable(found, error)) from error
    return target if suffix else target / found.name


@atexit.register
def discard_copies() -> None:
    """Remove the copies of objects; for a process that ends without Python's own ending."""
    while _copies:
        shutil.rmtree(_copies.pop(), ignore_errors=True)


def _unreadable(found: Place, error: Exception) -> str:
    remedy = "check the name, the network and this machine's credentials"
    if isinstance(error, ImportError):
        remedy = f"pip install {_READERS[str(found).partition('://')[0]]}"
    return f"{str(found)!r} cannot be read ({type(error).__name__}: {error}): {remedy}"
