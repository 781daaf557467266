"""Fields of a COCO file's entries whose values vary: sizes, areas, polygons, captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from florence_jax.datasets.coco_entries import Corners, Size, is_number


def is_caption(record: Mapping[str, Any]) -> bool:
    """Whether an annotation describes its whole image, as in COCO's files of captions."""
    is_object = record.get("bbox") or record.get("segmentation") or "category_id" in record
    return not is_object and isinstance(record.get("caption"), str)


def size_of(image: Mapping[str, Any]) -> Size | None:
    return checked_size((image.get("width"), image.get("height")))


def checked_size(size: Any) -> Size | None:
    return size if size and all(is_number(side) and side > 0 for side in size) else None


def area_of(record: Mapping[str, Any], box: Corners, *, of_pixels: bool) -> float:
    area: Any = record.get("area")
    # Beside shares, an area of at most 1 is a share too.
    if is_number(area) and area > (0 if of_pixels else 1):
        return float(area)
    return (box[2] - box[0]) * (box[3] - box[1])


def polygons_of(segmentation: Any) -> Sequence[Any]:
    if not isinstance(segmentation, list):
        return ()
    return [segmentation] if segmentation and is_number(segmentation[0]) else segmentation
