"""Detect whether a COCO file's coordinates are pixels or fractions of the image's sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from florence_jax.datasets.errors import DatasetError

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
            f"picture's sides, and that of {pixel[0]} is {list(pixel[1])!s:.80}, which are pixels: "
            "write all of the file in pixels"
        )
    return "pixels"
