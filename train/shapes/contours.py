"""The outline of a mask as a few polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

# Right, down, left, up: clockwise as seen, since y points down.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


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
    parts = [(area, loop) for loop in _loops(mask) if (area := _signed_area(loop)) > 0]
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
    far = int(np.linalg.norm(loop - loop[0], axis=1).argmax())
    closed = np.concatenate([loop, loop[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far]] = True
    pending = [(0, far), (far, len(closed) - 1)]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        chord = closed[last] - closed[first]
        offsets = closed[first + 1 : last] - closed[first]
        across = np.abs(chord[0] * offsets[:, 1] - chord[1] * offsets[:, 0])
        worst = int(across.argmax())
        if across[worst] > tolerance * np.hypot(*chord):
            middle = first + 1 + worst
            keep[middle] = True
            pending += [(first, middle), (middle, last)]
    return loop[keep[:-1]]


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


def _signed_area(loop: np.ndarray) -> float:
    """Negative for the border of a hole."""
    following = np.roll(loop, -1, axis=0)
    return float((loop[:, 0] * following[:, 1] - following[:, 0] * loop[:, 1]).sum()) / 2
