"""Sample a scene at random, with room for everything that must be seen."""

from __future__ import annotations

import dataclasses

import numpy as np

from train.shapes.config import SceneConfig, Split
from train.shapes.lexicon import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    PLAIN,
    SIZE_WEIGHTS,
    SIZES,
    TEXTURES,
    draw_word,
    held_out_combinations,
    is_held_out,
)
from train.shapes.outlines import area, reach, room
from train.shapes.scene import Scene, Shape, Word, stream

_CANDIDATES = 24
_ATTEMPTS = 3
_GAP = 0.012  # between what does not overlap, and to the picture's edge


def make_scene(config: SceneConfig, seed: int, split: Split, index: int) -> Scene:
    """Scene `index` of a split; nothing but the arguments decides it."""
    rng = stream(seed, split, index, "layout")
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    grey = rng.integers(*BACKGROUNDS[background], endpoint=True)
    base = np.clip(grey + rng.integers(-6, 7, 3), 0, 255).tolist()
    board = _Board(config, rng)
    # The first shape finds an empty board, so a held-out scene always has its combination.
    board.add_shape(_first_shape(rng, split))
    for _ in range(rng.integers(*config.words, endpoint=True)):
        board.add_word(draw_word(rng, config, split), background)
    wanted = rng.integers(*config.shapes, endpoint=True)
    for _ in range(_ATTEMPTS * wanted):
        if len(board.shapes) < wanted:
            _add_another(board, split)
    return Scene(
        config=config,
        seed=seed,
        split=split,
        index=index,
        background=background,
        base=tuple(base),
        shapes=tuple(board.shapes),
        words=tuple(board.words),
    )


def _first_shape(rng: np.random.Generator, split: Split) -> tuple[str, str, str]:
    if split != "held-out":
        return _any_shape(rng, split)
    combinations = held_out_combinations()
    return combinations[rng.integers(len(combinations))]


def _any_shape(rng: np.random.Generator, split: Split, **given: str) -> tuple[str, str, str]:
    while True:
        colour = given.get("colour") or list(COLOURS)[rng.integers(len(COLOURS))]
        kind = given.get("kind") or KINDS[rng.integers(len(KINDS))]
        size = given.get("size") or str(rng.choice(list(SIZES), p=SIZE_WEIGHTS))
        if split == "held-out" or not is_held_out(colour, kind, size):
            return colour, kind, size


def _add_another(board: _Board, split: Split) -> None:
    rng, config, shapes = board.rng, board.config, board.shapes
    if rng.random() < config.inside:
        combination = _any_shape(rng, split, size="small")
        holder = board.holder(combination)
        if holder is not None:
            board.add_shape(combination, holder)
            return
    if rng.random() < config.repeat:
        twin = shapes[rng.integers(len(shapes))]
        board.add_shape(_any_shape(rng, split, colour=twin.colour, kind=twin.kind))
    else:
        board.add_shape(_any_shape(rng, split))


