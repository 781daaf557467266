"""The content of a scene, before it is drawn. Lengths are fractions of the picture's side."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from train.shapes.config import SPLITS, SceneConfig, Split
from train.shapes.lexicon import Rgb
from train.shapes.outlines import outline, turned

Point = tuple[float, float]

# Independent random streams of one scene: none is moved by how much another uses.
PURPOSES = ("layout", "pixels", "questions", "labels")

# Pillow's own font, measured once at a size where hinting does not matter.
_MEASURED = 400


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A coloured shape.

    Attributes:
        kind, colour, size, texture: names of the lexicon.
        rgb: the colour as drawn, a little off the named one.
        centre, radius: of the outline, which `outlines.outline` gives for a radius of 1.
        tilt: degrees, clockwise.
        inside: index of the shape that surrounds this one, or None.
    """

    kind: str
    colour: str
    size: str
    texture: str
    rgb: Rgb
    centre: Point
    radius: float
    tilt: float
    inside: int | None = None

    @property
    def points(self) -> np.ndarray:
        """The outline in the picture, float64[N, 2], clockwise."""
        return self.radius * turned(outline(self.kind), self.tilt) + self.centre


@dataclass(frozen=True, kw_only=True)
class Word:
    """Drawn capitals. `height` is that of a flat letter such as H; `tilt` in degrees, clockwise."""

    text: str
    centre: Point
    height: float
    tilt: float
    tone: int

    @property
    def extent(self) -> Point:
        """Width and height of the ink, before the tilt."""
        width, height = ink_extent(self.text)
        return width * self.height, height * self.height

    @property
    def quad(self) -> np.ndarray:
        """Corners of the ink's box, float64[4, 2], clockwise from the upper left."""
        width, height = self.extent
        corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
        return turned(corners * (width / 2, height / 2), self.tilt) + self.centre


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Shapes from the lowest to the topmost, with the words above them all."""

    config: SceneConfig
    seed: int
    split: Split
    index: int
    background: str
    base: Rgb
    shapes: tuple[Shape, ...]
    words: tuple[Word, ...]

    def stream(self, purpose: str, *more: int) -> np.random.Generator:
        """Random numbers for one purpose, the same on every call."""
        return stream(self.seed, self.split, self.index, purpose, *more)


def stream(seed: int, split: Split, index: int, purpose: str, *more: int) -> np.random.Generator:
    """The random numbers of scene `index` for one of `PURPOSES`."""
    key = (SPLITS.index(split), index, PURPOSES.index(purpose), *more)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


@functools.lru_cache(maxsize=4096)
def ink_extent(text: str) -> Point:
    """Width and height of drawn capitals in heights of an H."""
    inks = [_ink(letter) for letter in text]
    # From the left edge of the first letter's ink to the right edge of the last one's.
    start = _sized(_MEASURED).getlength(text) - _sized(_MEASURED).getlength(text[-1])
    width = start + inks[-1][2] - inks[0][0]
    height = max(ink[3] for ink in inks) - min(ink[1] for ink in inks)
    return width / _cap_height(), height / _cap_height()


def letter_edges(text: str) -> np.ndarray:
    """Where each drawn capital begins and the last ends, from the ink's left: float64[letters + 1].

    In heights of an H, as `ink_extent`.
    """
    face, left = _sized(_MEASURED), _ink(text[0])[0]
    starts = [face.getlength(text[:count]) - left for count in range(1, len(text))]
    return np.array([0.0, *(start / _cap_height() for start in starts), ink_extent(text)[0]])


def font(height: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font with an H that is `height` pixels high."""
    return _sized(round(2 * height * _MEASURED / _cap_height()) / 2)


def _cap_height() -> int:
    _, top, _, bottom = _ink("H")
    return bottom - top


@functools.cache
def _ink(letter: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a letter's ink at the measured size, from where it starts."""
    sheet = Image.new("L", (3 * _MEASURED, 3 * _MEASURED))
    ImageDraw.Draw(sheet).text(
        (_MEASURED, 2 * _MEASURED), letter, fill=255, font=_sized(_MEASURED), anchor="ls"
    )
    box = sheet.getbbox()
    assert box is not None
    return (
        box[0] - _MEASURED,
        box[1] - 2 * _MEASURED,
        box[2] - _MEASURED,
        box[3] - 2 * _MEASURED,
    )


@functools.lru_cache(maxsize=256)
def _sized(size: float) -> ImageFont.FreeTypeFont:
    face = ImageFont.load_default(size)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise OSError("drawing words needs a Pillow with FreeType, as its published wheels have it")
    return face
