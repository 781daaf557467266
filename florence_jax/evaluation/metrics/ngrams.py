"""Runs of words."""

from __future__ import annotations

from collections import Counter


def ngrams(text: str, longest: int) -> Counter[tuple[str, ...]]:
    """How often each run of 1 to `longest` words is in the text."""
    words = text.split()
    return Counter(
        tuple(words[first : first + length])
        for length in range(1, longest + 1)
        for first in range(len(words) - length + 1)
    )
