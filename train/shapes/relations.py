"""Where things are and how they stand to each other, said only where it is clear."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from train.shapes.ground_truth import Thing
from train.shapes.lexicon import PLACES, SIZES
from train.shapes.scene import Shape

# Fractions of the picture by which centres must differ.
_CLEARLY = 0.08


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
