"""The names of the world: what there is, how it is called, and what is never seen in training."""

from __future__ import annotations

import functools

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (214, 40, 40),
    "orange": (245, 133, 24),
    "yellow": (244, 210, 36),
    "green": (46, 150, 62),
    "blue": (38, 98, 214),
    "purple": (130, 58, 172),
    "pink": (246, 140, 190),
    "brown": (140, 88, 48),
}
KINDS = ("circle", "square", "triangle", "star", "cross", "heart", "moon")
# Half the extent, as fractions of the picture's side. The gaps keep the classes apart by eye.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.070, 0.085),
    "medium": (0.110, 0.130),
    "large": (0.165, 0.195),
}
SIZE_WEIGHTS = (0.4, 0.35, 0.25)
PLAIN = "plain"
TEXTURES = (PLAIN, "striped", "dotted", "outlined")
# Lightest and darkest grey of each background.
BACKGROUNDS: dict[str, tuple[int, int]] = {
    "white": (232, 250),
    "grey": (138, 168),
    "black": (18, 44),
}
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
# A relation of a subject to an object; each is true in one direction only.
RELATIONS = ("inside", "left of", "above", "larger than")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve")  # fmt: skip
WORD = "word"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def is_held_out(colour: str, kind: str, size: str) -> bool:
    """Whether the three occur together in the held-out split alone.

    One in eight does: of every kind and size one colour, of every colour and kind at most one size,
    of every colour and size at most one kind. So each pair of properties is seen in training.
    """
    c, k, s = list(COLOURS).index(colour), KINDS.index(kind), list(SIZES).index(size)
    return (c + 3 * k + 2 * s) % len(COLOURS) == 0


@functools.cache
def held_out_combinations() -> tuple[tuple[str, str, str], ...]:
    """Every (colour, kind, size) of the held-out split."""
    return tuple(
        (colour, kind, size)
        for colour in COLOURS
        for kind in KINDS
        for size in SIZES
        if is_held_out(colour, kind, size)
    )
