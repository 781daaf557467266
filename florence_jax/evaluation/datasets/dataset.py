"""The type of a data set, and helpers that find and read its files or name what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence_jax.batch.job import Item
from florence_jax.datasets.coco_entries import is_number
from florence_jax.runtime import text_file


class LayoutError(ValueError):
    """A data set is not as expected; the message names the file, the fault and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A split of a data set.

    Attributes:
        items: one item per prompt, without the prompt. `extra["truth"]` is the truth for scoring,
            as JSON; `extra["input"]`, if present, the text that goes into the prompt; further
            columns are copied to the rows.
        files: the annotation files that were read.
        truth: data that scoring needs beside the rows, such as COCO's own content.
        notes: sentences for the user about what was joined, cut or left out.
    """

    items: Sequence[Item]
    files: Sequence[Path]
    truth: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def find_file(root: Path, names: Iterable[str], where: str) -> Path:
    """The first of `names` below `root` that exists.

    Raises:
        LayoutError: none does; the message has them all, and `where` the layout comes from.
    """
    return _find(root, names, where, Path.is_file, "file")


def find_folder(root: Path, names: Iterable[str], where: str) -> Path:
    """As `find_file`, for a folder of images."""
    return _find(root, names, where, Path.is_dir, "folder")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        LayoutError: it cannot be read, or is not JSON.
    """
    try:
        return text_file.read_json(path)
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror}; check the path and its rights") from None
    except text_file.TextFileError as error:
        raise LayoutError(f"{error}: download it again, or mend it") from None


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        LayoutError: it cannot be read, or is not UTF-8.
    """
    try:
        return text_file.read_text(path)
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror}; check the path and its rights") from None
    except text_file.TextFileError as error:
        raise LayoutError(str(error)) from None


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of each line of a text file that is not blank.

    Raises:
        LayoutError: as `read_text`.
    """
    for number, line in enumerate(text_file.split_lines(read_text(path)), start=1):
        if line.strip():
            yield number, line


def entries(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    """The list of objects under `key`, or the content itself where that is one.

    Raises:
        LayoutError: there is no such list, or it is empty.
    """
    found = content.get(key) if isinstance(content, Mapping) else content
    if not isinstance(found, list) or not found or not isinstance(found[0], dict):
        raise LayoutError(f"{path} holds no list `{key}` of objects: is it another release's file?")
    for number, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise LayoutError(f"{path}: entry {number} of `{key}` is {entry!r:.80}, no object")
    return found


def value_of(entry: Mapping[str, Any], key: str, path: Path) -> Any:
    """`entry[key]`.

    Raises:
        LayoutError: the entry lacks it.
    """
    if key not in entry:
        raise LayoutError(f"{path}: an entry lacks `{key}`, it has {', '.join(sorted(entry))}")
    return entry[key]


def text_of(entry: Mapping[str, Any], key: str, path: Path) -> str:
    """`entry[key]`, which is a text.

    Raises:
        LayoutError: the entry lacks it, or has something else there.
    """
    return check_text(value_of(entry, key, path), key, path)


def check_text(value: Any, name: str, path: Path) -> str:
    """The value itself.

    Raises:
        LayoutError: it is no text.
    """
    if not isinstance(value, str):
        raise LayoutError(f"{path}: a `{name}` is {value!r:.80}, expected a text")
    return value


def box_of(entry: Mapping[str, Any], path: Path) -> list[float]:
    """The corners x0, y0, x1, y1 of `entry["bbox"]`, which has x, y, width and height in pixels.

    Raises:
        LayoutError: it is not four numbers.
    """
    box = value_of(entry, "bbox", path)
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise LayoutError(f"{path}: a `bbox` is {box!r:.80}, expected x, y, width, height")
    return corners(box)


def corners(box: Sequence[float]) -> list[float]:
    """COCO's x, y, width, height as x0, y0, x1, y1."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _find(root: Path, names: Iterable[str], where: str, test: Any, kind: str) -> Path:
    names = list(names)
    for name in names:
        if test(root / name):
            return root / name
    if not root.is_dir():
        raise LayoutError(f"{root} is no folder: --data names the folder that holds {names[0]}")
    listed = ", ".join(names[:6])
    raise LayoutError(f"{root} holds no {kind} {listed}. {where}")
