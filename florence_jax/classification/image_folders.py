"""Data sets in ImageNet's layout, and its other labels: ReaL and ImageNet-V2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from florence_jax.processing import ImageError
from florence_jax.processing.image.suffixes import LEFTOVER_FOLDERS, is_image_name, leftover
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, TextFileError, read_json

_VALIDATION = re.compile(r".*_val_(\d{8})")


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes.

    Attributes:
        paths: the files.
        labels: the classes that count as right for each file, ascending; one but for ReaL, where
            there may be several or none.
        names: of the classes.
    """

    paths: tuple[Path, ...]
    labels: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]


def read_folders(directory: str | Path, names: Sequence[str] | None = None) -> LabelledImages:
    """A folder for each class, with images in it or below.

    Classes are numbered in the order of their names, as torchvision and timm do. Folders that are
    called 0, 1, 2 and so on, as in ImageNet-V2, are numbered by their names.

    Args:
        directory: holds the folders.
        names: the classes of a trained model in their order, where the directory may lack some.

    Raises:
        ImageError: there are no folders or images, or folders that are in no list.
    """
    root = Path(directory).expanduser()
    inside = root.iterdir() if root.is_dir() else ()
    found = sorted(
        path.name for path in inside if path.is_dir() and path.name not in LEFTOVER_FOLDERS
    )
    if not found:
        raise ImageError(f"{root} has no folders: expected one for each class, with its images")
    numbered = all(name.isdecimal() and str(int(name)) == name for name in found)
    if names is None and numbered:
        names = [str(number) for number in range(max(map(int, found)) + 1)]
    order = {name: number for number, name in enumerate(found if names is None else names)}
    if names is not None and len(order) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ImageError(f"the class name {twice!r} occurs twice: names of classes must differ")
    unknown = [name for name in found if name not in order]
    if unknown:
        raise ImageError(
            f"{root} has folders of classes that the model does not know: {', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''}; it knows {len(order)}"
        )
    pairs = [
        (path, (order[name],))
        for name in found
        for path in sorted((root / name).rglob("*"))
        if is_image_name(path.name) and not leftover(path.relative_to(root).as_posix())
    ]
    if not pairs:
        raise ImageError(f"{root}: no folder of a class has an image in it")
    paths, labels = zip(*pairs, strict=True)
    return LabelledImages(paths, labels, tuple(order))


def with_real_labels(images: LabelledImages, file: str | Path) -> LabelledImages:
    """ImageNet's validation images with the labels of "Are we done with ImageNet?".

    Args:
        images: files whose names end in `_val_` and eight digits.
        file: `real.json`, a list of 50,000 lists of classes; an empty one is not scored.

    Raises:
        ImageError: the file has another form, or an image has no entry in it.
    """
    try:
        content = read_json(file, max_bytes=MAX_SETTINGS_BYTES)
    except TextFileError as error:
        raise ImageError(f"{file} is no ReaL label file: {error}") from error
    entries = isinstance(content, list) and all(isinstance(one, list) for one in content)
    if not entries or not all(type(label) is int for one in content for label in one):
        raise ImageError(f"{file} is no ReaL label file: expected a list of lists of classes")
    labels = []
    for path in images.paths:
        found = _VALIDATION.fullmatch(path.stem)
        number = int(found[1]) if found else 0
        if not 1 <= number <= len(content):
            raise ImageError(
                f"{path}: expected the name of an ImageNet validation image from "
                f"ILSVRC2012_val_00000001 to {len(content)}, as {file} has labels by these numbers"
            )
        labels.append(tuple(sorted(content[number - 1])))
    return LabelledImages(images.paths, tuple(labels), images.names)
