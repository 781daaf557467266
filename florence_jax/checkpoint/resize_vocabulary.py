"""Change the number of rows of a token table, which is done only where it is asked for."""

from __future__ import annotations

import numpy as np

_CHUNK_ROWS = 4096


def resized(table: np.ndarray, rows: int) -> np.ndarray:
    """A copy of float[V, ...] `table` with its first `rows` rows, or padded to `rows`.

    A new row is the mean of all others (float64, rounded to the table's dtype): its logit is the
    mean of all logits, so greedy decoding never prefers it, which a row of zeros does as soon as
    every logit is negative.
    """
    kept = min(rows, len(table))
    resized_table = np.empty((rows, *table.shape[1:]), table.dtype)
    resized_table[:kept] = table[:kept]
    if rows > kept:
        total = np.zeros(table.shape[1:], np.float64)
        for start in range(0, len(table), _CHUNK_ROWS):
            total += table[start : start + _CHUNK_ROWS].astype(np.float64).sum(0)
        resized_table[kept:] = (total / len(table)).astype(table.dtype)
    return resized_table
