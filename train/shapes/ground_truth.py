"""The visible things of a scene, each with its box, outline and names.

Boxes, polygons and positions are of what is *visible*, as in COCO: what another shape covers does
not count, nor do crumbs that it cuts off. A shape of which more than `SceneConfig.hidden` is
covered is not listed. A word is the rectangle around its ink, which nothing covers. Coordinates are
exact to half a pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from florence_jax.processing import quantize
from train.shapes.lexicon import COLOURS, KINDS, PLAIN, WORD
from train.shapes.outlines import area, polygons, without_crumbs
from train.shapes.render import FINE, owners
from train.shapes.scene import Scene, Shape, Word

# How far a vertex of the exact outline may be off the polygon, of the picture's side.
_TOLERANCE = 0.006
# Parts of a shape that what covers it has cut off count from this share of what is visible on.
_LEAST_PART = 0.03

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Thing:
    """A listed shape or word.

    Attributes:
        source: The shape or word of the scene.
        number: its place among the scene's shapes and words, from the lowest to the topmost.
        side: Side of the picture, in pixels.
        box: the visible extent (x0, y0, x1, y1) in pixels.
        mask: bool[h, w], where it is seen in the picture drawn FINE times as large, cut out.
        corner: x and y there of the mask's first pixel.
    """

    source: Shape | Word
    number: int
    side: int
    box: Box
    mask: np.ndarray = field(repr=False)
    corner: tuple[int, int]

    @property
    def category(self) -> str:
        return WORD if isinstance(self.source, Word) else self.source.kind

    @property
    def name(self) -> str:
        """Its name in a short caption: "red circle"; a word's is that of `description`."""
        if isinstance(self.source, Word):
            return self.description
        return f"{self.source.colour} {self.source.kind}"

    @property
    def description(self) -> str:
        """All that is said of it: "small red striped circle", 'word "CAT"'."""
        source = self.source
        if isinstance(source, Word):
            return f'{WORD} "{source.text}"'
        texture = () if source.texture == PLAIN else (source.texture,)
        return " ".join((source.size, source.colour, *texture, source.kind))

    @property
    def centre(self) -> tuple[float, float]:
        """The centre of the box, as fractions of the picture."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / (2 * self.side), (y0 + y1) / (2 * self.side)

    def polygons(self) -> list[list[float]]:
        """The visible parts, the largest first, without holes: x and y alternating, in pixels."""
        if isinstance(self.source, Word):
            return [self.quad]
        found = polygons(self.mask, _TOLERANCE * self.side * FINE)
        return [((part + self.corner) / FINE).ravel().tolist() for part in found]

    @property
    def quad(self) -> list[float]:
        """A word's corners in pixels, clockwise from the upper left, x and y alternating."""
        assert isinstance(self.source, Word)
        return (self.source.quad * self.side).ravel().tolist()


def things_seen(scene: Scene) -> tuple[Thing, ...]:
    """Every listed thing, in reading order: by the upper edge, then by the left one."""
    seen = owners(scene)
    side = scene.config.side
    things = []
    for number, source in enumerate((*scene.shapes, *scene.words)):
        outline = source.quad if isinstance(source, Word) else source.points
        x0, y0 = np.maximum(np.floor(outline.min(axis=0) * side * FINE).astype(int) - 1, 0).tolist()
        x1, y1 = (np.ceil(outline.max(axis=0) * side * FINE).astype(int) + 2).tolist()
        mask = seen[y0:y1, x0:x1] == number + 1
        if isinstance(source, Shape):
            whole = area(source.kind) * (source.radius * side * FINE) ** 2
            if mask.sum() < (1 - scene.config.hidden) * whole:
                continue
            # A shape above may have cut it in pieces.
            if (seen[y0:y1, x0:x1] > number + 1).any():
                mask = without_crumbs(mask, _LEAST_PART)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        left, right = (x0 + columns[[0, -1]] + (0, 1)) / FINE
        top, bottom = (y0 + rows[[0, -1]] + (0, 1)) / FINE
        things.append(
            Thing(
                source=source,
                number=number,
                side=side,
                box=(float(left), float(top), float(right), float(bottom)),
                mask=mask,
                corner=(x0, y0),
            )
        )
    return tuple(sorted(things, key=_reading))


def _reading(thing: Thing) -> tuple[int, int]:
    # In bins, as targets are ordered: edges that are written alike are not told apart.
    x0, y0, _, _ = quantize(thing.box, (thing.side, thing.side)).tolist()
    return y0, x0


def mislabelled(scene: Scene, things: Sequence[Thing]) -> tuple[Thing, ...]:
    """The things of a scene, some shapes by the name of what they are not.

    A wrong name has another colour and another kind, and is the name of nothing else in the scene,
    so that what is said stays unambiguous. The same shapes are wrong in every answer and at every
    call.
    """
    found = list(things)
    if not scene.config.mislabelled:
        return tuple(found)
    rng = scene.stream("labels")
    for place, thing in enumerate(found):
        # Drawn whether used or not: one shape's error does not move the next one's.
        errs, draw = rng.random() < scene.config.mislabelled, rng.random()
        if not (errs and isinstance(thing.source, Shape)):
            continue
        taken = {other.description for other in found}
        wrong = [
            renamed
            for colour in COLOURS
            for kind in KINDS
            if colour != thing.source.colour and kind != thing.source.kind
            for renamed in [_named(thing, thing.source, colour, kind)]
            if renamed.description not in taken
        ]
        found[place] = wrong[int(draw * len(wrong))]
    return tuple(found)


def _named(thing: Thing, shape: Shape, colour: str, kind: str) -> Thing:
    return dataclasses.replace(thing, source=dataclasses.replace(shape, colour=colour, kind=kind))
