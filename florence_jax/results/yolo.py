"""YOLO: a text file for each image, and the files that name the classes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from florence_jax.results.instances import Instance
from florence_jax.results.rows import Row, class_name, shapes, size_of
from florence_jax.runtime.atomic_file import atomic_write
from florence_jax.runtime.text_file import TextFileError, read_text, split_lines

CLASSES, DATA = "classes.txt", "data.yaml"

_OURS = "# Written by florence-jax beside classes.txt."
_LINE = re.compile(r"(\d+)((?: -?[\d.]+(?:e-?\d+)?){4,})\s*")


class YoloClasses:
    """`classes.txt` and `data.yaml` of a folder: numbers once given are kept, new ones follow.

    Both are replaced before a label file uses a new number, so that no number is ever without a
    name, however a run ends.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError: `classes.txt` names a class twice.
        """
        self._folder = folder
        path = folder / CLASSES
        names = [class_name(line) for line in split_lines(read_text(path))] if path.exists() else []
        self._numbers = {name: number for number, name in enumerate(names)}
        if len(self._numbers) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{path} names the class {twice!r} twice: leave one out")

    @property
    def count(self) -> int:
        return len(self._numbers)

    def number(self, label: str) -> int:
        """The class of a label; a new one is in the files when this returns."""
        name = class_name(label)
        if name not in self._numbers:
            self._numbers[name] = len(self._numbers)
            self.save()
        return self._numbers[name]

    def save(self) -> None:
        """Write both files; a `data.yaml` that somebody else wrote stays as it is."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{name}\n" for name in self._numbers)
        atomic_write(self._folder / CLASSES, lines)
        if not self.has_foreign_data():
            atomic_write(self._folder / DATA, self._data())

    def has_foreign_data(self) -> bool:
        """Whether the folder has a `data.yaml` that this library did not write."""
        path = self._folder / DATA
        return path.exists() and not path.read_bytes().startswith(_OURS.encode())

    def _data(self) -> str:
        names = "".join(
            f"  {number}: {_yaml_text(name)}\n" for name, number in self._numbers.items()
        )
        folder = _yaml_text(str(self._folder.absolute()))
        listed = f"names:\n{names}" if names else "names: {}\n"
        return f"{_OURS}\npath: {folder}\ntrain: .\nval: .\nnc: {self.count}\n{listed}"


def yolo_lines(row: Row, classes: YoloClasses) -> str:
    """Write the row as YOLO labels, in fractions of the image's width and height.

    A box is `class cx cy w h`, and an outline `class x1 y1 x2 y2 ...` as YOLO's segmentation has
    it; several parts of one object are joined by lines without width.

    Raises:
        UnsuitableRowError: the row is an error, or holds text.
    """
    # Refuses a row that is an error, which has no size.
    found = shapes(row, "yolo")
    size = np.array(size_of(row), float)
    lines = []
    for instance in found:
        numbers = _outline(instance, size) if instance.kind == "polygons" else _box(instance, size)
        if len(numbers):
            shares = " ".join(f"{number:.6f}" for number in numbers)
            lines.append(f"{classes.number(instance.label)} {shares}\n")
    return "".join(lines)


def count_labels(path: Path, classes: int | None = None) -> int | None:
    """The number of YOLO labels in a file; None if it holds anything else.

    Args:
        path: the file.
        classes: labels with this class number or a higher one are something else.
    """
    try:
        lines = [line for line in split_lines(read_text(path)) if line.strip()]
    except (TextFileError, OSError):
        return None
    found = [_LINE.fullmatch(line) for line in lines]
    labels = [one for one in found if one and (classes is None or int(one[1]) < classes)]
    return len(labels) if len(labels) == len(lines) else None


def _box(instance: Instance, size: np.ndarray) -> np.ndarray:
    near, far = np.clip(np.reshape(instance.bounds(), (2, 2)) / size, 0, 1)
    return np.concatenate([(near + far) / 2, far - near])


def _outline(instance: Instance, size: np.ndarray) -> np.ndarray:
    parts = instance.polygons()
    if not parts:
        return np.empty(0)
    if len(parts) == 1:
        return np.clip(parts[0] / size, 0, 1).ravel()
    # Each part is closed, and the way back to the first goes over the ends of those before it.
    closed = [np.concatenate([part, part[:1]]) for part in parts]
    back = [part[:1] for part in parts[-2:0:-1]]
    return np.clip(np.concatenate([*closed, *back]) / size, 0, 1).ravel()


def _yaml_text(text: str) -> str:
    """A double-quoted YAML scalar."""
    escaped = (
        f"\\{letter}"
        if letter in '"\\'
        else letter
        if letter.isprintable()
        else f"\\U{ord(letter):08x}"
        for letter in text
    )
    return f'"{"".join(escaped)}"'
