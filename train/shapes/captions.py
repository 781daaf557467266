"""Captions at three levels, names for one thing of many, and how things lie to each other.

Places and relations are stated only where they are clear. `facts` reads captions back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

from train.shapes.ground_truth import Thing
from train.shapes.lexicon import NUMBERS, PLACES, PLAIN, RELATIONS, SIZES, WORD, plural
from train.shapes.scene import Shape, Word

# A phrase of a caption and the things that it names.
Phrase = tuple[str, tuple[Thing, ...]]


# Fractions of the picture by which centres must differ.
_CLEARLY = 0.08


def caption(things: Sequence[Thing]) -> str:
    """ "A red circle, two blue squares and a green star." """
    return _sentence(_listed([phrase for phrase, _ in short_phrases(things)]))


def detailed_caption(things: Sequence[Thing], background: str) -> str:
    """'The image shows a large red circle and the word "CAT" on a grey background.'"""
    listed = _listed([phrase for phrase, _ in detailed_phrases(things)])
    return f"The image shows {listed} on a {background} background."


def more_detailed_caption(things: Sequence[Thing], background: str) -> str:
    """A sentence that counts, one for each thing and where it is, and one for each relation."""
    shapes = shapes_of(things)
    counted = " and ".join(
        f"{NUMBERS[count]} {noun if count == 1 else plural(noun)}"
        for count, noun in ((len(shapes), "shape"), (len(things) - len(shapes), WORD))
        if count
    )
    sentences = [f"The image shows {counted} on a {background} background."]
    sentences += [
        _sentence(f"{phrase} is {place(thing)}") for phrase, (thing,) in detailed_phrases(things)
    ]
    for subject, relation, other in stated_relations(shapes):
        name, other_name = (shortest_name(thing, shapes) for thing in (subject, other))
        sentences.append(f"The {name} is {relation} the {other_name}.")
    return " ".join(sentences)


def short_phrases(things: Sequence[Thing]) -> list[Phrase]:
    """Shapes by colour and kind, those of one name together: "a red circle", "two blue squares"."""
    named: dict[str, list[Thing]] = {}
    for thing in shapes_of(things):
        named.setdefault(thing.name, []).append(thing)
    return [
        (
            _article(name) if len(group) == 1 else f"{NUMBERS[len(group)]} {plural(name)}",
            tuple(group),
        )
        for name, group in named.items()
    ]


def detailed_phrases(things: Sequence[Thing]) -> list[Phrase]:
    """Everything by its description: "a small red striped circle", 'the word "CAT"'."""
    return [
        (
            f"the {thing.description}"
            if isinstance(thing.source, Word)
            else _article(thing.description),
            (thing,),
        )
        for thing in things
    ]


def sentence_case(phrases: Sequence[Phrase]) -> list[Phrase]:
    """Phrases as they stand in a sentence that begins with the first of them."""
    (first, group), *others = phrases
    return [(first[0].upper() + first[1:], group), *others]


def shapes_of(things: Sequence[Thing]) -> list[Thing]:
    return [thing for thing in things if isinstance(thing.source, Shape)]


def shortest_name(thing: Thing, shapes: Sequence[Thing]) -> str:
    """The kind, else colour and kind, where only one shape is called so; else the description."""
    for name in (thing.category, thing.name):
        if sum(name in (other.category, other.name) for other in shapes) == 1:
            return name
    return thing.description


def expressions(thing: Thing, things: Sequence[Thing]) -> tuple[list[str], list[str]]:
    """Expressions that refer to one thing and to no other: by its properties, by a relation.

    "the large circle", "the red striped circle"; "the circle left of the blue square".
    """
    if isinstance(thing.source, Word):
        return [f"the {thing.description}"], []
    shapes = shapes_of(things)
    called = Counter(name for shape in shapes for name in _partial_names(shape))
    by_properties = [f"the {name}" for name in _partial_names(thing) if called[name] == 1]
    by_relation = [
        f"the {name} {relation} the {shortest_name(other, shapes)}"
        for name in (thing.category, thing.name)
        for relation, other in _distinguishing(thing, name, shapes)
    ]
    return by_properties, by_relation


def _distinguishing(
    thing: Thing, name: str, shapes: Sequence[Thing]
) -> Iterator[tuple[str, Thing]]:
    """Relations that hold for this shape and clearly for no other that has the name.

    The things referred to are those that kind and colour identify.
    """
    rivals = [s for s in shapes if s is not thing and name in (s.category, s.name)]
    for other in shapes:
        if other is thing or shortest_name(other, shapes) not in (other.category, other.name):
            continue
        for relation in RELATIONS:
            denied = [
                holds(rival, relation, other) is False for rival in rivals if rival is not other
            ]
            if holds(thing, relation, other) and all(denied):
                yield relation, other


def _partial_names(thing: Thing) -> list[str]:
    """The kind with every choice of its properties, in the order they are said."""
    source = thing.source
    assert isinstance(source, Shape)
    said = [source.size, source.colour] + [source.texture] * (source.texture != PLAIN)
    return [
        " ".join((*chosen, source.kind))
        for count in range(len(said) + 1)
        for chosen in combinations(said, count)
    ]


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _listed(phrases: Sequence[str]) -> str:
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def place(thing: Thing) -> str:
    """Which ninth of the picture the box's centre is in: "at the top left"."""
    column, row = (min(2, int(3 * at)) for at in thing.centre)
    return PLACES[row][column]


def holds(subject: Thing, relation: str, other: Thing) -> bool | None:
    """Whether `subject` is `relation` `other`; None where it is too close to call.

    "left of" and "above" compare the centres of the boxes, "larger than" the names of the sizes;
    "inside" is that the whole outline lies in the other's.
    """
    if relation == "inside":
        return _shape(subject).inside == other.number
    if relation == "larger than":
        sizes = list(SIZES)
        return sizes.index(_shape(subject).size) > sizes.index(_shape(other).size)
    axis = ("left of", "above").index(relation)
    ahead = other.centre[axis] - subject.centre[axis]
    return None if 0 < ahead < _CLEARLY else ahead > 0


def stated_relations(shapes: Sequence[Thing]) -> Iterator[tuple[Thing, str, Thing]]:
    """The relations that a long caption states: at most one of each of three sorts.

    Something inside something; how the first two shapes in reading order lie to each other, along
    the axis on which they are farther apart; the first pair of unequal sizes, the larger one first.
    """
    pairs = [(a, b) for n, a in enumerate(shapes) for b in shapes[n + 1 :]]
    both_ways = [pair for a, b in pairs for pair in ((a, b), (b, a))]
    for a, b in both_ways:
        if holds(a, "inside", b):
            yield a, "inside", b
            break
    if pairs:
        a, b = pairs[0]
        across, down = (abs(p - q) for p, q in zip(a.centre, b.centre, strict=True))
        relation = "left of" if across > down else "above"
        for subject, other in ((a, b), (b, a)):
            if holds(subject, relation, other):
                yield subject, relation, other
    for a, b in both_ways:
        if holds(a, "larger than", b):
            yield a, "larger than", b
            break


def _shape(thing: Thing) -> Shape:
    assert isinstance(thing.source, Shape)
    return thing.source
