"""Outlines of masks: parts, holes, direction, and how much simplification may take away."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tests.train.shapes.flood import labelled, main_parts
from train.shapes.outlines import polygons, simplified, without_crumbs


def filled(parts, shape):
    image = Image.new("1", shape[::-1])
    for part in parts:
        ImageDraw.Draw(image).polygon([tuple(p) for p in (part - 0.5).tolist()], fill=1)
    return np.asarray(image)


def signed_area(points):
    x, y = points.T
    return np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2


def test_a_rectangle():
    mask = np.zeros((400, 500), bool)
    mask[50:250, 100:400] = True
    (part,) = polygons(mask, 1.0)
    # From the upper left, clockwise; half a pixel of a corner may be cut off.
    corners = np.array([(100, 50), (400, 50), (400, 250), (100, 250)])
    assert np.abs(part - corners).max() <= 0.5
    assert signed_area(part) == pytest.approx(60_000, rel=0.005)


def test_parts_come_largest_first_and_crumbs_can_be_left_out():
    mask = np.zeros((600, 600), bool)
    mask[20:60, 20:60] = mask[100:400, 100:300] = mask[500:580, 300:580] = True
    found = polygons(mask, 0.5)
    assert [signed_area(p) for p in found] == pytest.approx([60_000, 22_400, 1_600], rel=0.03)
    assert len(polygons(without_crumbs(mask, 0.1), 0.5)) == 2


def test_holes_are_filled():
    mask = np.zeros((600, 600), bool)
    mask[50:550, 50:550] = True
    mask[200:400, 200:400] = False
    (part,) = polygons(mask, 0.5)
    assert signed_area(part) == pytest.approx(250_000, rel=0.005)


def test_corners_that_touch_do_not_join():
    mask = np.zeros((400, 400), bool)
    mask[0:200, 0:200] = mask[200:400, 200:400] = True
    found = polygons(mask, 0.5)
    assert [signed_area(part) for part in found] == pytest.approx([40_000, 40_000], rel=0.01)


def test_an_empty_mask_has_no_polygon():
    assert polygons(np.zeros((5, 5), bool), 1) == []


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.7))
def test_any_mask_is_traced_once_around_each_part(seed, density):
    """Every border of noise, which touches itself at many corners, unsimplified."""
    mask = np.random.default_rng(seed).random((12, 15)) < density
    labels = labelled(mask)
    found = polygons(mask, 0.0)
    assert len(found) == labels.max()
    assert all(signed_area(part) >= 0 for part in found)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.7), st.floats(0.01, 0.5))
def test_crumbs_are_the_parts_below_the_share(seed, density, share):
    mask = np.random.default_rng(seed).random((12, 15)) < density
    before = mask.copy()
    expected = main_parts(mask, share) if labelled(mask).max() > 1 else mask
    assert np.array_equal(without_crumbs(mask, share), expected)
    assert np.array_equal(mask, before)


@settings(max_examples=60)
@given(st.floats(15, 60), st.integers(3, 40), st.floats(0, 360), st.floats(0.5, 4.0))
def test_simplification_stays_within_its_tolerance(radius, count, start, tolerance):
    angles = np.radians(start + np.linspace(0, 360, count, endpoint=False))
    outline = 70 + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask = filled([outline], (140, 140))
    exact, *others = polygons(mask, 0.0)
    assume(not others)  # The pixel at a sharp corner may touch the rest by its own corner alone.
    kept = simplified(exact, tolerance)
    assert len(kept) <= len(exact)
    # Every exact vertex is near the simplified outline.
    for point in exact:
        assert _distance(point, kept) <= tolerance + 1e-6


def _distance(point, polygon):
    starts, ends = polygon, np.roll(polygon, -1, axis=0)
    along = ends - starts
    t = ((point - starts) * along).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-12)
    nearest = starts + np.clip(t, 0, 1)[:, None] * along
    return np.linalg.norm(nearest - point, axis=1).min()
