"""Text metrics: exact match, edit distance, similarity and ANLS."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def exact_match(truths: Iterable[str], answer: str) -> float:
    """1 where the answer is one of the truths, to the letter; else 0."""
    return float(any(answer == truth for truth in truths))


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's: characters to insert, delete or replace."""
    letters = np.frombuffer(other.encode("utf-32-le"), np.uint32)
    places = np.arange(len(letters) + 1)
    row = places.copy()
    for number, letter in enumerate(one, start=1):
        replaced = row[:-1] + (letters != ord(letter))
        best = np.concatenate([[number], np.minimum(row[1:] + 1, replaced)])
        # Insertions run along the row: the least of all entries before, one more for each place.
        row = np.minimum.accumulate(best - places) + places
    return int(row[-1])


def similarity(one: str, other: str) -> float:
    """1 minus the edit distance over the longer text's length; 1 for two empty ones."""
    longer = max(len(one), len(other))
    return 1.0 - edit_distance(one, other) / longer if longer else 1.0


def anls(truths: Iterable[str], answer: str, *, threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity's term for one answer
    (https://arxiv.org/abs/1907.00490, equation 1): the best of the truths, case and repeated spaces
    aside, and 0 where the normalised distance is above `threshold`.

    At the threshold itself the equation says 0; DocVQA's server counts a similarity of just 0.5,
    and so does this.

    Raises:
        ValueError: there is no truth.
    """
    given = _plain(answer)
    best = max((similarity(_plain(truth), given) for truth in truths), default=None)
    if best is None:
        raise ValueError(f"the answer {answer!r} has no truth to be compared with")
    return best if 1.0 - best <= threshold else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
