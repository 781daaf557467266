"""Change the vocabulary's size: the rows of a token table, and the numbers in config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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


def with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A copy of config.json in which every `vocab_size` is `rows`."""
    changed = json.loads(json.dumps(config))
    for section in (changed, changed.get("text_config")):
        if isinstance(section, dict) and "vocab_size" in section:
            section["vocab_size"] = rows
    return changed
