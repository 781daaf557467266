"""Labels as an annotator who errs gives them: the share `SceneConfig.mislabelled` is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from train.shapes.ground_truth import Thing
from train.shapes.lexicon import COLOURS, KINDS
from train.shapes.scene import Scene, Shape


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
