"""The output of generation: sequences, scores, lengths and log-probabilities."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np


class GenerateOutput(NamedTuple):
    """Generated tokens with their log-probabilities; a pytree of arrays.

    R is `num_return_sequences`; the R answers to row b are rows `b * R` to `b * R + R - 1`, best
    first for beam search. T counts the decoder start token.

    Attributes:
        sequences: int32[B * R, T], the decoder start token, the tokens, `</s>`, then padding.
        sequence_scores: float32[B * R], `sum(token_scores) / length ** length_penalty`. For beams
            it is transformers' `sequences_scores`; greedy decoding and sampling, for which
            transformers has no such score, use the same formula.
        token_scores: float32[B * R, T - 1], log-probability of each token after the start token
            given what precedes it, after all processors (so 0 for a forced token): transformers'
            `compute_transition_scores`, with `normalize_logits=True` for greedy decoding and
            sampling and False for beams. 0 beyond `</s>`.
        lengths: int32[B * R], generated tokens, `</s>` included, start token and padding not.
    """

    sequences: jax.Array | np.ndarray
    sequence_scores: jax.Array | np.ndarray
    token_scores: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray

    def trimmed(self) -> GenerateOutput:
        """The output as numpy arrays, cut to the longest sequence. Waits for the device."""
        # In numpy: slicing on the device would compile once per length.
        host = GenerateOutput(*jax.device_get(tuple(self)))
        longest = int(host.lengths.max(initial=0))
        return host._replace(
            sequences=host.sequences[:, : longest + 1],
            token_scores=host.token_scores[:, :longest],
        )
