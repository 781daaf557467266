"""Label noise: a known share of shapes is called what it is not, and nothing else changes."""

import dataclasses

import numpy as np
import pytest

from florence_jax.processing import TASKS
from train.shapes import SceneConfig, ShapesWorld
from train.shapes.ground_truth import mislabelled, things_seen
from train.shapes.render import draw
from train.shapes.scene import Word

CLEAN = ShapesWorld(config=SceneConfig(side=96), seed=3)


def noisy(share):
    return dataclasses.replace(CLEAN, config=dataclasses.replace(CLEAN.config, mislabelled=share))


def pairs(share, scenes):
    """(true thing, thing as it is called) of every thing."""
    world = noisy(share)
    for index in range(scenes):
        scene = world.scene(index)
        truth = things_seen(scene)
        yield from zip(truth, mislabelled(scene, truth), strict=True)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_shapes_is_wrong(share):
    wrong = []
    for true, called in pairs(share, 150):
        assert (called.box, called.number) == (true.box, true.number)
        assert called.polygons() == true.polygons()
        if isinstance(true.source, Word):
            assert called.source == true.source
            continue
        differs = (true.source.colour, true.source.kind) != (called.source.colour, called.category)
        if differs:
            assert true.source.colour != called.source.colour
            assert true.category != called.category
            assert (true.source.size, true.source.texture) == (
                called.source.size,
                called.source.texture,
            )
        wrong.append(differs)
    # 300 shapes or more: three standard deviations of the share are below 0.08.
    assert len(wrong) > 300
    assert np.mean(wrong) == pytest.approx(share, abs=0.08)


def test_pictures_stay_and_every_task_can_still_be_asked():
    world = noisy(0.5)
    for index in range(10):
        np.testing.assert_array_equal(draw(world.scene(index)), draw(CLEAN.scene(index)))
        first, again = world.questions(index), world.questions(index)
        assert [one.suffix for one in first] == [one.suffix for one in again]
        assert [one.task for one in first] == list(TASKS)
        names = [thing.description for thing in mislabelled(*_seen(world, index))]
        assert len(set(names)) == len(names)


def test_the_answers_are_wrong_alike():
    """Detection and the short caption err about the same shape."""
    for index in range(10):
        scene, truth = _seen(noisy(1.0), index)
        called = {thing.category for thing in mislabelled(scene, truth)}
        answers = {one.task: one.answer for one in noisy(1.0).questions(index)}
        assert set(answers["<OD>"]["labels"]) == called


def _seen(world, index):
    scene = world.scene(index)
    return scene, things_seen(scene)
