"""Sidecar files: one file for each image, in YOLO, VOC or text format."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from florence_jax.results.places import SidecarPlaces, check_places, check_writable
from florence_jax.results.rows import (
    Row,
    UnsuitableRowError,
    picture_name,
    plain_text,
    values,
)
from florence_jax.results.voc import voc_xml
from florence_jax.results.yolo import CLASSES, YoloClasses, are_labels, yolo_lines
from florence_jax.runtime.atomic_file import atomic_write
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.text_file import TextFileError, read_text

# Errors in the name of one row rather than of the disk.
_BAD_NAME = {
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.EILSEQ,
    errno.EINVAL,
}


class Sidecars:
    """Write each row's file atomically; an existing file is kept unless `overwrite`.

    Attributes:
        written, skipped: how many files.
    """

    def __init__(
        self, render: Callable[[Row], str], places: SidecarPlaces, *, overwrite: bool
    ) -> None:
        self._render, self._places, self._overwrite = render, places, overwrite
        self.written = self.skipped = 0

    def write(self, row: Row) -> None:
        path = self._places(picture_name(row))
        if not self._overwrite and os.path.lexists(path):
            self.skipped += 1
            return
        content = self._render(row)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, content)
        except ValueError as error:  # a null byte
            raise UnsuitableRowError(f"{str(path)!r} is no file name ({error})") from error
        except OSError as error:
            if error.errno not in _BAD_NAME:
                raise
            raise UnsuitableRowError(f"{path} cannot be a file: {error.strerror}") from error
        self.written += 1


@contextlib.contextmanager
def open_sidecars(kind: str, places: SidecarPlaces, *, overwrite: bool) -> Iterator[Sidecars]:
    """Open a writer of "yolo", "voc" or "txt" files.

    A folder of YOLO labels is locked: two runs would give one number to two classes.

    Raises:
        DirectoryInUseError: another run writes YOLO labels there.
        ValueError: `classes.txt` cannot be used.
    """
    if kind != "yolo":
        render = {"voc": voc_xml, "txt": _text}[kind]
        yield Sidecars(render, places, overwrite=overwrite)
        return
    places.base.mkdir(parents=True, exist_ok=True)
    with directory_lock(places.base, ".yolo.lock"):
        classes = YoloClasses(places.base)
        yield Sidecars(lambda row: yolo_lines(row, classes), places, overwrite=overwrite)
        # Also where no object was found at all.
        classes.save()


def check_sidecars(
    kind: str,
    places: SidecarPlaces,
    names: Sequence[str],
    inputs: Iterable[str | Path],
    *,
    overwrite: bool,
) -> set[str]:
    """Check before any image is read that its sidecar can be written.

    Args:
        kind, places: the format and its places.
        names: the images.
        inputs: files that must not be replaced, beside the images.
        overwrite: whether existing sidecars are replaced.

    Returns:
        The images whose sidecars exist and are kept.

    Raises:
        ValueError, OSError: names the file that is in the way.
    """
    reserved = [places.base / CLASSES] if kind == "yolo" else []
    check_places(places, names, [*names, *inputs], reserved)
    there = set() if overwrite else {name for name in names if os.path.lexists(places(name))}
    _check_existing(kind, places, sorted(there))
    check_writable([places(name).parent for name in names if name not in there])
    if kind == "yolo":
        if len(places.base.absolute().parts) == 1:
            raise ValueError(
                f"the pictures share no folder but {places.base}, where {CLASSES} would go: name a "
                "folder for the labels (--sidecar-dir DIR)"
            )
        check_writable([places.base])
    return there


def _check_existing(kind: str, places: SidecarPlaces, names: Iterable[str]) -> None:
    """Refuse to add to files of another format with the same suffix, or to unknown classes.

    Args:
        kind: the format to be written.
        names: the images whose sidecars exist and are kept.

    Raises:
        ValueError: names the file.
    """
    remedy = "pass --overwrite to replace it, or --sidecar-dir DIR for another folder"
    if kind == "yolo":
        classes = None
        for name in names:
            if classes is None:
                classes = YoloClasses(places.base).count
                if not (places.base / CLASSES).exists():
                    raise ValueError(
                        f"{places(name)} exists and {places.base / CLASSES} does not: nothing says "
                        f"what its class numbers mean. Put that back, {remedy}"
                    )
            if not are_labels(_content(places(name)), classes):
                raise ValueError(
                    f"{places(name)} exists and is no YOLO label file with the {classes} classes "
                    f"of {places.base / CLASSES}: {remedy}"
                )
    elif kind == "txt":
        for name in names:
            text = _content(places(name))
            if text.strip() and are_labels(text):
                raise ValueError(f"{places(name)} exists and is a YOLO label file: {remedy}")


def _content(path: Path) -> str:
    try:
        return read_text(path)
    except (TextFileError, OSError):
        return "not text"


def _text(row: Row) -> str:
    """The text of a row, as trainers of diffusion models read captions."""
    found = values(row)
    if len(found) != 1 or not isinstance(found[0], str):
        raise UnsuitableRowError(
            f"txt holds one answer in text, and this picture has {found!r:.200}"
        )
    return plain_text(found[0])
