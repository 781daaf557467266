"""Image files of a data set: those of a folder, and the one that an annotation means."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from florence_jax.processing.image.suffixes import IMAGE_SUFFIXES, is_image_name

# In the order in which they are tried: the usual ones first.
_USUAL = (".jpg", ".jpeg", ".png")
_ENDINGS = (*_USUAL, *sorted(IMAGE_SUFFIXES - set(_USUAL)))


def pictures_below(folder: Path) -> list[Path]:
    """The images of a folder and the folders in it, sorted."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if is_image_name(name) and not name.startswith(".")
    )


def picture_of(root: Path, name: str, stem: str) -> str:
    """The name below `root` of an annotation's image: as it is given, or else the annotation's own
    with an image's ending. The given one where neither is there.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    same = (f"{stem}{ending}" for ending in _ENDINGS)
    return next((one for one in (name, last, *same) if (root / one).is_file()), name)


def common_folder(paths: Iterable[Path], otherwise: Path) -> Path:
    """The deepest folder that all files are below."""
    folders = {str(path.parent) for path in paths}
    return Path(os.path.commonpath(folders)) if folders else otherwise
