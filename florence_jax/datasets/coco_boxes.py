"""Boxes of a COCO file: their part inside the image, and boxes that are rarely what is meant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from florence_jax.datasets.coco_parts import CocoObject, Corners, Size

# Boxes of polygons leave an image by rounding; pycocotools gets those unchanged.
_ROUNDING = 0.5
OUTSIDE = "lie outside of their pictures"


def box_within(corners: Corners, size: Size | None) -> tuple[Corners, str]:
    """The part of a box inside its image, or the reason that there is none."""
    x0, y0, x1, y1 = corners
    if x1 < x0 or y1 < y0:
        return corners, "have a negative width or height"
    if x1 == x0 or y1 == y0:
        return corners, "have a width or height of 0"
    right, lower = size or (math.inf, math.inf)
    if x0 >= right or y0 >= lower or x1 <= 0 or y1 <= 0:
        return corners, OUTSIDE
    if min(x0, y0) >= -_ROUNDING and x1 <= right + _ROUNDING and y1 <= lower + _ROUNDING:
        return corners, ""
    return (max(x0, 0.0), max(y0, 0.0), min(x1, right), min(y1, lower)), ""


def other_boxes(
    placed: Sequence[tuple[Corners, Size | None]], outside: Sequence[str]
) -> str | None:
    """Why a file's boxes are not COCO's but corners, or pixels of other images; None if they are.

    Args:
        placed: each box as corners in pixels, with the size of its image.
        outside: names of the annotations whose boxes lie outside of their images.
    """
    leave = sum(_as_corners(*one) for one in placed)
    if leave * 2 > len(placed) and all(_fits_as_corners(*one) for one in placed):
        return (
            "most boxes leave their pictures, and each bbox would fit as corners [x0, y0, x1, "
            "y1]: write them as [x, y, width, height], as COCO has them"
        )
    if len(outside) > 1 and len(outside) * 2 > len(placed):
        return (
            f"{len(outside)} of {len(placed)} boxes {OUTSIDE}, such as {outside[0]}: they are "
            "not in pixels of the images' `width` and `height`; write them so"
        )
    return None


def doubts(
    objects: Sequence[CocoObject], placed: Sequence[tuple[Corners, Size | None]]
) -> Iterator[str]:
    """Notes about values that are allowed and rarely intended."""
    boxes = [one for one in objects if one.box is not None]
    again = len(boxes) - len({(one.image, one.label, one.box) for one in boxes})
    if again:
        yield (
            f"{again} of {len(boxes)} annotations repeat another one of their image, box and "
            "category alike: remove them, for no answer can find both"
        )
    # Both at once are no accident of a few small objects.
    if (
        len(placed) >= 4
        and all(size and min(size) > 110 for _, size in placed)
        and 50 < max(max(corners) for corners, _ in placed) <= 100
        and any(side % 1 for corners, _ in placed for side in corners)
    ):
        yield (
            "no box reaches beyond pixel 100, and all pictures do: boxes in percent must be "
            "written in pixels"
        )


def _fits_as_corners(corners: Corners, size: Size | None) -> bool:
    """Whether a box lies inside its image if its numbers are read as corners."""
    x, y, right, lower = corners
    x1, y1 = right - x, lower - y
    if size is None or not (0 <= x < x1 and 0 <= y < y1):
        return False
    return x1 <= size[0] + _ROUNDING and y1 <= size[1] + _ROUNDING


def _as_corners(corners: Corners, size: Size | None) -> bool:
    """Whether a box fits only when read as corners, and as it stands leaves its image by a wide
    margin.
    """
    if size is None or not _fits_as_corners(corners, size):
        return False
    return corners[2] > 1.02 * size[0] or corners[3] > 1.02 * size[1]
