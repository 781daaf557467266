"""Data classes of a COCO file: images and objects, coordinates in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from florence_jax.datasets.outlines import Outline

Corners = tuple[float, float, float, float]
Size = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoImage:
    """One entry of `images`.

    Attributes:
        id: as the file has it.
        file_name: as the file has it.
        size: (width, height) in pixels; None where neither the file nor the image says it.
        caption: of RefCOCO's conversions, what the image's annotations are called.
    """

    id: int | str
    file_name: str
    size: Size | None
    caption: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoObject:
    """One entry of `annotations`.

    Attributes:
        number: its place in the file, from 1.
        image: index of its image in `CocoFile.images`.
        label: name of its category; None where it has none.
        box: (x0, y0, x1, y1) in pixels; None for a caption of the whole image.
        outline: its polygons in pixels; None where they were not asked for or there are none.
        area: in square pixels.
        crowd: whether it stands for several things at once (`iscrowd`).
        caption: what it is called in words.
    """

    number: int
    image: int
    label: str | None
    box: Corners | None
    outline: Outline | None
    area: float
    crowd: bool
    caption: str | None


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """A COCO file.

    Attributes:
        images, objects: in the file's order.
        labels: names of the categories, each once, in the file's order.
        orphans: (annotation, image id) of annotations whose image is not in the file; they are not
            among the objects.
        notes: sentences for the user about what was joined, cut or left out.
    """

    images: list[CocoImage]
    objects: list[CocoObject]
    labels: list[str]
    orphans: list[tuple[str, Any]]
    notes: list[str]


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float holds; booleans are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False
