"""Find the image files that folders, lists and names on a command line stand for."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from florence_jax.processing.image.suffixes import (
    IMAGE_SUFFIXES,
    is_image_name,
    kind_of_other,
    leftover,
)
from florence_jax.runtime.text_file import check_regular, missing_file_hint, numbered_lines

# What only runs into a directory read.
DATA_SUFFIXES = frozenset({".jsonl", ".parquet", ".tar"})
_COMPRESSED = frozenset(
    {".7z", ".bz2", ".gz", ".rar", ".tbz2", ".tgz", ".txz", ".xz", ".zip", ".zst"}
)
# Kinds of skipped files that are told one by one.
_SHOWN = 12

# Takes a sentence about skipped files.
Say = Callable[[str], None]


@dataclass
class FolderContent:
    """The images in a folder and below, and what else is there.

    Attributes:
        images: their paths, sorted.
        skipped: how many files of each kind are not among them.
    """

    images: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def find_images(sources: Iterable[str | Path], say: Say | None = None) -> list[Path]:
    """Image files named by `sources`, in order.

    A directory stands for the images in it and below it, sorted by name; a `.txt` file for the
    paths on its lines, relative to the working directory. Anything else is an image file.

    Args:
        say: told how many files of a directory are skipped, by kind.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a directory or list holds no image, a directory cannot be read, or a source is
            no list of images, an archive, a pipe or device, or a URL.
    """
    found: list[Path] = []
    for source, images in named_images(sources, say):
        if images is None:
            raise ValueError(
                f"{source} holds rows of data, which `florence-jax predict --output-dir DIR` "
                "reads: name images, directories or lists here"
            )
        found += map(Path, images)
    return found


def named_images(
    sources: Iterable[str | Path], say: Say | None = None
) -> Iterator[tuple[Path, list[str] | None]]:
    """Each source with the paths of its images, as `find_images`; None for a file of rows."""
    sources = list(sources)
    check_places(sources)
    for source in map(Path, sources):
        if source.is_dir():
            yield source, images_in(source, say)
        elif source.suffix.lower() == ".txt":
            yield source, images_listed(source)
        else:
            yield source, None if source.suffix.lower() in DATA_SUFFIXES else [str(source)]


def check_places(places: Iterable[str | Path]) -> None:
    """Refuse what cannot be an input, before anything is read.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: it is a URL, a compressed file or archive, or no regular file or directory.
    """
    places = list(places)
    for place in places:
        if re.match(r"\w+://", str(place)):
            raise ValueError(
                f"{place} is a URL, and only files are read: mount the bucket (gcsfuse, s3fs) or "
                "copy what is needed, and name the directory"
            )
    for place in map(Path, places):
        if place.is_dir():
            continue
        try:
            check_regular(place)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{place} does not exist{missing_file_hint(place)}: expected images, a directory, "
                "a list (.txt) or a file of rows (.jsonl, .parquet, .tar)"
            ) from None
        if place.suffix.lower() in _COMPRESSED:
            raise ValueError(
                f"{place} is a compressed file: unpack it first, and name the directory or the "
                ".tar (images hardly shrink)"
            )


def images_in(directory: Path, say: Say | None = None) -> list[str]:
    """The images in a directory and below, sorted by name.

    Raises:
        ValueError: there is none, or a directory cannot be read.
    """
    content = folder_content(directory)
    skipped = skipped_sentence(content.skipped)
    if not content.images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(
            f"the directory {directory} holds no image ({kinds}){skipped and f'; {skipped}'}; "
            f"files of rows are named themselves, as in {directory}/*.tar"
        )
    if say is not None and skipped:
        say(f"{directory}: {len(content.images)} images, {skipped}")
    return content.images


def images_listed(path: Path) -> list[str]:
    """The paths on a list's lines, relative to the working directory.

    Raises:
        ValueError: there is none, or the file is no UTF-8 text.
    """
    # Not `strip()`: it takes away U+0085 and U+2028 too, which a name may end with.
    found = [line.strip(" \t\r\f\v") for _, line in numbered_lines(path)]
    if not found:
        raise ValueError(f"the list {path} names no image: expected one path per line")
    return found


def folder_content(directory: Path) -> FolderContent:
    """The images in a directory and below, and a count of everything else.

    Linked directories are read like others, each directory once, and links that lead to a
    directory above are skipped. So are macOS's and Jupyter's leftovers.

    Raises:
        ValueError: a directory cannot be read.
    """
    content = FolderContent()
    for folder, names in _folders(directory, content.skipped):
        below = os.path.relpath(folder, directory)
        for name in names:
            kind = leftover(name if below == "." else f"{below}/{name}")
            if kind is None and is_image_name(name):
                content.images.append(os.path.join(folder, name))
            else:
                content.skipped[kind or kind_of_other(name)] += 1
    content.images.sort()
    return content


def skipped_sentence(skipped: Counter[str]) -> str:
    """How many files were skipped, by kind; empty if none was."""
    if not skipped:
        return ""
    ordered = sorted(skipped.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [f"{count} {kind}" for kind, count in ordered[:_SHOWN]]
    if len(skipped) > _SHOWN:
        shown.append(f"{len(skipped) - _SHOWN} more kinds")
    return f"skipped {skipped.total()}: {', '.join(shown)}"


def _folders(directory: Path, skipped: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Each directory once, with the names of its files; linked directories come last."""
    top = Path(os.path.realpath(directory))
    seen: set[tuple[int, int]] = set()
    waiting = [str(directory)]
    while waiting:
        start = waiting.pop(0)
        if start != str(directory) and top.is_relative_to(os.path.realpath(start)):
            skipped["linked folders that lead to a folder above"] += 1
            continue
        for folder, folders, names in os.walk(start, onerror=_refuse):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                skipped["linked folders that were read already"] += 1
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            waiting += [os.path.join(folder, name) for name in sorted(linked)]
            folders[:] = sorted(set(folders) - set(linked))
            yield folder, names


def _refuse(error: OSError) -> None:
    raise ValueError(
        f"the directory {error.filename} cannot be read ({error.strerror}): its images would be "
        "missing. Change its rights, or name the directories that can be read"
    ) from error
