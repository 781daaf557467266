"""The outline of each kind of shape: vertices around the origin, y down, about a unit away."""

from __future__ import annotations

import functools

import numpy as np

# Vertices of a whole turn, enough for a large circle at 1024 px.
_TURN = 48


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
    points = outline(kind)
    x, y = points[:, 0], points[:, 1]
    return float(abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2)


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
