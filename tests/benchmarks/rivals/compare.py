"""Do two engines give the same? Asked before either is timed."""

from __future__ import annotations

import numpy as np

# Root mean square of the difference, relative to that of the values. Roundings of 30 and more
# layers in different orders are measured at 1e-6, 2e-3 and 2e-2.
_TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
# Nats a token. An answer that lost its way by more than a rounding loses several.
_LIKELIHOOD_TOLERANCE = 0.3


def difference(ours: np.ndarray, theirs: np.ndarray, dtype: str) -> str | None:
    """What is different about `theirs`, in a sentence, or None.

    Floats may differ by their dtype's roundings, tokens not at all.
    """
    if ours.shape != theirs.shape:
        return f"its result has shape {theirs.shape}, ours {ours.shape}"
    if np.issubdtype(ours.dtype, np.integer):
        rows = np.nonzero((ours != theirs).any(1))[0]
        if not rows.size:
            return None
        first = int(np.nonzero(ours[rows[0]] != theirs[rows[0]])[0][0])
        return f"{rows.size} of {len(ours)} answers differ, the first from token {first} on"
    if not np.isfinite(theirs).all():
        return "its result is not finite"
    relative = float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
    tolerance = _TOLERANCES[dtype]
    if relative <= tolerance:
        return None
    return f"its result is {relative:.1e} from ours (allowed are {tolerance:.0e})"


def likelihood_difference(ours: np.ndarray, theirs: np.ndarray) -> str | None:
    """For half precision, in which near ties fall either way: are their answers as likely?

    Args:
        ours, theirs: float[B], the mean log-probabilities that our model gives both answers.
    """
    worst = float((ours - theirs).max())
    if worst <= _LIKELIHOOD_TOLERANCE:
        return None
    return f"an answer is {worst:.2f} nats a token less likely than ours"
