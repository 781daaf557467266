"""ROUGE-L of captions, as COCO's caption evaluation counts it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from florence_jax.evaluation.metrics.score import Scores, check_captions

# How much recall weighs beside precision.
_BETA = 1.2


def rouge_l(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> Scores:
    """ROUGE-L (Lin 2004) of tokenised captions: F of the longest common subsequence of words, with
    the best precision and the best recall over the references.

    Args:
        references: the tokenised references of each caption, tokens between single spaces.
        candidates: the tokenised captions.

    Returns:
        The mean and each caption's, 0..1: `pycocoevalcap.rouge`'s.

    Raises:
        ValueError: captions and references do not pair up.
    """
    check_captions(references, candidates)
    each = [_score(*pair) for pair in zip(references, candidates, strict=True)]
    return Scores(value=float(np.mean(each)), each=each)


def _score(references: Sequence[str], candidate: str) -> float:
    # An empty text is one empty word, as in the reference: two of them agree.
    words = candidate.split(" ")
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = _common(words, others)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, against in enumerate(other, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == against else max(above, row[place - 1])
            diagonal = above
    return row[-1]
