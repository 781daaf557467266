"""File names of images, and of leftover files that only look like images."""

from __future__ import annotations

import os
from collections.abc import Iterable

# Fixed, and not what the installed Pillow registers: the same folder gives the same inputs on
# every host. A file that this host cannot decode is an error of its own, never skipped in silence.
IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"),
        *(".bmp", ".dib", ".gif", ".ico", ".png", ".apng", ".tga", ".webp"),
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        *(".pbm", ".pgm", ".pnm", ".ppm", ".pfm", ".tif", ".tiff"),
    }
)

# Folders that copy what is beside them: macOS's part of a zip, and Jupyter's backups.
LEFTOVER_FOLDERS = frozenset({"__MACOSX", ".ipynb_checkpoints"})
_LEFTOVER_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})


def is_image_name(name: str) -> bool:
    """Whether the name has an image's suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def leftover(path: str) -> str | None:
    """The kind of leftover that a path in a folder or archive is; None for a user's file.

    Args:
        path: relative to the folder or archive, so that folders above it do not count.
    """
    *folders, name = path.split("/")
    for folder in folders:
        if folder in LEFTOVER_FOLDERS:
            return f"in {folder}"
    if name.startswith("._"):
        return "._* (macOS)"
    return name if name.lower() in _LEFTOVER_FILES else None


def kind_of_other(name: str) -> str:
    """The category under which a skipped file that is no image is counted."""
    return os.path.splitext(name)[1].lower() or "without a suffix"


def paths_without_suffix_twice(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that differ in their suffixes alone, and so belong to one mask; None for none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            return other, name
    return None
