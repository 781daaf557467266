"""YOLO: data.yaml, folders of images, and a text file of labels for each image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from florence_jax.datasets.object_set import Gathering, ObjectSet
from florence_jax.datasets.picture_files import common_folder, pictures_below
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.processing.image import ImageError
from florence_jax.processing.image.load import image_size
from florence_jax.runtime.text_file import TextFileError, read_text, split_lines

# A share may leave the image by rounding, and be cut; beyond this, it is in pixels.
_MOST = 2.0


def read_yolo(path: Path, split: str, image_root: Path | None) -> ObjectSet:
    """Read one split of a YOLO data set.

    A line is `class cx cy w h` in shares of the image's sides, or `class x1 y1 x2 y2 ...`, a
    polygon (four points are an oriented box), whose box is around it. With `kpt_shape`, key points
    follow the box and are left out. An image without a file of labels has no objects.

    Args:
        path: the data.yaml.
        split: a key of it, such as "train" or "val".

    Raises:
        DatasetError: it does not name the split's images, or no image has labels.
    """
    settings = _settings(path)
    names = _names(settings, path)
    images = list(_images(settings, path, split))
    root = image_root or common_folder(images, path.parent)
    gathering = Gathering(f"{path} {split}", root, labels=names.values(), files=[path])
    points = "kpt_shape" in settings
    without: list[Path] = []
    for image in images:
        labels = _label_file(image)
        name = str(image.relative_to(root)) if image.is_relative_to(root) else str(image)
        if labels is None:
            without.append(image)
            gathering.image(name, None)
            continue
        gathering.files.append(labels)
        try:
            _add(gathering, name, image, _lines(labels, names, points))
        except DatasetError as error:
            gathering.broken.append(str(error))
    if len(without) == len(images):
        raise DatasetError(
            f"{path}: none of the {len(images)} images of {split} has a file of labels, such as "
            f"{_candidates(without[0])[0]}: put the labels there"
        )
    if without:
        gathering.notes.append(
            f"{gathering.where}: {len(without)} images have no file of labels and count as images "
            f"without objects, such as {without[0].name}"
        )
    if points:
        gathering.notes.append(f"{gathering.where}: key points are left out")
    return gathering.done()


def _settings(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise DatasetError(f"{path} is not YAML: {' '.join(str(error).split()):.200}") from None
    except TextFileError as error:
        raise DatasetError(str(error)) from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    if not isinstance(content, Mapping) or "names" not in content:
        raise DatasetError(f"{path} has no `names` of classes: name a YOLO data set's data.yaml")
    return content


def _names(settings: Mapping[str, Any], path: Path) -> dict[int, str]:
    found = settings["names"]
    pairs = dict(enumerate(found)) if isinstance(found, list) else found
    if not isinstance(pairs, Mapping) or not all(type(number) is int for number in pairs):
        raise DatasetError(f"{path}: `names` is {found!r:.80}, expected a list, or names by number")
    if settings.get("nc") not in (None, len(pairs)):
        raise DatasetError(
            f"{path}: `nc` is {settings['nc']!r} and `names` has {len(pairs)}: mend one of them"
        )
    # YAML reads a class that is called 7, or no, as a number or a boolean.
    return {number: str(name).strip() for number, name in pairs.items()}


def _images(settings: Mapping[str, Any], path: Path, split: str) -> Iterator[Path]:
    given = settings.get(split)
    every = given if isinstance(given, list) else [given]
    places = [place for place in every if isinstance(place, str)]
    if not given or len(places) < len(every):
        has = ", ".join(key for key in ("train", "val", "test") if settings.get(key)) or "none"
        raise DatasetError(f"{path} names no images of the split {split!r}, it has {has}")
    for place in places:
        found = _existing(place, settings.get("path"), path)
        if found.is_file():
            yield from _listed(found)
            continue
        images = pictures_below(found)
        if not images:
            raise DatasetError(f"{path}: {found}, named as {split}, holds no image")
        yield from images


def _existing(place: str, root: Any, path: Path) -> Path:
    """The folder or list that `place` names; exports name it from other folders than their own."""
    folders = [path.parent]
    if isinstance(root, str):
        folders[:0] = [Path(root).expanduser(), path.parent / root]
    places = [place, place.removeprefix("../"), place.removeprefix("./")]
    for folder in folders:
        for one in places:
            if (folder / one).exists():
                return (folder / one).resolve()
    raise DatasetError(
        f"{path} names the images {place!r:.80}, and there is no {folders[-1] / place}: mend its "
        "`path`"
    )


def _listed(path: Path) -> Iterator[Path]:
    """The images that a text file lists, from its own folder on."""
    try:
        lines = split_lines(read_text(path))
    except TextFileError as error:
        raise DatasetError(str(error)) from None
    for line in lines:
        if line.strip():
            yield (path.parent / line.strip()).resolve()


def _candidates(image: Path) -> list[Path]:
    """Where the labels of an image may be: in `labels` for the last `images`, or beside it."""
    parts = list(image.parts)
    found = [image.with_suffix(".txt")]
    if "images" in parts[:-1]:
        at = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[at] = "labels"
        found.insert(0, Path(*parts).with_suffix(".txt"))
    return found


def _label_file(image: Path) -> Path | None:
    return next((one for one in _candidates(image) if one.is_file()), None)


def _lines(
    path: Path, names: Mapping[int, str], points: bool
) -> list[tuple[str, list[float], str]]:
    """(label, numbers, place) of each line."""
    try:
        lines = split_lines(read_text(path))
    except TextFileError as error:
        raise DatasetError(str(error)) from None
    found = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        place = f"{path}, line {number}"
        try:
            label, numbers = float(words[0]), list(map(float, words[1:]))
        except ValueError:
            raise DatasetError(f"{place} is {line!r:.60}, expected numbers") from None
        if not label.is_integer() or int(label) not in names:
            raise DatasetError(
                f"{place} has the class {words[0]:.20}, and `names` has {len(names)} classes: add "
                "its name to data.yaml, or remove the line"
            )
        numbers = numbers[:4] if points else numbers
        if not (len(numbers) == 4 or (len(numbers) >= 6 and len(numbers) % 2 == 0)):
            raise DatasetError(
                f"{place} has {len(numbers)} numbers behind the class, expected 4 of a box, or "
                "x and y of three points or more"
            )
        if not all(math.isfinite(one) and -1.0 <= one <= _MOST for one in numbers):
            raise DatasetError(
                f"{place} has {line!r:.60}: expected shares of the image's sides, 0 to 1"
            )
        found.append((names[int(label)], numbers, f"{path.name}, line {number}"))
    return found


def _add(
    gathering: Gathering, name: str, image: Path, lines: list[tuple[str, list[float], str]]
) -> None:
    if not lines:
        gathering.image(name, None)
        return
    try:
        width, height = image_size(image)
    except ImageError as error:
        raise DatasetError(
            f"{len(lines)} labels are shares of the sides of an image that cannot be read: {error}"
        ) from None
    number = gathering.image(name, (width, height))
    for label, numbers, place in lines:
        scaled = [one * (height if at % 2 else width) for at, one in enumerate(numbers)]
        if len(numbers) == 4:
            x, y, w, h = scaled
            gathering.box(number, label, (x - w / 2, y - h / 2, x + w / 2, y + h / 2), place)
        else:
            gathering.polygons(number, label, [scaled], place)
