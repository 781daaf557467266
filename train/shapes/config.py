"""How hard the world is: every number that a scene is drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

Split = Literal["train", "valid", "held-out"]

# "valid" has new scenes of the training distribution; every scene of "held-out" has a shape whose
# colour, kind and size never occur together in the others, and words that never occur in them.
SPLITS: tuple[Split, ...] = ("train", "valid", "held-out")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Lengths are fractions of the picture's side, so a scene is the same at every `side`.

    Attributes:
        side: width and height of the picture in pixels.
        shapes: fewest and most shapes asked for; one that finds no room is left out.
        words: fewest and most drawn words.
        letters: fewest and most letters of a word; the lists have 2 to 5.
        letter_height: smallest and largest height of the capitals. 0.075 is 16.8 px of 224.
        invented_words: share of training words that are letters at random, so that reading cannot
            be guessing from a list.
        word_tilt: most degrees that a word is turned, either way.
        shape_tilt: most degrees that a shape is turned, either way.
        textured: share of shapes that are striped, dotted or outlined.
        repeat: chance that a shape takes the colour and the kind of an earlier one.
        overlap: chance that a shape covers a part of another.
        overlap_depth: largest part of the smaller one's width that then overlaps.
        inside: chance that, where a shape has room for it, a small one is put inside.
        hidden: a shape of which a larger part than this is covered is left out of every truth.
        clutter: fewest and most lines and specks of the background, which no truth names.
        gradient: most 8-bit levels by which light falls off from the middle to a corner.
        noise: most 8-bit levels by which a pixel's channel is off.
        region_jitter: most by which a region asked about is off, of its width or height.
        mislabelled: share of shapes that every answer calls by a wrong colour and kind, as an
            annotator who errs would. Pictures, boxes and outlines stay as they are.
    """

    side: int = 224
    shapes: tuple[int, int] = (2, 4)
    words: tuple[int, int] = (1, 2)
    letters: tuple[int, int] = (2, 5)
    letter_height: tuple[float, float] = (0.075, 0.105)
    invented_words: float = 0.5
    word_tilt: float = 12.0
    shape_tilt: float = 25.0
    textured: float = 0.5
    repeat: float = 0.15
    overlap: float = 0.4
    overlap_depth: float = 0.35
    inside: float = 0.5
    hidden: float = 0.6
    clutter: tuple[int, int] = (0, 6)
    gradient: float = 18.0
    noise: int = 8
    region_jitter: float = 0.03
    mislabelled: float = 0.0

    def __post_init__(self) -> None:
        if not 64 <= self.side <= 1024:
            raise ValueError(f"side is {self.side}, expected 64 to 1024 pixels")
        for name, least, most in (
            ("shapes", 1, 12),
            ("words", 0, 4),
            ("letters", 2, 5),
            ("clutter", 0, 100),
            ("letter_height", 0.03, 0.15),
        ):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(
                    f"{name} is {(low, high)}, expected (fewest, most) within {least} to {most}"
                )
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} is {value}, expected a finite number from 0")
        shares = ("invented_words", "textured", "repeat", "overlap", "overlap_depth", "inside")
        for name in (*shares, "mislabelled"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share of at most 1")
        if not 0 <= self.noise <= 64:
            raise ValueError(f"noise is {self.noise}, expected 0 to 64 levels")
