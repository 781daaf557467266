"""Labels of points: against the picture's ink, and against the truth of the things there."""

import itertools

import numpy as np
import pytest

from train.shapes import SceneConfig, ShapesWorld
from train.shapes.ground_truth import things_seen
from train.shapes.pretrain_vision import CLASSES, points_of
from train.shapes.render import draw
from train.shapes.scene import Scene, Shape, Word

COUNT = 112
WORLD = ShapesWorld(config=SceneConfig(words=(1, 2)))
NAMES = list(CLASSES)


def said(numbers: np.ndarray) -> dict[str, str]:
    return {name: CLASSES[name][number] for name, number in zip(NAMES, numbers, strict=True)}


@pytest.mark.parametrize("index", range(12))
def test_every_point_of_a_thing_has_its_names_and_its_box(index):
    scene = WORLD.scene(index)
    points = points_of(scene, COUNT)
    middles = (np.arange(COUNT) + 0.5) / COUNT
    at = (middles * 2 * WORLD.config.side).astype(int)
    elsewhere = np.ones((COUNT, COUNT), bool)
    for thing in things_seen(scene):
        mask = np.zeros((2 * WORLD.config.side,) * 2, bool)
        x, y = thing.corner
        height, width = thing.mask.shape
        mask[y : y + height, x : x + width] = thing.mask
        here = mask[np.ix_(at, at)]
        elsewhere &= ~here
        source = thing.source
        for row, column in itertools.islice(np.argwhere(here).tolist(), 0, None, 7):
            names = said(points.classes[row, column])
            assert names["kind"] == thing.category
            box = points.edges[row, column] + middles[[column, row, column, row]]
            np.testing.assert_allclose(box, np.array(thing.box) / thing.side, atol=1e-6)
            if isinstance(source, Shape):
                assert names["colour"] == source.colour
                assert names["size"] == source.size
                assert names["texture"] == source.texture
            else:
                assert names["colour"] == names["size"] == names["texture"] == ""
    empty = elsewhere & (points.classes[..., 0] == 0)
    assert empty.mean() > 0.3
    assert np.isnan(points.edges[empty]).all()
    background = CLASSES["colour"].index(scene.background)
    assert (points.classes[empty] == [0, background, 0, 0, 0]).all()


@pytest.mark.parametrize(("text", "tilt"), [("HOUSE", 0.0), ("WIVIM", 12.0), ("JAZZ", -9.0)])
def test_letters_lie_where_their_ink_is(text, tilt):
    def word(letters, left):
        """A part of the word where it is in the whole of it."""
        whole = Word(text=text, centre=(0.5, 0.5), height=0.12, tilt=0.0, tone=0)
        part = Word(text=letters, centre=(0.5, 0.5), height=0.12, tilt=0.0, tone=0)
        shift = left - whole.extent[0] / 2 + part.extent[0] / 2
        angle = np.radians(tilt)
        centre = (0.5 + shift * np.cos(angle), 0.5 + shift * np.sin(angle))
        return Word(text=letters, centre=centre, height=0.12, tilt=tilt, tone=0)

    config = SceneConfig(side=448, clutter=(0, 0), gradient=0.0, noise=0)

    def scene(drawn):
        return Scene(
            config=config, seed=0, split="train", index=0, background="white",
            base=(255, 255, 255), shapes=(), words=(drawn,),
        )  # fmt: skip

    points = points_of(scene(word(text, 0.0)), 448)
    labels = points.classes[..., NAMES.index("letter")]
    ink = np.asarray(draw(scene(word(text, 0.0))))[..., 0] < 128
    right = wrong = 0
    for place, letter in enumerate(text):
        # The letter alone: what the word's picture with it has and the one before has not.
        before = np.zeros_like(ink)
        if place:
            before = np.asarray(draw(scene(word(text[:place], 0.0))))[..., 0] < 250
        upto = np.asarray(draw(scene(word(text[: place + 1], 0.0))))[..., 0] < 128
        own = upto & ~before & ink
        assert own.sum() > 100
        hits = labels[own] == CLASSES["letter"].index(letter)
        right, wrong = right + hits.sum(), wrong + (~hits).sum()
    # Letters lean into each other, and turning is a matter of half pixels.
    assert wrong < 0.04 * (right + wrong), (right, wrong)
