"""Each processor against transformers' own on the same scores and sequences, to the last bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from florence_jax.generation import GenerationConfig, apply_logits_processors, make_plan
from florence_jax.generation import logits_processors as ours
from tests.generation.table_model import facts

B, K, V, LENGTH, BUFFER = 3, 2, 40, 12, 20
INDEX = jnp.int32(LENGTH - 1)


def scores_and_sequences(seed: int, tokens: int = 4):
    """Scores of both signs; sequences of few different tokens, with garbage beyond their end."""
    rng = np.random.default_rng(seed)
    scores = 3 * rng.standard_normal((B, K, V)).astype(np.float32)
    sequences = rng.integers(0, V, (B, K, BUFFER)).astype(np.int32)
    sequences[:, :, :LENGTH] = rng.integers(0, tokens, (B, K, LENGTH))
    return scores, sequences


def reference(processors, scores, sequences) -> np.ndarray:
    flat = torch.from_numpy(scores.reshape(B * K, V))
    ids = torch.from_numpy(sequences[:, :, :LENGTH].reshape(B * K, LENGTH)).long()
    for processor in processors:
        flat = processor(ids, flat)
    return flat.numpy().reshape(B, K, V)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_no_repeat_ngram(size, seed):
    scores, sequences = scores_and_sequences(seed)
    expected = reference([theirs.NoRepeatNGramLogitsProcessor(size)], scores, sequences)
    got = ours.ban_repeated_ngrams(scores, sequences, INDEX, size)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [3, 25])
def test_ngrams_longer_than_the_sequence_ban_nothing(size):
    scores, sequences = scores_and_sequences(0)
    got = ours.ban_repeated_ngrams(scores, sequences, jnp.int32(1), size)
    np.testing.assert_array_equal(got, scores)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_repetition_penalty(penalty):
    scores, sequences = scores_and_sequences(1, tokens=20)
    expected = reference([theirs.RepetitionPenaltyLogitsProcessor(penalty)], scores, sequences)
    got = ours.penalise_repetition(scores, sequences, INDEX, jnp.float32(penalty))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.8, 0.99])
@pytest.mark.parametrize("top_k", [0, 1, 5, 60])
def test_sampling_filters_keep_the_same_tokens(top_k, top_p, keep):
    scores, sequences = scores_and_sequences(2)
    chain = [theirs.TopKLogitsWarper(top_k, min_tokens_to_keep=keep)] if top_k else []
    chain += [theirs.TopPLogitsWarper(top_p, min_tokens_to_keep=keep)]
    expected = reference(chain, scores, sequences)

    got = ours.keep_top_k(jnp.asarray(scores), top_k, keep)
    got = ours.keep_top_p(got, np.float32(1 - top_p), keep)
    np.testing.assert_array_equal(got, expected)


def test_the_whole_chain_in_order():
    """Every processor at once, at the first, a middle and the last token."""
    config = GenerationConfig(
        do_sample=True,
        max_new_tokens=LENGTH,
        min_new_tokens=LENGTH,
        repetition_penalty=1.2,
        no_repeat_ngram_size=2,
        temperature=0.7,
        top_k=12,
        top_p=0.9,
    )
    plan, values = make_plan(config, facts(V))
    run = jax.jit(lambda *arguments: apply_logits_processors(*arguments, plan, values))
    scores, sequences = scores_and_sequences(3)
    for length in (1, 7, LENGTH):
        flat = torch.from_numpy(scores.reshape(B * K, V))
        ids = torch.from_numpy(sequences[:, :, :length].reshape(B * K, length)).long()
        for processor in (
            theirs.RepetitionPenaltyLogitsProcessor(1.2),
            theirs.NoRepeatNGramLogitsProcessor(2),
            theirs.MinNewTokensLengthLogitsProcessor(1, LENGTH, 2),
            theirs.ForcedBOSTokenLogitsProcessor(0),
            theirs.ForcedEOSTokenLogitsProcessor(LENGTH + 1, 2),
            theirs.TemperatureLogitsWarper(0.7),
            theirs.TopKLogitsWarper(12),
            theirs.TopPLogitsWarper(0.9),
        ):
            flat = processor(ids, flat)
        got = run(scores, sequences, jnp.int32(length - 1))
        expected = flat.numpy().reshape(B, K, V)
        np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_beams_keep_two_tokens_for_a_continuation_beside_the_end():
    scores, _ = scores_and_sequences(4)
    kept = ours.keep_top_p(ours.keep_top_k(jnp.asarray(scores), 1, 2), np.float32(0.99), 2)
    assert (np.isfinite(kept).sum(-1) == 2).all()
