"""CIDEr and CIDEr-D: consensus of a caption with the references of its image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from florence_jax.evaluation.metrics.score import Scores, check_captions, ngrams

_LONGEST = 4
_SIGMA = 6.0


def cider_d(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> Scores:
    """CIDEr-D (https://arxiv.org/abs/1411.5726, section 5.1), which every table of captions on COCO
    calls CIDEr: counts are clipped at the reference's, and other lengths are penalised.

    Rare n-grams count most, and how rare they are is counted in these very references: a part of a
    data set has other figures than the whole, and a single image scores 0.

    Args:
        references: the tokenised references of each caption, tokens between spaces.
        candidates: the tokenised captions.

    Returns:
        The mean and each caption's, 0..10: `pycocoevalcap.cider`'s. Tables print it times 100.

    Raises:
        ValueError: captions and references do not pair up.
    """
    return _cider(references, candidates, clipped=True)


def cider(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> Scores:
    """CIDEr as first defined (section 3 of the paper), neither clipped nor penalised; the words as
    they stand, without stemming. `cider_d` says what goes in and comes out.
    """
    return _cider(references, candidates, clipped=False)


@dataclass(frozen=True)
class _Vector:
    """One text's weights by n-gram, their norm for each length of n-gram, and how long it is."""

    weights: dict[tuple[str, ...], float]
    norms: list[float]
    length: int


def _cider(
    references: Sequence[Sequence[str]], candidates: Sequence[str], *, clipped: bool
) -> Scores:
    check_captions(references, candidates)
    counts = [[ngrams(text, _LONGEST) for text in texts] for texts in references]
    images: Counter[tuple[str, ...]] = Counter()
    for texts in counts:
        images.update(set().union(*texts))
    total = math.log(len(candidates))

    def vector(text: Counter[tuple[str, ...]]) -> _Vector:
        weights = {
            ngram: count * (total - math.log(max(1, images[ngram])))
            for ngram, count in text.items()
        }
        squares = [0.0] * _LONGEST
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        # The reference measures length in pairs of words.
        length = sum(count for ngram, count in text.items() if len(ngram) == 2)
        return _Vector(weights, [math.sqrt(square) for square in squares], length)

    each = []
    for texts, candidate in zip(counts, candidates, strict=True):
        given = vector(ngrams(candidate, _LONGEST))
        likeness = [_likeness(given, vector(text), clipped) for text in texts]
        each.append(10.0 * sum(likeness) / len(likeness))
    return Scores(value=float(np.mean(each)), each=each)


def _likeness(given: _Vector, true: _Vector, clipped: bool) -> float:
    """Mean over the lengths of n-grams of the two texts' cosine."""
    products = [0.0] * _LONGEST
    for ngram, weight in given.weights.items():
        against = true.weights.get(ngram, 0.0)
        products[len(ngram) - 1] += (min(weight, against) if clipped else weight) * against
    cosines = [
        product / (one * other) if one and other else product
        for product, one, other in zip(products, given.norms, true.norms, strict=True)
    ]
    penalty = math.exp(-((given.length - true.length) ** 2) / (2 * _SIGMA**2)) if clipped else 1.0
    return sum(cosines) / _LONGEST * penalty
