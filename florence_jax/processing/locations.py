"""Convert between pixels, the 1000 location bins of each axis, and ``<loc_N>`` text.

Florence-2 writes coordinates as tokens ``<loc_0>`` ... ``<loc_999>``: each axis of the image is cut
into 1000 equal bins, a pixel coordinate falls into one by floor, and a bin stands for its centre
(Florence-2 paper, section 3; ``BoxQuantizer`` and ``CoordinatesQuantizer`` of the reference).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

BINS = 1000

_LOCATION = re.compile(r"<loc_([0-9]++)>")


def quantize(points: ArrayLike, size: Sequence[float]) -> np.ndarray:
    """Pixel coordinates to location bins: floor, then clamp to 0..999.

    Args:
        points: float[..., 2] points ``x, y`` or float[..., 4] boxes ``x0, y0, x1, y1``, in pixels.
        size: image ``(width, height)`` in pixels.

    Returns:
        int32[..., 2 or 4] bins. Integer pixels fall into their bin exactly: the arithmetic is
        ``x * 1000 / size`` in float64. (The references divide by a float32 bin size, which puts
        about one integer pixel in 3000, always one on a bin edge, into the bin before.)

    Raises:
        ValueError: a wrong last axis, a coordinate that is not finite, or a wrong size.
    """
    array = np.asarray(points, dtype=np.float64)
    scale = _per_axis(array, size, "points")
    if not np.isfinite(array).all():
        raise ValueError(
            f"points must be finite pixel coordinates, got {array.tolist()}; drop NaN and inf first"
        )
    return np.clip(np.floor(array * BINS / scale), 0, BINS - 1).astype(np.int32)


def dequantize(bins: ArrayLike, size: Sequence[float]) -> np.ndarray:
    """Location bins to the pixel at the centre of each: ``(bin + 0.5) * size / 1000``.

    Args:
        bins: int[..., 2] points or int[..., 4] boxes; not clamped.
        size: image ``(width, height)`` in pixels.

    Returns:
        float64[..., 2 or 4] pixel coordinates.

    Raises:
        ValueError: a wrong last axis or a wrong size.
    """
    array = np.asarray(bins, dtype=np.float64)
    return (array + 0.5) * _per_axis(array, size, "bins") / BINS


def box_to_text(box: ArrayLike, size: Sequence[float]) -> str:
    """A pixel box ``(x0, y0, x1, y1)`` as the four ``<loc_N>`` tokens that prompts and labels use.

    Raises:
        ValueError: not four finite numbers, corners in the wrong order, or a wrong size.
    """
    array = np.asarray(box, dtype=np.float64)
    if array.shape != (4,):
        raise ValueError(
            f"a box must be four numbers (x0, y0, x1, y1) in pixels, got shape {array.shape}; "
            "pass one region at a time"
        )
    if array[2] < array[0] or array[3] < array[1]:
        raise ValueError(
            f"box {array.tolist()} has its corners in the wrong order: expected x0 <= x1 and "
            "y0 <= y1 (if it is x, y, width, height, convert it to corners)"
        )
    return bins_to_text(quantize(array, size))


def bins_to_text(bins: ArrayLike) -> str:
    """Bins int[N] as ``<loc_N>`` text, in order."""
    return "".join(f"<loc_{int(value)}>" for value in np.asarray(bins).ravel())


def text_to_bins(text: str) -> list[int]:
    """Every ``<loc_N>`` in ``text``, in order, as bins; N is clamped to 999."""
    return [min(int(digits[-640:]), BINS - 1) for digits in _LOCATION.findall(text)]


def without_locations(text: str) -> str:
    """``text`` without its ``<loc_N>`` tokens, such as a region's answer without the region."""
    return _LOCATION.sub("", text).strip()


def text_to_box(text: str, size: Sequence[float]) -> list[float]:
    """Four ``<loc_N>`` tokens as a pixel box ``[x0, y0, x1, y1]``, the inverse of `box_to_text`.

    Raises:
        ValueError: not exactly four location tokens, or a wrong size.
    """
    bins = text_to_bins(text)
    if len(bins) != 4:
        raise ValueError(f"a box needs exactly four <loc_N> tokens, got {len(bins)} in {text!r}")
    return dequantize(bins, size).tolist()


def signed_area(points: np.ndarray) -> float:
    """The area of the polygon through [N, 2] points; positive where it is clockwise as seen."""
    x, y = points.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


def check_image_size(size: Sequence[float] | None, purpose: str) -> tuple[float, float]:
    """``(width, height)`` as two positive finite floats.

    Raises:
        ValueError: naming ``purpose`` when the size is missing or is not such a pair.
    """
    expected = "image_size=(width, height) in pixels, two positive numbers"
    if size is None:
        raise ValueError(f"{purpose} needs {expected}; got None (PIL: image_size=image.size)")
    try:
        width, height = (float(extent) for extent in size)
    except (TypeError, ValueError):
        raise ValueError(f"{purpose} needs {expected}; got {size!r}") from None
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"{purpose} needs {expected}; got {size!r}")
    return width, height


def _per_axis(array: np.ndarray, size: Sequence[float], name: str) -> np.ndarray:
    """The extent that belongs to each coordinate of the last axis: float64[2 or 4]."""
    if array.ndim == 0 or array.shape[-1] not in (2, 4):
        raise ValueError(
            f"{name} must end in an axis of 2 (x, y) or 4 (x0, y0, x1, y1), got shape {array.shape}"
        )
    width, height = check_image_size(size, "the location quantizer")
    return np.array([width, height] * (array.shape[-1] // 2))
