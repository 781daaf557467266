"""What is seen: against masks drawn shape by shape, and against the ink of the picture."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw

from florence_jax.evaluation.metrics import mask_iou
from tests.train.shapes.flood import main_parts
from train.shapes import SceneConfig, ShapesWorld
from train.shapes.ground_truth import things_seen
from train.shapes.outlines import area
from train.shapes.render import FINE, draw, owners
from train.shapes.scene import Scene, Shape, Word

SIDE = 224
PLAIN = SceneConfig(clutter=(0, 0), gradient=0.0, noise=0)


def alone(points):
    """bool[FINE * SIDE, FINE * SIDE]: the polygon, nothing above it."""
    image = Image.new("1", (SIDE * FINE, SIDE * FINE))
    pixels = np.floor(points * SIDE * FINE).tolist()
    ImageDraw.Draw(image).polygon([tuple(p) for p in pixels], fill=1)
    return np.asarray(image)


def visible(scene):
    """Mask of each shape and word without what lies above it."""
    masks = [alone(s.points) for s in scene.shapes] + [alone(w.quad) for w in scene.words]
    for lower in range(len(masks)):
        for upper in range(lower + 1, len(masks)):
            masks[lower] = masks[lower] & ~masks[upper]
    return masks


def shape(**fields):
    given = {
        "kind": "square",
        "colour": "red",
        "size": "medium",
        "texture": "plain",
        "rgb": (200, 0, 0),
        "centre": (0.5, 0.5),
        "radius": 0.12,
        "tilt": 0.0,
        **fields,
    }
    return Shape(**given)


def scene_of(*shapes, words=(), config=PLAIN):
    return Scene(
        config=config,
        seed=0,
        split="train",
        index=0,
        background="white",
        base=(255, 255, 255),
        shapes=shapes,
        words=words,
    )


def outside(thing):
    """What is around a thing's mask, as np.pad takes it."""
    left, top = thing.corner
    height, width = thing.mask.shape
    return (top, SIDE * FINE - top - height), (left, SIDE * FINE - left - width)


# Crowded, so that much is covered.
CROWDED = SceneConfig(shapes=(5, 8), overlap=1.0, overlap_depth=0.9, hidden=0.5)


@pytest.mark.parametrize("config", [SceneConfig(), CROWDED])
def test_boxes_and_masks_are_the_visible_ones(config):
    hidden = covered = 0
    for index in range(25):
        scene = ShapesWorld(config=config, seed=9).scene(index)
        listed = {thing.number: thing for thing in things_seen(scene)}
        for number, mask in enumerate(visible(scene)):
            source = (*scene.shapes, *scene.words)[number]
            whole = alone(source.quad if isinstance(source, Word) else source.points)
            share = mask.sum() / whole.sum()
            covered += share < 0.95
            if isinstance(source, Shape) and abs(share - (1 - config.hidden)) < 0.03:
                continue  # the whole area is reckoned, not counted
            assert (number in listed) == (isinstance(source, Word) or share > 1 - config.hidden)
            if number not in listed:
                hidden += 1
                continue
            thing = listed[number]
            if share == 1:
                # A pixel at a tip may touch the rest at a corner alone, and be left out or not.
                mask = mask & (np.pad(thing.mask, outside(thing)) | main_parts(mask, 0.03))
            else:
                mask = main_parts(mask, 0.03)
            rows, columns = np.nonzero(mask)
            x0, x1 = columns.min() / FINE, (columns.max() + 1) / FINE
            y0, y1 = rows.min() / FINE, (rows.max() + 1) / FINE
            assert thing.box == (x0, y0, x1, y1)
            left, top = thing.corner
            height, width = thing.mask.shape
            assert np.array_equal(thing.mask, mask[top : top + height, left : left + width])
            assert thing.mask.sum() == mask.sum()
    assert covered > 10
    if config is CROWDED:
        assert hidden > 3


def test_a_shape_is_listed_until_too_much_of_it_is_covered():
    for offset, expected in ((0.20, ["red", "blue"]), (0.06, ["blue"])):
        upper = shape(colour="blue", centre=(0.5 + offset, 0.5))
        seen = things_seen(scene_of(shape(), upper))
        assert [thing.source.colour for thing in seen] == expected


def test_what_is_behind_keeps_its_visible_extent_alone():
    lower, upper = shape(), shape(colour="blue", centre=(0.5, 0.44), radius=0.2)
    # The upper one ends 0.164 below its centre, the lower one 0.0984 below its own.
    (blue,) = things_seen(scene_of(lower, upper))
    assert blue.source.colour == "blue"
    upper = dataclasses.replace(upper, centre=(0.5, 0.34))
    _, red = things_seen(scene_of(lower, upper))
    assert red.source.colour == "red"
    expected = np.array([0.5 - 0.0984, 0.34 + 0.164, 0.5 + 0.0984, 0.5 + 0.0984]) * SIDE
    assert np.abs(np.array(red.box) - expected).max() <= 0.5


