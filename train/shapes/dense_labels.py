"""What lies at each point of a scene's picture: exact labels that an image encoder can learn."""

from __future__ import annotations

import string
from typing import NamedTuple

import numpy as np

from train.shapes.ground_truth import things_seen
from train.shapes.lexicon import BACKGROUNDS, COLOURS, KINDS, SIZES, TEXTURES, WORD
from train.shapes.outlines import turned
from train.shapes.render import FINE, owners
from train.shapes.scene import Scene, Shape, Word, letter_edges

# What is asked of a point, and the answers. The first stands for "none here"; backgrounds are
# colours too, so that they are not nothing.
CLASSES: dict[str, tuple[str, ...]] = {
    "kind": ("", WORD, *KINDS),
    "colour": ("", *COLOURS, *BACKGROUNDS),
    "size": ("", *SIZES),
    "texture": ("", *TEXTURES),
    "letter": ("", *string.ascii_uppercase),
}


class Points(NamedTuple):
    """Of points at the middles of N x N equal cells.

    Attributes:
        classes: int32[N, N, 5], numbers of `CLASSES`.
        edges: float32[N, N, 4], from the point to x0, y0, x1 and y1 of its thing's box, as
            fractions of the side; NaN where no listed thing is.
    """

    classes: np.ndarray
    edges: np.ndarray


def points_of(scene: Scene, count: int) -> Points:
    """The labels of `count` x `count` points. What is seen at a point owns it."""
    side = scene.config.side * FINE
    middles = (np.arange(count) + 0.5) / count
    pixels = (middles * side).astype(int)
    owner = owners(scene)[np.ix_(pixels, pixels)]
    sources = (*scene.shapes, *scene.words)
    known = np.array([_numbers({"colour": scene.background}), *map(_named, sources)])
    classes = known[owner]
    x, y = np.meshgrid(middles, middles)
    for number, word in enumerate(sources, start=1):
        here = owner == number
        if isinstance(word, Word) and here.any():
            points = np.stack([x[here], y[here]], axis=1)
            classes[here, -1] = [CLASSES["letter"].index(c) for c in _letters_at(word, points)]
    boxes = np.full((len(sources) + 1, 4), np.nan)
    for thing in things_seen(scene):
        boxes[thing.number + 1] = np.array(thing.box) / thing.side
    edges = boxes[owner] - np.stack([x, y, x, y], axis=-1)
    return Points(classes.astype(np.int32), edges.astype(np.float32))


def _named(source: Shape | Word) -> list[int]:
    if isinstance(source, Word):
        return _numbers({"kind": WORD})
    names = ("kind", "colour", "size", "texture")
    return _numbers({name: getattr(source, name) for name in names})


def _numbers(named: dict[str, str]) -> list[int]:
    return [answers.index(named.get(name, "")) for name, answers in CLASSES.items()]


def _letters_at(word: Word, points: np.ndarray) -> list[str]:
    """The letter whose part of the word's rectangle each point float64[P, 2] lies in."""
    upright = turned(points - word.centre, -word.tilt)
    along = upright[:, 0] + word.extent[0] / 2
    ends = letter_edges(word.text)[1:-1] * word.height
    return [word.text[place] for place in np.searchsorted(ends, along).tolist()]
