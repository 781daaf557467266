"""LabelMe: a JSON file for each image, beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence_jax.datasets.coco_entries import is_number
from florence_jax.datasets.coco_fields import checked_size
from florence_jax.datasets.object_set import Gathering, ObjectSet
from florence_jax.datasets.picture_files import common_folder, picture_of
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.runtime.text_file import TextFileError, read_json

_POLYGONS = ("polygon", "rotation")


def read_labelme(path: Path, split: str, image_root: Path | None) -> ObjectSet:
    """Read a folder of LabelMe's files, or one of them.

    Rectangles, polygons, circles and masks become boxes; polygons of one label and `group_id` are
    one object. Points and lines have no box and are left out.

    Raises:
        DatasetError: the folder holds no such file.
    """
    del split  # LabelMe has none
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    read: list[tuple[Path, Mapping[str, Any], Path]] = []
    broken: list[str] = []
    for file in files:
        try:
            content = _content(file)
        except DatasetError as error:
            broken.append(str(error))
            continue
        if content is not None:
            read.append((file, content, _picture(file, content, image_root)))
    if not read and not broken:
        raise DatasetError(f"{path} holds no LabelMe file: expected .json with `shapes`")
    root = image_root or common_folder((image for _, _, image in read), path)
    gathering = Gathering(str(path), root, broken=broken)
    for file, content, image in read:
        gathering.files.append(file)
        try:
            found = [_checked(one, f"{file.name}, shape {n}") for n, one in _shapes(content)]
        except DatasetError as error:
            gathering.broken.append(str(error))
            continue
        size = checked_size((content.get("imageWidth"), content.get("imageHeight")))
        _add(gathering, gathering.image(os.path.relpath(image, root), size), found)
    return gathering.done()


def _content(file: Path) -> Mapping[str, Any] | None:
    """The content of one of LabelMe's files; None for another JSON file."""
    try:
        content = read_json(file)
    except TextFileError as error:
        raise DatasetError(str(error)) from None
    is_one = isinstance(content, Mapping) and isinstance(content.get("shapes"), list)
    return content if is_one else None


def _picture(file: Path, content: Mapping[str, Any], image_root: Path | None) -> Path:
    """The image of a file; `imagePath` starts from the file's folder, and may be Windows'."""
    name = str(content.get("imagePath") or file.stem).replace("\\", "/")
    folder = image_root or file.parent
    return Path(os.path.normpath(folder / picture_of(folder, name, file.stem)))


def _shapes(content: Mapping[str, Any]) -> list[tuple[int, Any]]:
    return list(enumerate(content["shapes"], start=1))


def _checked(shape: Any, place: str) -> tuple[str, Mapping[str, Any], list[list[float]], str]:
    """(label, shape, points, place)."""
    label = shape.get("label") if isinstance(shape, Mapping) else None
    if not isinstance(label, str) or not label.strip():
        raise DatasetError(f"{place} has the label {label!r:.40}, expected a text")
    points = shape.get("points")
    if not isinstance(points, list) or not all(_is_point(point) for point in points):
        raise DatasetError(f"{place} has the points {points!r:.60}, expected lists of x and y")
    return label.strip(), shape, points, place


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(map(is_number, point))


def _add(
    gathering: Gathering,
    image: int,
    shapes: list[tuple[str, Mapping[str, Any], list[list[float]], str]],
) -> None:
    grouped: dict[tuple[str, Any], tuple[list[list[float]], str]] = {}
    for number, (label, shape, points, place) in enumerate(shapes):
        # Files of before version 4 have no `shape_type`.
        kind = shape.get("shape_type") or "polygon"
        if kind in _POLYGONS and len(points) >= 3:
            group = shape.get("group_id")
            key = (label, f"shape {number}" if group is None else f"group {group}")
            grouped.setdefault(key, ([], place))[0].append([x for point in points for x in point])
        elif kind in ("rectangle", "mask") and len(points) >= 2:
            xs, ys = zip(*points, strict=True)
            # The second corner of a mask is its last pixel.
            more = 1 if kind == "mask" else 0
            box = (min(xs), min(ys), max(xs) + more, max(ys) + more)
            gathering.box(image, label, box, place)
        elif kind == "circle" and len(points) == 2:
            (x, y), edge = points[0], points[1]
            radius = math.dist(points[0], edge)
            gathering.box(image, label, (x - radius, y - radius, x + radius, y + radius), place)
        elif kind in (*_POLYGONS, "rectangle", "mask", "circle"):
            gathering.fault(
                "shape", place, f"the {kind} {label!r} has {len(points)} points and is left out"
            )
        else:
            gathering.leave_out(f"shapes of the type {kind}", place)
    for (label, _), (polygons, place) in grouped.items():
        gathering.polygons(image, label, polygons, place)
