"""Paths of sidecar files: beside their images, or below a directory that mirrors the tree."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from florence_jax.processing.image.suffixes import IMAGE_SUFFIXES


def common_folder(sources: Iterable[str | Path], pictures: Iterable[str | Path]) -> Path:
    """The deepest folder that holds every folder among `sources` and every image.

    It does not change as a folder grows, so that a later run finds its files again.
    """
    folders = {os.path.abspath(source) for source in sources if os.path.isdir(source)}
    folders |= {os.path.dirname(os.path.abspath(picture)) for picture in pictures}
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
                "the picture"
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
