"""Overlaps and non-maximum suppression, against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_jax.annotation.boxes import bounds, enclosed_area, overlaps, suppress

fuzz = settings(max_examples=60)
# Whole numbers, so that equal overlaps are equal.
corners = st.tuples(*[st.integers(0, 12)] * 4)
scored = st.lists(st.tuples(corners, st.integers(0, 5)), max_size=9)


def cells(box):
    """The unit squares of a box."""
    x0, y0, x1, y1 = box
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


def shared(a, b):
    union = cells(a) | cells(b)
    return len(cells(a) & cells(b)) / len(union) if union else 0.0


@fuzz
@given(st.lists(corners, min_size=1, max_size=5), st.lists(corners, min_size=1, max_size=5))
def test_overlaps_are_those_of_the_unit_squares(a, b):
    expected = [[shared(one, other) for other in b] for one in a]
    np.testing.assert_allclose(overlaps(a, b), expected, rtol=0, atol=1e-15)


@fuzz
@given(scored, st.sampled_from((0.2, 0.5, 0.7, 1.0)))
def test_what_stays_is_what_the_definition_keeps(boxes, most):
    """The next best box stays unless it shares too much with one that stays already."""
    kept = []
    for number in sorted(range(len(boxes)), key=lambda number: -boxes[number][1]):
        if all(shared(boxes[number][0], boxes[other][0]) < most for other in kept):
            kept.append(number)
    found = suppress([box for box, _ in boxes], [score for _, score in boxes], most)
    assert found == sorted(kept)


@fuzz
@given(scored)
def test_suppressing_again_changes_nothing(boxes):
    kept = [boxes[number] for number in suppress(*zip(*boxes, strict=True), 0.5)] if boxes else []
    again = suppress([box for box, _ in kept], [score for _, score in kept], 0.5)
    assert again == list(range(len(kept)))


def test_no_boxes():
    assert suppress([], [], 0.5) == []
    assert overlaps(np.zeros((0, 4)), [(0, 0, 1, 1)]).shape == (0, 1)


@pytest.mark.parametrize(
    ("points", "area"),
    [((0, 0, 4, 0, 4, 3), 6.0), ((4, 3, 4, 0, 0, 0), 6.0), ((0, 0, 5, 5, 9, 9), 0.0)],
)
def test_the_area_of_a_polygon(points, area):
    assert enclosed_area(points) == area
    assert bounds(points) == (0, 0, max(points[::2]), max(points[1::2]))
