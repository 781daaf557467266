"""CVAT: the XML of "CVAT for images 1.1". Its exports in COCO's layout are COCO files."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from florence_jax.datasets.object_set import Gathering, ObjectSet
from florence_jax.datasets.outlines import mask_polygons
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.datasets.xml_file import number_of, read_xml

_WITHOUT_BOX = ("points", "polyline", "cuboid", "skeleton", "tag")


def read_cvat(path: Path, split: str, image_root: Path | None) -> ObjectSet:
    """Read CVAT's annotations.xml.

    Boxes (turned ones too), polygons, ellipses and masks become boxes; points, polylines, cuboids,
    skeletons and tags are left out.

    Args:
        path: the XML file; its images are in `images` beside it, or beside it.
        split: a subset of the task; "" for all images.

    Raises:
        DatasetError: it is no such file, or has no image of the subset.
    """
    content = read_xml(path)
    images = content.findall("image")
    if content.tag != "annotations" or (not images and content.find("track") is None):
        raise DatasetError(f'{path} is no export "CVAT for images": it has no <image>')
    if content.find("track") is not None:
        raise DatasetError(
            f'{path} holds tracks of a video: export the task as "CVAT for images 1.1"'
        )
    if split:
        images = [image for image in images if image.get("subset") == split]
        if not images:
            raise DatasetError(f"{path} has no image of the subset {split!r}")
    beside = path.parent / "images"
    root = image_root or (beside if beside.is_dir() else path.parent)
    labels = [one.text.strip() for one in content.iterfind(".//label/name") if one.text]
    gathering = Gathering(str(path), root, labels=labels, files=[path])
    for image in images:
        try:
            _add(gathering, image, root)
        except DatasetError as error:
            gathering.broken.append(f"{path}: {error}")
    return gathering.done()


def _add(gathering: Gathering, image: Element, root: Path) -> None:
    name = image.get("name") or ""
    where = f"image {image.get('id') or name}"
    if not name:
        raise DatasetError(f"{where} has no name")
    width, height = (_number(image, side, where) for side in ("width", "height"))
    shapes = []
    for number, shape in enumerate(image, start=1):
        place = f"{where}, {shape.tag} {number}"
        label = (shape.get("label") or "").strip()
        if not label:
            raise DatasetError(f"{place} has no label")
        if shape.tag in _WITHOUT_BOX:
            gathering.leave_out(f"shapes of the type {shape.tag}", place)
        else:
            shapes.append((label, *_outline(shape, place), place))
    subset = f"{image.get('subset')}/{name}"
    if not (root / name).is_file() and (root / subset).is_file():
        name = subset
    number = gathering.image(name, (width, height))
    for label, corners, polygons, place in shapes:
        if corners is not None:
            gathering.box(number, label, corners, place)
        else:
            gathering.polygons(number, label, polygons, place)


def _outline(shape: Element, place: str) -> tuple[list[float] | None, list[list[float]]]:
    """The corners of a shape that is a box, else its polygons."""
    if shape.tag == "box":
        x0, y0, x1, y1 = (_number(shape, side, place) for side in ("xtl", "ytl", "xbr", "ybr"))
        angle = math.radians(_number(shape, "rotation", place, otherwise=0.0))
        if not angle:
            return [x0, y0, x1, y1], []
        return None, [_turned((x0, y0, x1, y1), angle)]
    if shape.tag == "polygon":
        return None, [_points(shape, place)]
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (_number(shape, side, place) for side in ("cx", "cy", "rx", "ry"))
        angle = math.radians(_number(shape, "rotation", place, otherwise=0.0))
        # The box around a turned ellipse.
        half_w = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
        half_h = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
        return [cx - half_w, cy - half_h, cx + half_w, cy + half_h], []
    if shape.tag == "mask":
        return None, _mask(shape, place)
    raise DatasetError(f"{place} is a shape that is not known")


def _turned(box: tuple[float, float, float, float], angle: float) -> list[float]:
    """The corners of a box turned clockwise about its centre."""
    x0, y0, x1, y1 = box
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    return [
        number
        for x, y in corners
        for number in (
            cx + (x - cx) * cos - (y - cy) * sin,
            cy + (x - cx) * sin + (y - cy) * cos,
        )
    ]


def _points(shape: Element, place: str) -> list[float]:
    pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
    if len(pairs) < 3 or any(len(pair) != 2 for pair in pairs):
        raise DatasetError(f"{place} has the points {shape.get('points')!r:.60}, expected x,y;x,y")
    return [number_of(text, f"a point of {place}") for pair in pairs for text in pair]


def _mask(shape: Element, place: str) -> list[list[float]]:
    """Polygons of a mask: run lengths along the rows of its own box, off first."""
    left, top, width, height = (
        int(_number(shape, side, place)) for side in ("left", "top", "width", "height")
    )
    runs = [int(number_of(text, f"the rle of {place}")) for text in _words(shape.get("rle"))]
    if width < 1 or height < 1 or min(runs, default=-1) < 0 or sum(runs) != width * height:
        raise DatasetError(f"{place} has an rle that does not fill {width} x {height} pixels")
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return [
        [number + (top if at % 2 else left) for at, number in enumerate(polygon)]
        for polygon in mask_polygons(mask)
    ]


def _words(text: str | None) -> list[str]:
    return [word for word in (text or "").replace(" ", "").split(",") if word]


def _number(element: Element, name: str, place: str, otherwise: float | None = None) -> float:
    text = element.get(name)
    if text is None and otherwise is not None:
        return otherwise
    return number_of(text, f"{name} of {place}")
