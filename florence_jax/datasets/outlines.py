"""Segmentations of COCO files, polygons and RLE masks, as polygons in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from florence_jax.datasets.text_rows import DatasetError
from florence_jax.processing.locations import signed_area

# The most pixels of a mask, as of an image.
_MAX_PIXELS = 100_000_000
# Parts of a mask smaller than this share of it are left out: specks of an annotation tool.
_SPECK = 0.01


@dataclass(frozen=True, slots=True)
class Outline:
    """The outline of one object, in pixels.

    Attributes:
        polygons: x and y alternating.
        box: (x0, y0, x1, y1) around all of it.
    """

    polygons: tuple[tuple[float, ...], ...]
    box: tuple[float, float, float, float]


def outline_of(
    segmentation: Any,
    size: tuple[float, float] | None,
    scale: tuple[float, float],
    where: str,
) -> Outline:
    """The polygons of a `segmentation`.

    Args:
        segmentation: a list of polygons, one polygon as a flat list, or an RLE with `size` and
            `counts`, compressed or not.
        size: (width, height) of the image, to which a mask of another size is scaled.
        scale: what polygons' coordinates are multiplied by; an RLE is in pixels of its own size.
        where: the file and the annotation, for messages.

    Raises:
        DatasetError: it is none of these.
    """
    if isinstance(segmentation, Mapping):
        mask = rle_mask(segmentation, where)
        if not mask.any():
            raise DatasetError(f"{where} has an RLE mask without a pixel: remove the annotation")
        height, width = mask.shape
        scale = (1.0, 1.0) if size is None else (size[0] / width, size[1] / height)
        polygons = mask_polygons(mask)
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        # The box around all pixels, those of specks included.
        around = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    elif isinstance(segmentation, list) and segmentation:
        parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
        polygons = [_checked_polygon(part, where) for part in parts]
        numbers = [number for polygon in polygons for number in polygon]
        xs, ys = numbers[::2], numbers[1::2]
        around = (min(xs), min(ys), max(xs), max(ys))
    else:
        raise DatasetError(
            f"{where} has the segmentation {segmentation!r:.80}, expected a list of polygons, or "
            "an RLE with `size` and `counts`"
        )
    x0, y0, x1, y1 = map(float, around)
    return Outline(
        polygons=tuple(
            tuple(number * scale[index % 2] for index, number in enumerate(polygon))
            for polygon in polygons
        ),
        box=(x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1]),
    )


def rle_mask(rle: Mapping[str, Any], where: str) -> np.ndarray:
    """Decode a COCO run-length encoded mask to bool[H, W].

    Args:
        rle: `size` = [height, width] and `counts`: lengths of runs down the columns, off first, as
            a list or in pycocotools' text.
        where: for messages.

    Raises:
        DatasetError: its runs do not fill its size.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_count, size))):
        raise DatasetError(f"{where} has an RLE of size {size!r:.80}, expected [height, width]")
    height, width = size
    if not 0 < height * width <= _MAX_PIXELS:
        raise DatasetError(
            f"{where} has an RLE of {width} x {height} pixels, expected at most {_MAX_PIXELS}"
        )
    if isinstance(counts, str):
        counts = _decompressed(counts, where)
    if not (isinstance(counts, list) and all(map(_is_count, counts))):
        raise DatasetError(f"{where} has an RLE whose counts are {counts!r:.80}, expected runs")
    if sum(counts) != height * width:
        raise DatasetError(
            f"{where} has an RLE whose runs cover {sum(counts)} pixels, and its size is {width} x "
            f"{height} = {height * width}: `size` is [height, width]"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def mask_polygons(mask: np.ndarray) -> list[tuple[float, ...]]:
    """The outer edges of a mask's parts, largest first, as polygons with few corners.

    Args:
        mask: bool[H, W]. Holes are filled, since Florence-2's polygons have none.
    """
    found = sorted(
        ((area, loop) for loop in _loops(mask) if (area := signed_area(loop)) > 0),
        key=lambda one: -one[0],
    )
    total = sum(area for area, _ in found)
    tolerance = max(0.75, max(mask.shape) / 1000)
    return [
        tuple(simplified(loop, tolerance).ravel().tolist())
        for area, loop in found
        if area >= _SPECK * total
    ]


def _loops(mask: np.ndarray) -> list[np.ndarray]:
    """Closed walks along the pixels' edges, the mask on the right hand: int[N, 2] points x, y."""
    padded = np.pad(np.asarray(mask, bool), 1)
    inside = padded[1:-1, 1:-1]
    # Each side of a pixel whose neighbour there is off: where the walk along it starts and ends.
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, start, end in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
            ways.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    loops = []
    while ways:
        first = here = next(iter(ways))
        before, loop = first, []
        while here in ways:
            ends = ways[here]
            # Where two parts touch at a corner, the sharper turn to the right stays on its own.
            there = ends[0]
            if len(ends) > 1:
                turns = [_turn(before, here, end) for end in ends]
                there = ends[turns.index(max(turns))]
            ends.remove(there)
            if not ends:
                del ways[here]
            loop.append(here)
            before, here = here, there
            if here == first:
                break
        loops.append(np.array(loop, np.float64))
    return loops


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    """The turn of a corner: positive to the right (y points down)."""
    return (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])


def simplified(loop: np.ndarray, tolerance: float) -> np.ndarray:
    """Simplify a closed walk: drop corners closer than `tolerance` to the line of the others
    (Douglas and Peucker, 1973).
    """
    far = int(np.argmax(np.sum((loop - loop[0]) ** 2, axis=1)))
    closed = np.concatenate([loop, loop[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far]] = True
    stretches = [(0, far), (far, len(loop))]
    while stretches:
        start, end = stretches.pop()
        if end - start < 2:
            continue
        line = closed[end] - closed[start]
        offsets = closed[start + 1 : end] - closed[start]
        distances = np.abs(line[0] * offsets[:, 1] - line[1] * offsets[:, 0])
        worst = int(np.argmax(distances))
        if distances[worst] > tolerance * max(float(np.hypot(*line)), 1e-9):
            middle = start + 1 + worst
            keep[middle] = True
            stretches += [(start, middle), (middle, end)]
    return closed[:-1][keep[:-1]]


def _decompressed(text: str, where: str) -> list[int]:
    """Decode pycocotools' text to runs: numbers in base 32, from the third on differences."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64:
            raise DatasetError(
                f"{where} has an RLE whose counts hold {letter!r}, which is no digit"
            )
        value |= (digit & 31) << shift
        shift += 5
        if shift > 60:
            raise DatasetError(f"{where} has an RLE with a run beyond any image")
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def _checked_polygon(polygon: Any, where: str) -> tuple[float, ...]:
    sound = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
    if not sound or not all(map(_is_coordinate, polygon)):
        raise DatasetError(
            f"{where} has the polygon {polygon!r:.80}, expected x and y of three points or more"
        )
    return tuple(map(float, polygon))


def _is_coordinate(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_PIXELS
