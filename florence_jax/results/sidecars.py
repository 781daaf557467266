"""Sidecar files: one file for each image, in YOLO, VOC or text format, and their paths."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from florence_jax.processing.image.suffixes import IMAGE_SUFFIXES
from florence_jax.processing.locations import without_locations
from florence_jax.results.rows import Row, UnsuitableRowError, image_name, values
from florence_jax.results.voc import voc_xml
from florence_jax.results.yolo import CLASSES, YoloClasses, count_labels, yolo_lines
from florence_jax.runtime.atomic_file import atomic_write
from florence_jax.runtime.directory_lock import directory_lock


def common_folder(sources: Iterable[str | Path], images: Iterable[str | Path]) -> Path:
    """The deepest folder that holds every folder among `sources` and every image.

    It does not change as a folder grows, so that a later run finds its files again.
    """
    folders = {os.path.abspath(source) for source in sources if os.path.isdir(source)}
    folders |= {os.path.dirname(os.path.abspath(image)) for image in images}
    return Path(os.path.commonpath(folders))


class SidecarPlaces:
    """The sidecar path of each image.

    Attributes:
        root: `common_folder` of all images.
        folder: where the sidecars go, mirroring the tree below `root`; None for beside the
            images.
        suffix: ".txt" or ".xml".
    """

    def __init__(self, root: Path, folder: Path | None, suffix: str) -> None:
        self.root, self.folder, self.suffix = root, folder, suffix

    @property
    def base(self) -> Path:
        """The folder of files about all images, such as the names of classes."""
        return self.folder or self.root

    def __call__(self, name: str) -> Path:
        """The path for the image called `name`."""
        stem, suffix = os.path.splitext(name)
        stem = stem if suffix.lower() in IMAGE_SUFFIXES else name
        if self.folder is None:
            return Path(f"{stem}{self.suffix}")
        return self.folder / f"{relative_name(stem, self.root)}{self.suffix}"


def relative_name(name: str, root: Path) -> str:
    """The name relative to `root`, with "/" between folders and no part that leads outside."""
    relative = os.path.relpath(os.path.abspath(name), root)
    if relative.split(os.sep)[0] == os.pardir:
        relative = inside(name)
    return Path(relative).as_posix()


def inside(name: str) -> str:
    """Drop the parts of a name that lead out of a folder, since rows of data choose it."""
    parts = Path(os.path.normpath(name)).parts
    return os.path.join("", *(part for part in parts if part not in (os.pardir, os.sep, "//")))


def check_places(
    places: SidecarPlaces,
    names: Iterable[str],
    inputs: Iterable[str | Path],
    reserved: Iterable[Path] = (),
) -> None:
    """Refuse images that share a sidecar, and sidecars that are an input, a folder or one of the
    `reserved` files.

    Raises:
        ValueError: names both.
    """
    taken: dict[str, str] = {}
    protected = {os.path.abspath(path) for path in inputs}
    kept_free = {os.path.abspath(path) for path in reserved}
    for name in names:
        path = os.path.abspath(places(name))
        before = taken.setdefault(path, name)
        if os.path.abspath(before) != os.path.abspath(name):
            raise ValueError(
                f"{before} and {name} would both write {path}: rename one of them, or write one "
                "file for all (--format jsonl, csv or coco)"
            )
        if path in protected:
            raise ValueError(
                f"the answers to {name} would replace {path}, which is an input: write them to "
                "another folder (--sidecar-dir DIR)"
            )
        if path in kept_free:
            raise ValueError(
                f"the answers to {name} would be in {path}, which has a meaning of its own: rename "
                "the image"
            )
        if os.path.isdir(path):
            raise ValueError(f"{path} is a folder, and the answers to {name} go there: move it")


def check_writable(folders: Iterable[Path]) -> None:
    """Check before the model runs that the folders can be written to.

    Raises:
        PermissionError: names the folder.
    """
    for folder in dict.fromkeys(folders):
        existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(
                f"{existing} cannot be written to: make it writable, or write to another folder "
                "(--sidecar-dir DIR)"
            )


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
        path = self._places(image_name(row))
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
                f"the images share no folder but {places.base}, where {CLASSES} would go: name a "
                "folder for the labels (--sidecar-dir DIR)"
            )
        check_writable([places.base])
    return there


def _check_existing(kind: str, places: SidecarPlaces, names: Sequence[str]) -> None:
    """Refuse to add to files of another format with the same suffix, or to unknown classes.

    Args:
        kind: the format to be written.
        names: the images whose sidecars exist and are kept.

    Raises:
        ValueError: names the file.
    """
    remedy = "pass --overwrite to replace it, or --sidecar-dir DIR for another folder"
    classes = None
    if kind == "yolo" and names:
        if not (places.base / CLASSES).exists():
            raise ValueError(
                f"{places(names[0])} exists and {places.base / CLASSES} does not: nothing says "
                f"what its class numbers mean. Put that back, {remedy}"
            )
        classes = YoloClasses(places.base).count
    for name in names if kind in ("yolo", "txt") else ():
        labels = count_labels(places(name), classes)
        if kind == "yolo" and labels is None:
            raise ValueError(
                f"{places(name)} exists and is no YOLO label file with the {classes} classes "
                f"of {places.base / CLASSES}: {remedy}"
            )
        if kind == "txt" and labels:
            raise ValueError(f"{places(name)} exists and is a YOLO label file: {remedy}")


def _text(row: Row) -> str:
    """The text of a row, as trainers of diffusion models read captions."""
    found = values(row)
    if len(found) != 1 or not isinstance(found[0], str):
        raise UnsuitableRowError(f"txt holds one answer in text, and this image has {found!r:.200}")
    return without_locations(found[0])
