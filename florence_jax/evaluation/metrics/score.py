"""What a metric of a whole data set gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One figure, and what each example adds to the picture.

    Attributes:
        value: the figure of the whole, in the metric's own unit (CIDEr to 10, the others to 1).
        each: one number per example, in order. Their mean is `value`, except for BLEU and METEOR,
            which pool counts.
    """

    value: float
    each: list[float]


def check_captions(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> None:
    """Raises ValueError where the examples do not pair up, or one has no reference."""
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
