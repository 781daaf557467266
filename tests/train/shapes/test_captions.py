"""Captions state what is in the scene, and are read back to exactly that."""

import re
from collections import Counter

import pytest

from train.shapes import SceneConfig, ShapesWorld
from train.shapes.captions import (
    caption,
    detailed_caption,
    expressions,
    more_detailed_caption,
    shapes_of,
)
from train.shapes.ground_truth import things_seen
from train.shapes.judge import facts
from train.shapes.lexicon import COLOURS, KINDS, SIZES, TEXTURES
from train.shapes.scene import Word

SCENES = 150
LARGER = {"small": 0, "medium": 1, "large": 2}


@pytest.fixture(scope="module", params=["default", "crowded"])
def views(request):
    config = SceneConfig() if request.param == "default" else SceneConfig(shapes=(4, 8), repeat=0.5)
    world = ShapesWorld(config=config, seed=21)
    scenes = [world.scene(index) for index in range(SCENES)]
    return [(scene, things_seen(scene)) for scene in scenes]


def test_a_short_caption_counts_colours_and_kinds(views):
    for _, things in views:
        expected = Counter(
            ("thing", f"{thing.source.colour} {thing.source.kind}") for thing in shapes_of(things)
        )
        assert facts(caption(things)) == expected


def named(source):
    if isinstance(source, Word):
        return f'word "{source.text}"'
    texture = "" if source.texture == "plain" else f"{source.texture} "
    return f"{source.size} {source.colour} {texture}{source.kind}"


def test_a_detailed_caption_says_everything_about_each(views):
    for scene, things in views:
        expected = Counter(("thing", named(thing.source)) for thing in things)
        expected["background", scene.background] += 1
        assert facts(detailed_caption(things, scene.background)) == expected


def where(thing, side):
    x = (thing.box[0] + thing.box[2]) / 2 / side
    y = (thing.box[1] + thing.box[3]) / 2 / side
    across = "left" if x < 1 / 3 else "right" if x >= 2 / 3 else ""
    down = "top" if y < 1 / 3 else "bottom" if y >= 2 / 3 else ""
    if not down:
        return f"on the {across}" if across else "in the middle"
    return f"at the {down} {across}".strip()


def test_the_longest_caption_adds_numbers_places_and_relations(views):
    relations = Counter()
    for scene, things in views:
        found = facts(more_detailed_caption(things, scene.background))
        shapes = len(shapes_of(things))
        number = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight"]
        expected = Counter({("background", scene.background): 1})
        expected["count", "shape", number[shapes]] += 1
        expected["count", "word", number[len(things) - shapes]] += 1
        for thing in things:
            expected["thing", named(thing.source)] += 1
            expected["place", named(thing.source), where(thing, scene.config.side)] += 1
        stated = [fact for fact in found if fact[0] == "relation"]
        assert found - Counter(stated) == expected
        for _, subject, relation, other in stated:
            pairs = [(a, b) for a in called(subject, things) for b in called(other, things)]
            assert any(true(a, relation, b) for a, b in pairs)
            relations[relation] += 1
    assert set(relations) == {"inside", "left of", "above", "larger than"}


def called(name, things):
    """Shapes that have every property that a name mentions."""
    words = set(name.split())
    found = []
    for thing in shapes_of(things):
        source = thing.source
        if words <= {source.size, source.colour, source.texture, source.kind}:
            found.append(thing)
    return found


def true(subject, relation, other):
    """What a person would say, without margins."""
    a, b = subject.source, other.source
    if relation == "larger than":
        return LARGER[a.size] > LARGER[b.size]
    if relation == "inside":
        (x0, y0, x1, y1), (u0, v0, u1, v1) = subject.box, other.box
        return u0 <= x0 and v0 <= y0 and x1 <= u1 and y1 <= v1 and a.inside is not None
    axis = 0 if relation == "left of" else 1
    return subject.box[axis] + subject.box[axis + 2] < other.box[axis] + other.box[axis + 2]


EXPRESSION = re.compile(
    r"the ([a-z ]+?)(?: (inside|left of|above|larger than) the ([a-z ]+))?|the word \"([A-Z]+)\""
)


def test_an_expression_is_true_of_one_thing_alone(views):
    counted = Counter()
    for _, things in views:
        for thing in things:
            by_properties, by_relation = expressions(thing, things)
            for text in (*by_properties, *by_relation):
                name, relation, other, word = EXPRESSION.fullmatch(text).groups()
                if word:
                    meant = [t for t in things if t.category == "word" and t.source.text == word]
                else:
                    meant = called(name, things)
                    if relation:
                        (reference,) = called(other, things)
                        meant = [t for t in meant if t is not reference]
                        meant = [t for t in meant if true(t, relation, reference)]
                assert meant == [thing], text
                counted[relation] += 1
            if thing.category == "word":
                assert by_properties
    assert set(counted) == {None, "inside", "left of", "above", "larger than"}


def test_every_name_is_read():
    for colour in COLOURS:
        for kind in KINDS:
            for size in SIZES:
                for texture in TEXTURES:
                    said = "" if texture == "plain" else f"{texture} "
                    name = f"{size} {colour} {said}{kind}"
                    assert facts(f"A {name}.") == Counter([("thing", name)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {("unread", ""): 1}),
        ("A red circle", {("unread", "A red circle"): 1}),
        ("A red circle and a big dog.", {("thing", "red circle"): 1, ("unread", "a big dog"): 1}),
        ("A red red circle.", {("unread", "A red red circle"): 1}),
        ("Two blue squares.", {("thing", "blue square"): 2}),
        ("The circle is under the star.", {("unread", "The circle is under the star"): 1}),
        (
            'A large circle is at the top. The word "CAT" is in the middle.',
            {
                ("thing", "large circle"): 1,
                ("place", "large circle", "at the top"): 1,
                ("thing", 'word "CAT"'): 1,
                ("place", 'word "CAT"', "in the middle"): 1,
            },
        ),
        (
            "The red star is inside the circle.",
            {("relation", "red star", "inside", "circle"): 1},
        ),
    ],
)
def test_what_cannot_be_read_is_a_fact_that_no_truth_has(text, expected):
    assert facts(text) == expected
