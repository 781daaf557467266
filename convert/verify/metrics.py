"""Measure the error of two implementations at a stage, and set its tolerance.

The truth is PyTorch in float64. In a lower dtype, PyTorch's results and ours differ from it by
rounding, and the tolerance of ours is a small multiple of PyTorch's own error: no fixed number
would fit a tiny and a large model, a float32 and a bfloat16 run, the first layer and the last.
Each stage is judged twice: after all stages before it, and alone, on the truth's inputs, where
no sum of earlier roundings hides a fault. A fault smaller than rounding is not found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The largest error that passes, in units of PyTorch's error in the same dtype: the two round the
# same sums in another order. The largest ratios measured, over tiny and base in all dtypes and
# large in float32, are 1.7 for a stage alone and 2.1 end to end, where rounding errors add up.
ALONE_FACTOR = 3.0
FACTOR = 4.0
# A chosen token loses up to twice the largest error of a logit.
ANSWER_FACTOR = 2 * FACTOR
# Where PyTorch happens to be exact, or has a wider accumulator, ours may still have an error of the
# dtype's own spacing, relative to the stage.
SPACING = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
# The tolerance against float32 numbers that another machine stored, without a truth: 40 times
# float32's spacing, several times the difference of two correct implementations of the tiny model.
STORED_TOLERANCE = 5e-6


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage of one dtype. None where a number has no meaning.

    Attributes:
        stage: its name; see `convert.verify.stages`.
        max_abs: largest absolute difference between ours and PyTorch in the same dtype.
        relative: norm of that difference, over the norm of PyTorch's values.
        cosine: cosine of the angle between the two.
        kl: mean Kullback-Leibler divergence of our next-token distribution from PyTorch's, nats.
        top1: share of positions with the same most likely (or the same generated) token.
        error, reference_error: distance of ours and of PyTorch's from the truth, all stages before
            included: relative to the truth's norm, or for answers in units of logits.
        bound: the largest `error` that passes.
        own_error, own_reference_error, own_bound: the same of this stage alone, when the stages
            before it are the truth's.
    """

    stage: str
    max_abs: float | None = None
    relative: float | None = None
    cosine: float | None = None
    kl: float | None = None
    top1: float | None = None
    error: float | None = None
    reference_error: float | None = None
    bound: float | None = None
    own_error: float | None = None
    own_reference_error: float | None = None
    own_bound: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the error exceeds its tolerance; a NaN does."""
        return _exceeds(self.error, self.bound) or _exceeds(self.own_error, self.own_bound)


def stage_row(
    stage: str,
    dtype: str,
    *,
    ours: np.ndarray,
    theirs: np.ndarray,
    truth: np.ndarray,
    ours_alone: np.ndarray,
    theirs_alone: np.ndarray,
) -> Row:
    """Compare one stage's values, all of the same shape."""
    # Halves overflow: infinities and NaNs are results like others, and end in NaN distances.
    with np.errstate(invalid="ignore", over="ignore"):
        reference_error = relative_distance(theirs, truth)
        own_reference_error = relative_distance(theirs_alone, truth)
        return Row(
            stage=stage,
            **_differences(ours, theirs),
            **(_predictions(ours, theirs) if stage.endswith("logits") else {}),
            error=relative_distance(ours, truth),
            reference_error=reference_error,
            bound=_bound(FACTOR * reference_error, dtype),
            own_error=relative_distance(ours_alone, truth),
            own_reference_error=own_reference_error,
            own_bound=_bound(ALONE_FACTOR * own_reference_error, dtype),
        )


def stored_row(stage: str, ours: np.ndarray, stored: np.ndarray) -> Row:
    """Compare one stage in float32 with stored float32 values of the same shape."""
    return Row(
        stage=stage,
        **_differences(ours, stored),
        **(_predictions(ours, stored) if stage.endswith("logits") else {}),
        error=relative_distance(ours, stored),
        bound=STORED_TOLERANCE,
    )


def relative_distance(values: np.ndarray, reference: np.ndarray) -> float:
    """Norm of the difference over the reference's norm; the norm itself where that is zero."""
    difference, size = _norm(_wide(values) - reference), _norm(_wide(reference))
    return difference / size if size else difference


def token_agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of equal tokens of two int[B, T] of perhaps different lengths."""
    length = max(ours.shape[1], theirs.shape[1])

    def widen(ids: np.ndarray, filler: int) -> np.ndarray:
        return np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=filler)

    return float((widen(ours, -1) == widen(theirs, -2)).mean())


def first_over(rows: list[Row]) -> Row | None:
    """The first stage past its tolerance, where the two implementations part."""
    return next((row for row in rows if row.is_over), None)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, in float64."""
    shifted = _wide(logits) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _bound(allowed: float, dtype: str) -> float | None:
    """The tolerance; None where PyTorch's own result has overflowed, so nothing is judged."""
    return max(allowed, SPACING[dtype]) if np.isfinite(allowed) else None


def _exceeds(error: float | None, bound: float | None) -> bool:
    # `not <=` and not `>`: a NaN is past every bound.
    return error is not None and bound is not None and not error <= bound


def _differences(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    a, b = _wide(ours).ravel(), _wide(theirs).ravel()
    sizes = _norm(a) * _norm(b)
    return {
        "max_abs": float(np.abs(a - b).max()),
        "relative": relative_distance(ours, theirs),
        "cosine": float(a @ b) / sizes if sizes else float(not a.any() and not b.any()),
    }


def _predictions(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    expected, found = log_softmax(theirs), log_softmax(ours)
    divergence = (np.exp(expected) * (expected - found)).sum(-1)
    return {
        "kl": float(divergence.mean()),
        "top1": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
    }


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64, copy=False)


def _norm(values: np.ndarray) -> float:
    return float(np.sqrt(np.vdot(values, values)))
