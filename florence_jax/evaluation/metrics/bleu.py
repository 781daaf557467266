"""BLEU-1 to BLEU-4 of captions, as COCO's caption evaluation counts them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from florence_jax.evaluation.metrics.score import Scores, check_captions, ngrams

_LONGEST = 4
# The reference's: without a match BLEU is tiny rather than 0, and an empty caption divides by it.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> tuple[Scores, ...]:
    """BLEU-1, 2, 3 and 4 (Papineni et al. 2002) of tokenised captions.

    Counts are pooled over all captions; the brevity penalty compares with each caption's reference
    closest in length, the shorter of two. The number of a single caption is its own BLEU.

    Args:
        references: the tokenised references of each caption, tokens between spaces.
        candidates: the tokenised captions.

    Returns:
        Four scores, 0..1: `pycocoevalcap.bleu`'s.

    Raises:
        ValueError: captions and references do not pair up.
    """
    check_captions(references, candidates)
    total, each = _Counts(), []
    for texts, candidate in zip(references, candidates, strict=True):
        counts = _counts(texts, candidate)
        total.add(counts)
        each.append(counts.bleu())
    return tuple(
        Scores(value=value, each=[scores[order] for scores in each])
        for order, value in enumerate(total.bleu())
    )


class _Counts:
    """Counts of one caption or many: matching and given n-grams by order, and the lengths."""

    def __init__(self) -> None:
        self.right = [0] * _LONGEST
        self.given = [0] * _LONGEST
        self.length = self.reference_length = 0

    def add(self, other: _Counts) -> None:
        for order in range(_LONGEST):
            self.right[order] += other.right[order]
            self.given[order] += other.given[order]
        self.length += other.length
        self.reference_length += other.reference_length

    def bleu(self) -> list[float]:
        ratio = (self.length + _TINY) / (self.reference_length + _SMALL)
        brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        product, scores = 1.0, []
        for order in range(_LONGEST):
            product *= (self.right[order] + _TINY) / (self.given[order] + _SMALL)
            scores.append(product ** (1 / (order + 1)) * brevity)
        return scores


def _counts(references: Sequence[str], candidate: str) -> _Counts:
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= ngrams(reference, _LONGEST)
    counts = _Counts()
    counts.length = len(candidate.split())
    lengths = (len(reference.split()) for reference in references)
    counts.reference_length = min(lengths, key=lambda n: (abs(n - counts.length), n))
    counts.given = [max(0, counts.length - order) for order in range(_LONGEST)]
    for ngram, count in ngrams(candidate, _LONGEST).items():
        counts.right[len(ngram) - 1] += min(count, most[ngram])
    return counts
