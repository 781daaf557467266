"""Boxes (x0, y0, x1, y1) in pixels: intersection over union, areas, non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from florence_jax.processing.locations import signed_area


def overlaps(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Intersection over union of each pair: float64[N, 4], float64[M, 4] -> float64[N, M].

    The value is 0 where either box has no area.
    """
    first = np.asarray(a, np.float64).reshape(-1, 1, 4)
    second = np.asarray(b, np.float64).reshape(1, -1, 4)
    corner = np.minimum(first[..., 2:], second[..., 2:])
    extent = corner - np.maximum(first[..., :2], second[..., :2])
    shared = np.prod(np.maximum(extent, 0.0), axis=-1)
    union = areas(first) + areas(second) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0.0)


def areas(boxes: ArrayLike) -> np.ndarray:
    """float64[..., 4] -> float64[...]; 0 where the corners are in the wrong order."""
    array = np.asarray(boxes, np.float64)
    return np.prod(np.maximum(array[..., 2:] - array[..., :2], 0.0), axis=-1)


def suppress(boxes: ArrayLike, scores: Sequence[float], most: float) -> list[int]:
    """Greedy non-maximum suppression.

    Args:
        boxes: float[N, 4].
        scores: score of each box; of two equal ones the earlier goes first.
        most: a box is suppressed if its overlap with a better one is at least this much.

    Returns:
        The indices of the remaining boxes, in ascending order.
    """
    array = np.asarray(boxes, np.float64).reshape(-1, 4)
    shared = overlaps(array, array)
    kept: list[int] = []
    for candidate in np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist():
        if not kept or shared[candidate, kept].max() < most:
            kept.append(candidate)
    return sorted(kept)


def bounds(points: Sequence[float]) -> tuple[float, float, float, float]:
    """The box around points with x and y alternating."""
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def enclosed_area(points: Sequence[float]) -> float:
    """The area of the polygon through points with x and y alternating."""
    return abs(signed_area(np.asarray(points, np.float64).reshape(-1, 2)))
