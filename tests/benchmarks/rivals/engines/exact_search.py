"""Greedy and beam search to one exact length, in numpy, for an engine that has only a decoder step.

With `</s>` banned until the end every hypothesis ends at the same step, so that nothing of beam
search is left but to keep the K best continuations: no finished ones, no length penalty.

Shapes: B rows, K beams, V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# (tokens int[B * K], position, beams int[B * K]) -> log-probabilities float32[B * K, V]. `beams`
# says whose cache each row goes on from.
Step = Callable[[np.ndarray, int, np.ndarray], np.ndarray]
_EXCLUDED = -1.0e9


def exact_length_search(
    step: Step,
    *,
    batch: int,
    beams: int,
    tokens: int,
    no_repeat_ngram_size: int,
    start: int,
    bos: int,
    eos: int,
) -> np.ndarray:
    """The best answers of exactly `tokens` tokens, int64[B, tokens + 1].

    They are `start`, `bos`, free tokens, `eos`: first and last token are forced, as in every
    published Florence-2, and their log-probabilities are 0. `no_repeat_ngram_size` is at least 2.
    """
    rows = batch * beams
    same = np.arange(rows)
    step(np.full(rows, start), 0, same)
    sequences = np.tile(np.array([start, bos]), (rows, 1))
    # All beams start equal: only the first may speak, or all would say the same.
    scores = np.where(same % beams == 0, 0.0, _EXCLUDED).astype(np.float32)
    parents = same
    for position in range(1, tokens - 1):
        log_probs = step(sequences[:, -1], position, parents)
        log_probs[:, eos] = -np.inf
        _ban_repeats(log_probs, sequences, no_repeat_ngram_size)
        totals = (scores[:, None] + log_probs).reshape(batch, -1)
        best = np.argpartition(-totals, beams - 1, axis=1)[:, :beams]
        order = np.argsort(-np.take_along_axis(totals, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)
        scores = np.take_along_axis(totals, best, 1).reshape(-1)
        vocabulary = log_probs.shape[1]
        parents = (best // vocabulary + np.arange(batch)[:, None] * beams).reshape(-1)
        chosen = (best % vocabulary).reshape(-1, 1)
        sequences = np.concatenate([sequences[parents], chosen], axis=1)
    best_of_row = sequences[::beams]
    return np.concatenate([best_of_row, np.full((batch, 1), eos)], axis=1)


def _ban_repeats(log_probs: np.ndarray, sequences: np.ndarray, size: int) -> None:
    """-inf for each token that would complete an n-gram which its row already has."""
    if sequences.shape[1] < size:
        return
    windows = np.lib.stride_tricks.sliding_window_view(sequences, size, axis=1)
    suffix = sequences[:, None, sequences.shape[1] - size + 1 :]
    row, window = np.nonzero((windows[..., :-1] == suffix).all(-1))
    log_probs[row, windows[row, window, -1]] = -np.inf