def test_things_come_in_reading_order():
    for index in range(40):
        boxes = [thing.box for thing in things_seen(ShapesWorld().scene(index))]
        tops = [int(box[1] * 1000 / SIDE) for box in boxes]
        assert tops == sorted(tops)


@pytest.mark.parametrize("config", [SceneConfig(), CROWDED])
def test_polygons_cover_what_is_visible(config):
    overlaps, points = [], []
    for index in range(25):
        for thing in things_seen(ShapesWorld(config=config, seed=5).scene(index)):
            if isinstance(thing.source, Word):
                continue
            parts = thing.polygons()
            drawn = np.zeros((SIDE * FINE,) * 2, bool)
            left, top = thing.corner
            height, width = thing.mask.shape
            drawn[top : top + height, left : left + width] = thing.mask
            # A hole, where something lies inside, is not cut out of the polygon.
            image = Image.new("1", (SIDE * FINE,) * 2)
            for part in parts:
                corners = (np.reshape(part, (-1, 2)) * FINE - 0.5).tolist()
                ImageDraw.Draw(image).polygon([tuple(p) for p in corners], fill=1)
            polygon = np.asarray(image)
            missed = (drawn & ~polygon).sum() / drawn.sum()
            assert missed < 0.12
            if (
                thing.mask.sum()
                > 0.98 * area(thing.source.kind) * (thing.source.radius * SIDE * FINE) ** 2
            ):
                overlaps.append((drawn & polygon).sum() / (drawn | polygon).sum())
                points.append(len(parts[0]) // 2)
                assert len(parts) == 1
    assert min(overlaps) > 0.85
    assert np.mean(overlaps) > 0.93
    assert max(points) <= 24


def test_corners_are_where_the_outline_has_them():
    (thing,) = things_seen(scene_of(shape(tilt=20.0)))
    (part,) = thing.polygons()
    exact = shape(tilt=20.0).points * SIDE
    assert len(part) == 8
    for corner in np.reshape(part, (-1, 2)):
        assert np.abs(exact - corner).max(axis=1).min() < 1.0


def test_a_shape_cut_in_four_has_four_polygons():
    bar = shape(kind="cross", colour="blue", radius=0.2, size="large")
    lower = shape(radius=0.15)
    things = things_seen(scene_of(lower, bar, config=dataclasses.replace(PLAIN, hidden=0.9)))
    parts = next(thing for thing in things if thing.source.colour == "red").polygons()
    assert len(parts) == 4
    everything = [part for thing in things for part in thing.polygons()]
    both = [(s.points * SIDE).ravel().tolist() for s in (lower, bar)]
    assert mask_iou(everything, both, (SIDE, SIDE)) > 0.95


@pytest.mark.parametrize("side", [192, 224, 256])
@pytest.mark.parametrize("tilt", [-12.0, -3.0, 0.0, 5.0, 12.0])
@pytest.mark.parametrize("text", ["HALF", "QUEEN", "JOY", "WIG"])
def test_quads_hold_the_ink_and_no_more(text, tilt, side):
    word = Word(text=text, centre=(0.48, 0.52), height=0.08, tilt=tilt, tone=0)
    picture = draw(scene_of(words=(word,), config=dataclasses.replace(PLAIN, side=side)))
    rows, columns = np.nonzero(np.asarray(picture.convert("L")) < 128)
    ink = np.stack([columns + 0.5, rows + 0.5], axis=1)
    corners = word.quad * side
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = (b - a) / np.linalg.norm(b - a)
        inside = along[0] * (ink - a)[:, 1] - along[1] * (ink - a)[:, 0]
        # Positive is to the right of a clockwise side: in the quad.
        assert inside.min() > -1.0
        assert inside.min() < 1.6


@pytest.mark.parametrize("side", [192, 224, 256])
def test_capitals_are_high_enough_to_read(side):
    config = SceneConfig(side=side)
    heights = [
        word.height * side
        for index in range(200)
        for word in ShapesWorld(config=config).scene(index).words
    ]
    assert min(heights) >= 12


def test_the_picture_shows_each_shape_where_its_mask_is():
    for index in range(10):
        scene = ShapesWorld(seed=2).scene(index)
        bare = dataclasses.replace(scene, config=PLAIN, words=())
        shapes = [dataclasses.replace(s, texture="plain") for s in bare.shapes]
        bare = dataclasses.replace(bare, shapes=tuple(shapes))
        pixels = np.asarray(draw(bare)).astype(int)
        fine = owners(bare)
        coarse = fine[::FINE, ::FINE]
        same = [coarse == fine[y::FINE, x::FINE] for y in range(FINE) for x in range(FINE)]
        solid = np.logical_and.reduce(same)
        for number, source in enumerate(bare.shapes, start=1):
            mask = solid & (coarse == number)
            # The edge is darker; the rest is the shape's colour.
            off = np.abs(pixels[mask] - source.rgb).max(axis=1)
            assert np.mean(off == 0) > 0.5
            assert not np.any(np.all(pixels[mask] == bare.base, axis=1))
        background = solid & (coarse == 0)
        assert np.all(pixels[background] == bare.base)
