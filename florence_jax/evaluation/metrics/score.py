"""Scores of captions: their type, the check of their inputs, and n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The score of a data set and of each example.

    Attributes:
        value: the score of the data set, in the metric's own unit (CIDEr up to 10, others to 1).
        each: one number per example, in order. Their mean is `value`, except for BLEU and METEOR,
            which pool counts.
    """

    value: float
    each: list[float]


def check_captions(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> None:
    """Check captions and their references.

    Raises:
        ValueError: they do not pair up, or a caption has no reference.
    """
    if not candidates:
        raise ValueError("there is no caption to score: give at least one")
    if len(references) != len(candidates):
        raise ValueError(
            f"{len(references)} lists of references for {len(candidates)} captions: give one each"
        )
    for number, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(
                f"caption {number} has the references {texts!r}: give a list of one or more texts"
            )


def ngrams(text: str, longest: int) -> Counter[tuple[str, ...]]:
    """Counts of the n-grams of 1 to `longest` words in a text."""
    words = text.split()
    return Counter(
        tuple(words[first : first + length])
        for length in range(1, longest + 1)
        for first in range(len(words) - length + 1)
    )
