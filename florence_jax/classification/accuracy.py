"""Top-1 and top-5 accuracy, where an image may have several right classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def top_k_accuracy(
    logits: np.ndarray, labels: Iterable[Sequence[int]], ks: Sequence[int] = (1, 5)
) -> dict[int, float]:
    """Share of images with a right class among the k largest logits, for each k.

    Args:
        logits: float[N, K].
        labels: the right classes of each image; an image without any is not counted, as in ReaL.
        ks: at most the number of classes each; larger ones are left out.

    Raises:
        ValueError: no image has a label, or there are more or fewer labels than images.
    """
    given = list(labels)
    if len(given) != len(logits):
        raise ValueError(f"{len(logits)} rows of logits and {len(given)} labels were given")
    counted = [(row, set(one)) for row, one in zip(logits, given, strict=True) if one]
    if not counted:
        raise ValueError("no image has a label")
    # Of equal logits the lower class comes first.
    ranked = [(np.argsort(-row, kind="stable"), right) for row, right in counted]
    return {
        k: sum(not right.isdisjoint(order[:k].tolist()) for order, right in ranked) / len(ranked)
        for k in ks
        if k <= logits.shape[1]
    }
