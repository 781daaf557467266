"""Scenes: a pure function of their arguments, and what no training scene ever holds."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from train.shapes import SceneConfig, ShapesWorld
from train.shapes.lexicon import (
    COLOURS,
    HELD_OUT_WORDS,
    KINDS,
    SIZES,
    TRAINING_WORDS,
    WORDS,
    held_out_combinations,
    is_held_out,
)
from train.shapes.outlines import outline, reach, room
from train.shapes.render import draw

ROOT = Path(__file__).resolve().parents[3]
SPLITS = ("train", "valid", "held-out")

FINGERPRINT = """
import hashlib, random, sys
import numpy as np
from train.shapes import ShapesWorld
from train.shapes.render import draw
np.random.seed(int(sys.argv[1])); random.seed(int(sys.argv[1]))
digest = hashlib.sha256()
for split in ("train", "valid", "held-out"):
    world = ShapesWorld(split=split, seed=3)
    for index in (7, 0, 123456789):
        digest.update(repr(world.scene(index)).encode())
        for example in world.examples(index):
            digest.update(example.image.tobytes() + (example.prefix + example.suffix).encode())
print(digest.hexdigest())
"""


def combinations(scene):
    return {(shape.colour, shape.kind, shape.size) for shape in scene.shapes}


@pytest.fixture(scope="module")
def scenes():
    return {split: [ShapesWorld(split=split).scene(n) for n in range(400)] for split in SPLITS}


def test_the_same_in_every_process_whatever_the_global_state():
    digests = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT, state],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for state in ("1", "2")
    }
    assert len(digests) == 1


def test_every_argument_matters():
    def picture(config=None, **fields):
        world = ShapesWorld(config=config or SceneConfig(), **{"seed": 1, **fields})
        return hashlib.sha256(draw(world.scene(5)).tobytes()).hexdigest()

    others = [
        picture(seed=2),
        picture(split="valid"),
        picture(split="held-out"),
        picture(SceneConfig(noise=9)),
        hashlib.sha256(draw(ShapesWorld(seed=1).scene(6)).tobytes()).hexdigest(),
    ]
    assert len({picture(), *others}) == 6
    assert picture() == picture()


def test_held_out_combinations_leave_every_pair_for_training():
    held_out = set(held_out_combinations())
    assert len(held_out) == len(COLOURS) * len(KINDS) * len(SIZES) // 8 == 21
    seen = {
        (colour, kind, size)
        for colour in COLOURS
        for kind in KINDS
        for size in SIZES
        if not is_held_out(colour, kind, size)
    }
    for first, second in ((0, 1), (0, 2), (1, 2)):
        everything = {(c[first], c[second]) for c in seen | held_out}
        assert {(c[first], c[second]) for c in seen} == everything


def test_word_lists_are_apart():
    assert not set(HELD_OUT_WORDS) & set(TRAINING_WORDS)
    assert set(HELD_OUT_WORDS) | set(TRAINING_WORDS) == set(WORDS)
    assert all(word.isascii() and word.isalpha() and word.isupper() for word in WORDS)
    assert {len(word) for word in HELD_OUT_WORDS} == {2, 3, 4, 5}
    assert len(HELD_OUT_WORDS) == 150
    # Every letter of a held-out word can be learnt.
    assert set("".join(HELD_OUT_WORDS)) <= set("".join(TRAINING_WORDS))


def test_what_is_held_out_is_never_in_training(scenes):
    held_out = set(held_out_combinations())
    for split in ("train", "valid"):
        for scene in scenes[split]:
            assert not combinations(scene) & held_out
            assert not {word.text for word in scene.words} & set(HELD_OUT_WORDS)


def test_every_held_out_scene_has_something_held_out(scenes):
    held_out = set(held_out_combinations())
    for scene in scenes["held-out"]:
        assert combinations(scene) & held_out
        assert {word.text for word in scene.words} <= set(HELD_OUT_WORDS)
    drawn = set().union(*map(combinations, scenes["held-out"]))
    assert held_out <= drawn
    # And ordinary shapes beside them.
    assert len(drawn - held_out) > 100


def test_half_of_the_training_words_are_letters_at_random(scenes):
    words = [word.text for scene in scenes["train"] for word in scene.words]
    invented = [word for word in words if word not in WORDS]
    assert 0.4 < len(invented) / len(words) < 0.6
    assert {len(word) for word in invented} == {2, 3, 4, 5}


@pytest.mark.parametrize("split", SPLITS)
def test_everything_is_where_it_belongs(scenes, split):
    overlapping = surrounded = 0
    for scene in scenes[split]:
        assert 2 <= len(scene.shapes) <= 4
        assert 1 <= len(scene.words) <= 2
        for thing in (*(s.points for s in scene.shapes), *(w.quad for w in scene.words)):
            assert thing.min() > 0
            assert thing.max() < 1
        discs = [(s.centre, s.radius * reach(s.kind)) for s in scene.shapes]
        for word in scene.words:
            x0, y0, x1, y1 = *word.quad.min(axis=0), *word.quad.max(axis=0)
            for centre, radius in discs:
                nearest = np.clip(centre, (x0, y0), (x1, y1))
                assert np.hypot(*(nearest - centre)) > radius
        for n, shape in enumerate(scene.shapes):
            touching = [
                m
                for m in range(n)
                if np.hypot(*np.subtract(discs[n][0], discs[m][0])) < discs[n][1] + discs[m][1]
            ]
            assert len(touching) <= 1
            for m in touching:
                other = scene.shapes[m]
                assert shape.colour != other.colour
                overlapping += shape.inside is None
                if shape.inside is not None:
                    surrounded += 1
                    apart = np.hypot(*np.subtract(shape.centre, other.centre))
                    assert apart + discs[n][1] < other.radius * room(other.kind)
    assert overlapping > 100
    assert surrounded > 20


@pytest.mark.parametrize("kind", KINDS)
def test_outlines_are_clockwise_and_about_one_unit(kind):
    points = outline(kind)
    x, y = points.T
    assert np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) > 0
    assert 0.8 < reach(kind) < 1.2
    assert room(kind) < reach(kind)


def test_a_scene_does_not_depend_on_the_size_of_its_picture():
    small, large = (
        ShapesWorld(config=SceneConfig(side=side), seed=2).scene(11) for side in (128, 512)
    )
    assert dataclasses.replace(small, config=large.config) == large


def test_crowded_scenes_are_filled_as_far_as_there_is_room():
    config = SceneConfig(shapes=(12, 12), words=(4, 4), overlap=1.0, inside=1.0, repeat=1.0)
    for index in range(20):
        scene = ShapesWorld(config=config).scene(index)
        assert 4 <= len(scene.shapes) <= 12
        descriptions = [(s.colour, s.kind, s.size, s.texture) for s in scene.shapes]
        assert len(set(descriptions)) == len(descriptions)
        assert len({word.text for word in scene.words}) == len(scene.words)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"side": 32}, "side is 32"),
        ({"shapes": (3, 2)}, r"shapes is \(3, 2\)"),
        ({"shapes": (0, 2)}, r"shapes is \(0, 2\)"),
        ({"letters": (2, 9)}, r"letters is \(2, 9\)"),
        ({"overlap": 1.5}, r"overlap is 1\.5"),
        ({"gradient": -1.0}, r"gradient is -1\.0"),
        ({"noise": 100}, "noise is 100"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SceneConfig(**fields)


def test_a_wrong_split_or_seed_is_refused():
    with pytest.raises(ValueError, match="split is 'test', expected one of train, valid, held-out"):
        ShapesWorld(split="test")
    with pytest.raises(ValueError, match="seed is -1"):
        ShapesWorld(seed=-1)
