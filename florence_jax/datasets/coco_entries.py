"""Entries of a COCO file: their data classes, the unit of coordinates, and doubtful boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from florence_jax.datasets.faults import BOX_FAULTS, BoxFault, Fault
from florence_jax.datasets.outlines import Outline
from florence_jax.datasets.text_rows import DatasetError

Corners = tuple[float, float, float, float]
Size = tuple[float, float]

# The key under which another layout, brought into COCO's form, says where an annotation is from.
PLACE = "_place"


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
        faults: each box that was cut or left out, or that repeats another.
    """

    images: list[CocoImage]
    objects: list[CocoObject]
    labels: list[str]
    orphans: list[tuple[str, Any]]
    notes: list[str]
    faults: list[Fault]


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float holds; booleans are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


# Boxes of polygons leave an image by rounding; pycocotools gets those unchanged.
_ROUNDING = 0.5
OUTSIDE = "lie outside of their images"


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
            "most boxes leave their images, and each bbox would fit as corners [x0, y0, x1, "
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
    again, boxes = len(repeated(objects)), sum(one.box is not None for one in objects)
    if again:
        yield (
            f"{again} of {boxes} annotations repeat another one of their image, box and "
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
            "no box reaches beyond pixel 100, and all images do: boxes in percent must be "
            "written in pixels"
        )


def box_fault(kind: BoxFault, where: str, image: CocoImage, corners: Sequence[float]) -> Fault:
    """The fault of a box of an image; `where` is its annotation."""
    shown = ", ".join(f"{side:.6g}" for side in corners)
    size = "" if image.size is None else f" of an image of {image.size[0]:g} x {image.size[1]:g}"
    text = f"{image.file_name}: the box ({shown}){size} {BOX_FAULTS[kind]}"
    return Fault(kind=kind, where=where, text=text)


def repeated(objects: Iterable[CocoObject]) -> list[CocoObject]:
    """The objects whose image, label and box an earlier one has."""
    seen: set[tuple[int, str | None, Corners]] = set()
    found = []
    for one in objects:
        if one.box is not None:
            key = one.image, one.label, one.box
            if key in seen:
                found.append(one)
            seen.add(key)
    return found


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


Unit = Literal["pixels", "shares"]

# A share beyond the edge, of a box that leaves its image or of rounding, stays below this.
_LARGEST_SHARE = 2.0
# A file in pixels may hold one box below a pixel in an image's corner among many others.
_STRAY = 1000


def unit_of(
    shapes: Iterable[tuple[str, Sequence[float]]],
    where: str,
    notes: list[str],
    *,
    what: str = "bbox",
) -> Unit:
    """The unit of all coordinates of one file.

    Shares are what Azure and others export in place of COCO's pixels. Coordinates are shares where
    none exceeds 2 and one is a fraction below 1: a share may exceed 1 where a box leaves its
    image. Whole numbers alone are pixels, as COCO defines them: [0, 0, 1, 1] is one pixel.

    Args:
        shapes: (annotation, its numbers).
        where: the file, for messages.
        notes: gets a sentence where the unit is a guess.
        what: the field, for messages.

    Raises:
        DatasetError: some shapes can only be shares, and others only pixels.
    """
    share: tuple[str, Sequence[float]] | None = None
    pixel: tuple[str, Sequence[float]] | None = None
    shares = count = 0
    tiny: tuple[str, Sequence[float]] | None = None
    over: tuple[str, Sequence[float]] | None = None
    for name, numbers in shapes:
        count += 1
        largest = max(map(abs, numbers), default=0.0)
        if largest > _LARGEST_SHARE:
            pixel = pixel or (name, numbers)
        elif what == "bbox" and not (numbers[2] > 0 and numbers[3] > 0):
            continue  # without area, whatever its unit
        elif any(0 < abs(number) < 1 for number in numbers):
            # A number between 1 and 2 with fractions below 1 beside it may be either.
            if largest <= 1.0:
                share, shares = share or (name, numbers), shares + 1
            else:
                over = over or (name, numbers)
        elif largest:
            tiny = tiny or (name, numbers)
    if pixel is None:
        if share is not None or over is not None:
            return "shares"
        if tiny is not None and what == "bbox":
            notes.append(
                f"{where}: every {what} is made of the numbers 0, 1 and 2, such as "
                f"{list(tiny[1])} of {tiny[0]}: they are taken for pixels, as COCO has them"
            )
        return "pixels"
    if share is not None and shares * _STRAY > count:
        raise DatasetError(
            f"{where}: the {what} of {share[0]} is {list(share[1])}, which are shares of the "
            f"image's sides, and that of {pixel[0]} is {list(pixel[1])!s:.80}, which are pixels: "
            "write all of the file in pixels"
        )
    return "pixels"
