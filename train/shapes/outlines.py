"""Outlines: vertices of each kind of shape, and the polygons of a mask."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from scipy import ndimage

from florence_jax.datasets import outlines as segmentations
from florence_jax.processing.locations import signed_area

# Vertices of a whole turn, enough for a large circle at 1024 px.
_TURN = 48


# Right, down, left, up: clockwise as seen, since y points down.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


@functools.cache
def outline(kind: str) -> np.ndarray:
    """float64[N, 2] vertices, clockwise as seen; scale by a shape's radius."""
    points = _OUTLINES[kind]()
    points.setflags(write=False)
    return points


@functools.cache
def reach(kind: str) -> float:
    """Radius of the circle around the origin that holds the outline however it is turned."""
    return float(np.linalg.norm(outline(kind), axis=1).max())


@functools.cache
def room(kind: str) -> float:
    """Radius of the circle around the origin that the outline holds; 0 where it is outside."""
    points = outline(kind)
    following = np.roll(points, -1, axis=0)
    cross = points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]
    if cross.min() <= 0:
        return 0.0
    return float((cross / np.linalg.norm(following - points, axis=1)).min())


def area(kind: str) -> float:
    """Area of the unit outline."""
    return abs(signed_area(outline(kind)))


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Points float64[N, 2] turned around the origin, clockwise as seen."""
    angle = np.radians(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def _circle() -> np.ndarray:
    return 0.95 * _arc(0, 360, _TURN)


def _square() -> np.ndarray:
    return 0.82 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])


def _triangle() -> np.ndarray:
    return 1.08 * _arc(-90, 270, 3)


def _star() -> np.ndarray:
    points = 1.12 * _arc(-90, 270, 10)
    points[1::2] *= 0.45
    return points


def _cross() -> np.ndarray:
    arm, width = 0.95, 0.33
    corner = np.array([(-width, -arm), (width, -arm), (width, -width)])
    return np.concatenate([turned(corner, 90 * quarter) for quarter in range(4)])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, _TURN, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y + 2], axis=1) / 16.5


def _moon() -> np.ndarray:
    # A disc of radius 1 without a disc of radius 0.9 whose centre is 0.55 to the right.
    radius, apart = 0.9, 0.55
    x = (apart**2 + 1 - radius**2) / (2 * apart)
    tip = np.degrees(np.arccos(x))
    inner_tip = np.degrees(np.arctan2(np.sqrt(1 - x * x), x - apart))
    outer = _arc(tip, 360 - tip, _TURN, closed=True)
    inner = radius * _arc(360 - inner_tip, inner_tip, _TURN // 2, closed=True) + np.array(
        [apart, 0]
    )
    return np.concatenate([outer, inner[1:-1]]) + np.array([0.25, 0])


def _arc(start: float, stop: float, count: int, *, closed: bool = False) -> np.ndarray:
    """`count` points of the unit circle between two angles in degrees, clockwise as seen."""
    t = np.radians(np.linspace(start, stop, count, endpoint=closed))
    return np.stack([np.cos(t), np.sin(t)], axis=1)


_OUTLINES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "moon": _moon,
}


def polygons(mask: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """Outer outlines of a mask's 4-connected parts, the largest part first.

    Args:
        mask: bool[H, W].
        tolerance: most pixels that a vertex of the exact outline is off the simplified one. A part
            so thin that it would be a line is left out.

    Returns:
        float64[N, 2] vertices x, y of each part, clockwise; pixel (0, 0) covers 0..1. Holes, which
        Florence-2's polygons cannot express, are filled.
    """
    parts = [(area, loop) for loop in _loops(mask) if (area := signed_area(loop)) > 0]
    parts.sort(key=lambda part: -part[0])
    outlines = [simplified(loop, tolerance) for _, loop in parts]
    return [outline for outline in outlines if len(outline) >= 3]


def without_crumbs(mask: np.ndarray, share: float) -> np.ndarray:
    """The mask without its 4-connected parts that are smaller than `share` of it."""
    labelled: Any = ndimage.label(mask)
    parts, count = labelled
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    return mask & (sizes >= share * mask.sum())[parts]


def simplified(loop: np.ndarray, tolerance: float) -> np.ndarray:
    """A closed polygon float64[N, 2] with fewer of its vertices (Douglas and Peucker, 1973)."""
    # Split at two vertices that no simplification would drop: the first corner and its farthest.
    start = int(loop.sum(axis=1).argmin())
    loop = np.roll(loop, -start, axis=0)
    return segmentations.simplified(loop, tolerance)


def _loops(mask: np.ndarray) -> list[np.ndarray]:
    """Every border of the mask as midpoints of its pixel edges; clockwise around the mask."""
    padded = np.pad(mask, 1).astype(np.int8)
    # An edge runs along a pixel of the mask with that pixel on its right: above it to the right.
    edges: dict[tuple[int, int], list[int]] = {}
    down, right = np.diff(padded, axis=0), np.diff(padded, axis=1)
    for direction, change, value, shift in (
        (0, down, 1, (0, 0)),
        (2, down, -1, (1, 0)),
        (1, right, -1, (0, 0)),
        (3, right, 1, (0, 1)),
    ):
        rows, columns = np.nonzero(change == value)
        across = direction in (0, 2)
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
            at = (x - 1 + shift[0], y) if across else (x, y - 1 + shift[1])
            edges.setdefault(at, []).append(direction)
    remaining = {(at, direction): None for at, leaving in edges.items() for direction in leaving}
    loops = []
    while remaining:
        at, direction = first = next(iter(remaining))
        points = []
        while (at, direction) in remaining:
            del remaining[at, direction]
            dx, dy = _STEPS[direction]
            points.append((at[0] + dx / 2, at[1] + dy / 2))
            at = (at[0] + dx, at[1] + dy)
            # Where parts touch at a corner, the right turn stays with the part.
            turns = ((direction + 1) % 4, direction, (direction - 1) % 4)
            direction = next(turn for turn in turns if turn in edges[at])
        assert (at, direction) == first
        loops.append(np.array(points))
    return loops
