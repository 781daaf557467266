"""Confidence of a box, quad or polygon: exp of the mean log-probability of its location tokens.

The original's ``avg_loc_scores`` mode, which it offers for ``<OD>`` and ``<DENSE_REGION_CAPTION>``
alone; here for every shape.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

Span = tuple[int, int]

_MARKUP = re.compile(r"<(?:loc_\d++|sep|/?poly|/?s|pad)>")


class TokenScores:
    """Log-probabilities of tokens, looked up by the characters that the tokens wrote.

    Args:
        spans: the ``[start, end)`` of each token in the text; they tile it.
        scores: float[T], the log-probability of each token given those before it.
    """

    def __init__(self, spans: Sequence[Span], scores: Sequence[float]):
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self._scores = scores

    def confidence(self, characters: Sequence[Span]) -> float:
        """exp(mean log-probability), in 0..1, of the tokens that wrote any of ``characters``."""
        tokens: list[int] = []
        for start, end in characters:
            first = bisect_right(self._ends, start)
            last = bisect_left(self._starts, end)
            # Two spans may share a token; each token counts once.
            tokens.extend(range(max(first, tokens[-1] + 1 if tokens else 0), last))
        logprobs = [self._scores[token] for token in tokens]
        return _exp(sum(logprobs) / len(logprobs))


def text_confidence(text: str, spans: Sequence[Span], scores: Sequence[float]) -> float:
    """exp(mean log-probability), in 0..1, of the tokens that wrote words; 0 without any.

    Args:
        text, spans: what the tokenizer's ``decode_with_spans`` gives.
        scores: float[T], the log-probability of each token given those before it.
    """
    edges = [0, *(edge for found in _MARKUP.finditer(text) for edge in found.span()), len(text)]
    words = [
        (start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end
    ]
    return TokenScores(spans, scores).confidence(words) if words else 0.0


def remove_markers(text: str, markers: Sequence[str]) -> tuple[str, np.ndarray]:
    """Remove ``markers`` from ``text`` one after the other; returns it with each character's old
    place.

    Returns:
        The cleaned text and int64[len(cleaned)], the index in ``text`` of each of its characters.
    """
    origins = np.arange(len(text))
    for marker in markers:
        if marker not in text:
            continue
        keep = np.ones(len(text), bool)
        position = text.find(marker)
        while position >= 0:
            keep[position : position + len(marker)] = False
            position = text.find(marker, position + len(marker))
        origins = origins[keep]
        text = text.replace(marker, "")
    return text, origins


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
