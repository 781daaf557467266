"""Metrics of captions: BLEU, ROUGE-L, CIDEr and METEOR, as COCO's caption evaluation has them."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Longest n-grams of BLEU and CIDEr.
_LONGEST = 4
# Weight of recall beside precision in ROUGE-L.
_BETA = 1.2
# pycocoevalcap's: without a match BLEU is tiny rather than 0, and an empty caption divides by it.
_TINY, _SMALL = 1e-15, 1e-9
# Width of CIDEr-D's penalty for another length, in pairs of words.
_SIGMA = 6.0


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The score of a data set and of each example.

    Attributes:
        value: the score of the data set, in the metric's own range (CIDEr 0..10, others 0..1).
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


def rouge_l(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> Scores:
    """ROUGE-L (Lin 2004) of tokenised captions.

    The F-measure of the longest common subsequence of words, from the best precision and the best
    recall over the references.

    Args:
        references: the tokenised references of each caption, tokens between single spaces.
        candidates: the tokenised captions.

    Returns:
        The mean and each caption's score, 0..1, equal to `pycocoevalcap.rouge`.

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


def bleu(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> tuple[Scores, ...]:
    """BLEU-1, 2, 3 and 4 (Papineni et al. 2002) of tokenised captions; arguments as `rouge_l`.

    Counts are pooled over all captions. The brevity penalty compares with each caption's reference
    that is closest in length, the shorter one of two. `each` holds the BLEU of each caption alone.

    Returns:
        Four scores, 0..1, equal to `pycocoevalcap.bleu`.

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
    """Counts of one or more captions: matching and given n-grams by order, and lengths."""

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


def cider_d(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> Scores:
    """CIDEr-D (https://arxiv.org/abs/1411.5726, section 5.1); arguments as `rouge_l`.

    Tables of COCO captions call it CIDEr. Counts are clipped at the reference's, and a difference
    in length is penalised. N-grams are weighted by their rarity among these references: scores of a
    part of a data set differ from those of the whole, and a single image scores 0.

    Returns:
        The mean and each caption's score, 0..10, equal to `pycocoevalcap.cider`; tables print it
        times 100.

    Raises:
        ValueError: captions and references do not pair up.
    """
    return _cider(references, candidates, clipped=True)


def cider(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> Scores:
    """CIDEr as first defined (section 3 of the paper): not clipped, without a length penalty.

    Words are compared as they are, without stemming. Arguments and result are those of `cider_d`.
    """
    return _cider(references, candidates, clipped=False)


@dataclass(frozen=True)
class _Vector:
    """TF-IDF weights of a text by n-gram, their norm for each n-gram length, and the length."""

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
    """Cosine similarity of two texts, averaged over the n-gram lengths."""
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


@functools.cache
def meteor_is_installed() -> bool:
    """Whether Java and pycocoevalcap, which bundles METEOR's program, are installed."""
    if not shutil.which("java") or importlib.util.find_spec("pycocoevalcap") is None:
        return False
    # macOS ships a `java` that only prints where to install Java.
    try:
        asked = subprocess.run(["java", "-version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


class MeteorError(RuntimeError):
    """METEOR's Java program failed."""


def meteor(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> Scores:
    """METEOR 1.5 (Denkowski and Lavie 2014) of tokenised English captions; arguments as `rouge_l`.

    Runs the Java program that pycocoevalcap bundles, with its settings: METEOR's stems, synonyms
    and paraphrases are hundreds of megabytes of data.

    Returns:
        The data set's METEOR, 0..1, and each caption's.

    Raises:
        ModuleNotFoundError: Java or pycocoevalcap is missing.
        MeteorError: the program fails.
        ValueError: captions and references do not pair up.
    """
    check_captions(references, candidates)
    if not meteor_is_installed():
        raise ModuleNotFoundError(
            'METEOR is a Java program: install Java and pip install "florence-jax[meteor]"'
        )
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    process = program.meteor_p
    try:
        value, each = program.compute_score(
            {number: list(texts) for number, texts in enumerate(references)},
            {number: [candidate] for number, candidate in enumerate(candidates)},
        )
    # It has exited, or printed something other than numbers.
    except (OSError, ValueError) as error:
        raise MeteorError(f"the Java program of METEOR fails ({error})") from error
    finally:
        # After an error its lock stays taken, and its destructor would wait for it forever.
        if program.lock.locked():
            program.lock.release()
        del program
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    return Scores(value=float(value), each=[float(score) for score in each])
