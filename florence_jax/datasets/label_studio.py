"""Label Studio: its exports JSON and JSON-MIN."""

from __future__ import annotations

import math
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florence_jax.datasets.coco_entries import is_number
from florence_jax.datasets.coco_fields import checked_size
from florence_jax.datasets.object_set import Gathering, ObjectSet
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.processing.image.suffixes import is_image_name
from florence_jax.runtime.text_file import TextFileError, read_json

_KINDS = ("rectanglelabels", "polygonlabels", "ellipselabels")
# What an upload puts before a file's name.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")


def read_label_studio(path: Path, split: str, image_root: Path | None) -> ObjectSet:
    """Read an export of Label Studio.

    Rectangles (turned ones too), polygons and ellipses become boxes; results of other types are
    left out. Of several annotations of an image, the first that was not skipped counts, or the one
    marked as ground truth.

    Args:
        path: the JSON file; its images are below its folder, with or without the eight digits that
            an upload puts before their names.

    Raises:
        DatasetError: it is no such file.
    """
    del split  # Label Studio has none
    try:
        tasks = read_json(path)
    except TextFileError as error:
        raise DatasetError(str(error)) from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    if not isinstance(tasks, list):
        raise DatasetError(f"{path} holds a {type(tasks).__name__}, expected a list of tasks")
    root = image_root or path.parent
    gathering = Gathering(str(path), root, files=[path])
    for number, task in enumerate(tasks):
        try:
            _add(gathering, task, f"task {number}", root)
        except DatasetError as error:
            gathering.broken.append(f"{path}: {error}")
    return gathering.done()


def _add(gathering: Gathering, task: Any, where: str, root: Path) -> None:
    if not isinstance(task, Mapping):
        raise DatasetError(f"{where} is {task!r:.60}, expected an object")
    if "id" in task:
        where = f"{where} (id {task['id']!r:.20})"
    data = task.get("data", task)
    images = [text for text in data.values() if isinstance(text, str) and _names_a_picture(text)]
    if not images:
        raise DatasetError(f"{where} names no image: {', '.join(map(str, data))!s:.80}")
    results = _results(gathering, task, where)
    if results is None:
        gathering.leave_out("tasks without an annotation", where)
        return
    shapes, size = [], None
    for number, result in enumerate(results, start=1):
        place = f"{where}, result {number}"
        value = result.get("value", result)
        sides = checked_size((result.get("original_width"), result.get("original_height")))
        found = next((kind for kind in _KINDS if isinstance(value.get(kind), list)), None)
        if found is None or not value[found]:
            gathering.leave_out(f"results of the type {_type_of(result)}", place)
            continue
        if sides is None:
            raise DatasetError(f"{place} has no original_width and original_height, expected both")
        size = sides
        shapes.append((str(value[found][0]).strip(), found, value, sides, place))
    image = gathering.image(_file_name(images[0], root), size)
    for label, kind, value, sides, place in shapes:
        box, polygon = _outline(kind, value, sides, place)
        if polygon is not None:
            gathering.polygons(image, label, [polygon], place)
        else:
            gathering.box(image, label, box, place)


def _results(
    gathering: Gathering, task: Mapping[str, Any], where: str
) -> Sequence[Mapping[str, Any]] | None:
    """The results of a task; None where it was skipped or nobody has annotated it."""
    if "data" in task:
        every = task.get("annotations") or task.get("completions") or []
        kept = [one for one in every if isinstance(one, Mapping) and not one.get("was_cancelled")]
        kept.sort(key=lambda one: not one.get("ground_truth"))
        if len(kept) > 1:
            gathering.leave_out("further annotations of the same task", where)
        found = kept[0].get("result") if kept else None
        if found is None:
            return None
    else:
        found = [
            one
            for value in task.values()
            if isinstance(value, list)
            for one in value
            if isinstance(one, Mapping)
        ]
        if not found and "annotation_id" not in task:
            return None
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise DatasetError(f"{where} has the result {found!r:.60}, expected a list of objects")
    return found


def _type_of(result: Mapping[str, Any]) -> str:
    if isinstance(result.get("type"), str):
        return result["type"]
    return next((key for key in result if str(key).endswith("labels")), "unknown")


def _outline(
    kind: str, value: Mapping[str, Any], size: tuple[float, float], place: str
) -> tuple[tuple[float, float, float, float], list[float] | None]:
    """The box of a shape in pixels, or its polygon; a shape is in percent of the sides."""
    width, height = size
    if kind == "polygonlabels":
        points = value.get("points")
        points = points if isinstance(points, list) else []
        if len(points) < 3 or not all(len(p) == 2 and all(map(is_number, p)) for p in points):
            raise DatasetError(f"{place} has the points {points!r:.60}, expected three or more")
        return (0, 0, 0, 0), [
            number for x, y in points for number in (x * width / 100, y * height / 100)
        ]
    names = ("x", "y", "width", "height")
    names = names if kind == "rectanglelabels" else ("x", "y", "radiusX", "radiusY")
    x, y, w, h = (
        _percent(value, name, place) * side
        for name, side in zip(names, (width, height, width, height), strict=True)
    )
    angle = math.radians(float(value.get("rotation") or 0.0))
    cos, sin = math.cos(angle), math.sin(angle)
    if kind == "ellipselabels":
        half_w, half_h = math.hypot(w * cos, h * sin), math.hypot(w * sin, h * cos)
        return (x - half_w, y - half_h, x + half_w, y + half_h), None
    if not angle:
        return (x, y, x + w, y + h), None
    # About the upper left corner, clockwise.
    corners = ((0.0, 0.0), (w, 0.0), (w, h), (0.0, h))
    return (0, 0, 0, 0), [
        number
        for dx, dy in corners
        for number in (x + dx * cos - dy * sin, y + dx * sin + dy * cos)
    ]


def _percent(value: Mapping[str, Any], name: str, place: str) -> float:
    number = value.get(name)
    if not is_number(number):
        raise DatasetError(f"{place} has the {name} {number!r:.40}, expected a number")
    return float(number or 0) / 100


def _names_a_picture(text: str) -> bool:
    return any(is_image_name(name) for name in _paths(text))


def _paths(text: str) -> Iterator[str]:
    """The file names in a task's URL: its path, and that of local files in its query."""
    url = urllib.parse.urlsplit(text)
    for _, value in urllib.parse.parse_qsl(url.query):
        yield value
    yield urllib.parse.unquote(url.path)


def _file_name(text: str, root: Path) -> str:
    """The name below `root` of the image that a task's URL names."""
    path = next(name for name in _paths(text) if is_image_name(name)).lstrip("/")
    parts = path.split("/")
    last = parts[-1]
    names = ["/".join(parts[at:]) for at in range(len(parts))]
    names += [f"images/{last}", _UPLOADED.sub("", last), f"images/{_UPLOADED.sub('', last)}"]
    return next((name for name in names if (root / name).is_file()), last)