class _Board:
    """A scene being filled."""

    def __init__(self, config: SceneConfig, rng: np.random.Generator):
        self.config, self.rng = config, rng
        self.shapes: list[Shape] = []
        self.words: list[Word] = []
        self._joined: set[int] = set()  # shapes that already overlap another or hold one

    def holder(self, combination: tuple[str, str, str]) -> int | None:
        """A shape of another colour with room for this one, that nothing overlaps so far."""
        colour, kind, size = combination
        least = max(SIZES[size]) * reach(kind) + _GAP
        free = [
            index
            for index, shape in enumerate(self.shapes)
            if index not in self._joined
            and shape.colour != colour
            and shape.radius * room(shape.kind) > least
        ]
        return free[self.rng.integers(len(free))] if free else None

    def add_shape(self, combination: tuple[str, str, str], holder: int | None = None) -> None:
        """Place a shape with this colour, kind and size, or leave it out where none fits.

        Args:
            holder: index of the shape inside which it must lie.
        """
        rng, config = self.rng, self.config
        colour, kind, size = combination
        texture = PLAIN
        if rng.random() < config.textured:
            texture = TEXTURES[rng.integers(1, len(TEXTURES))]
        radius = rng.uniform(*SIZES[size])
        extent = radius * reach(kind)
        # A description names one shape.
        if (colour, kind, size, texture) in {
            (s.colour, s.kind, s.size, s.texture) for s in self.shapes
        }:
            return
        partner = holder
        if holder is None and self.shapes and rng.random() < config.overlap:
            partner = int(rng.integers(len(self.shapes)))
        # Shapes that overlap must differ in colour, and no shape overlaps two.
        if partner in self._joined or (
            partner is not None and self.shapes[partner].colour == colour
        ):
            partner = None
        spots = self._spots(partner, radius, kind, inside=holder is not None)
        spots = self._clear(spots, extent, partner)
        if not len(spots) and holder is None and partner is not None:
            partner = None
            spots = self._clear(self._spots(None, radius, kind), extent)
        if not len(spots):
            return
        if partner is not None:
            self._joined |= {partner, len(self.shapes)}
        self.shapes.append(
            Shape(
                kind=kind,
                colour=colour,
                size=size,
                texture=texture,
                rgb=tuple(np.clip(COLOURS[colour] + rng.integers(-10, 11, 3), 0, 255).tolist()),
                centre=tuple(spots[0].tolist()),
                radius=radius,
                tilt=rng.uniform(-config.shape_tilt, config.shape_tilt),
                inside=holder,
            )
        )

    def add_word(self, text: str, background: str) -> None:
        """Place a word clear of everything, or leave it out where it does not fit."""
        rng, config = self.rng, self.config
        dark = background == "black"
        word = Word(
            text=text,
            centre=(0.0, 0.0),
            height=rng.uniform(*config.letter_height),
            tilt=rng.uniform(-config.word_tilt, config.word_tilt),
            tone=int(rng.integers(225, 251) if dark else rng.integers(10, 41)),
        )
        half = word.quad.max(axis=0)
        slack = 1 - 2 * (half + _GAP)
        spots = half + _GAP + rng.random((_CANDIDATES, 2)) * slack
        clear = np.full(_CANDIDATES, slack.min() > 0)
        for shape in self.shapes:
            beyond = np.maximum(np.abs(spots - shape.centre) - half, 0)
            clear &= np.hypot(*beyond.T) > shape.radius * reach(shape.kind) + _GAP
        for other in self.words:
            apart = np.abs(spots - other.centre) - half - (other.quad - other.centre).max(axis=0)
            clear &= (apart > _GAP).any(axis=1)
        if text not in {other.text for other in self.words} and clear.any():
            centre = tuple(spots[clear.argmax()].tolist())
            self.words.append(dataclasses.replace(word, centre=centre))

    def _spots(
        self, partner: int | None, radius: float, kind: str, *, inside: bool = False
    ) -> np.ndarray:
        """float64[C, 2]: places for a shape, anywhere or with respect to its partner."""
        free = self.rng.random((_CANDIDATES, 2))
        if partner is None:
            margin = radius * reach(kind) + _GAP
            return margin + free * (1 - 2 * margin)
        other = self.shapes[partner]
        if inside:
            distance = free[:, 0] * (other.radius * room(other.kind) - radius * reach(kind) - _GAP)
        else:
            # As if both were discs of their areas.
            first, second = (r * np.sqrt(area(k) / np.pi) for r, k in
                             ((radius, kind), (other.radius, other.kind)))  # fmt: skip
            depth = (0.25 + 0.75 * free[:, 0]) * self.config.overlap_depth
            distance = first + second - 2 * depth * min(first, second)
        angle = 2 * np.pi * free[:, 1]
        return other.centre + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def _clear(self, spots: np.ndarray, extent: float, partner: int | None = None) -> np.ndarray:
        """The spots where a disc is in the picture and touches nothing but its partner."""
        clear = ((spots > extent + _GAP) & (spots < 1 - extent - _GAP)).all(axis=1)
        for index, shape in enumerate(self.shapes):
            if index != partner:
                apart = np.linalg.norm(spots - shape.centre, axis=1)
                clear &= apart > extent + shape.radius * reach(shape.kind) + _GAP
        for word in self.words:
            half = (word.quad - word.centre).max(axis=0)
            beyond = np.maximum(np.abs(spots - word.centre) - half, 0)
            clear &= np.hypot(*beyond.T) > extent + _GAP
        return spots[clear]
