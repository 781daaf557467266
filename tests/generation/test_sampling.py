"""Sampling draws from the processed distribution; beam sampling from beams without replacement."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from florence_jax.generation import GenerationConfig
from tests.generation.table_model import (
    EOS,
    Tables,
    generate_jax,
    generate_torch,
    random_tables,
)

VOCAB, ROWS = 9, 4000
# A chi-square statistic with at most 8 degrees of freedom exceeds 26.1 once in 1,000 fair runs;
# seeds are fixed, so a pass stays a pass.
CHI_SQUARE_LIMIT = 26.1


def same_rows(seed: int, rows: int = ROWS) -> Tables:
    tables = random_tables(seed, VOCAB, 1)
    tables = tables._replace(table=tables.table / 2)
    return tables._replace(bias=np.repeat(tables.bias, rows, axis=0))


def probabilities(tables: Tables, before: int, last: int, position: int, config) -> np.ndarray:
    """The exact distribution of the next token, through transformers' own filters."""
    logits = torch.from_numpy(
        (tables.table[before, last] + tables.drift[position] + tables.bias[0])[None]
    )
    for warper in (
        theirs.TemperatureLogitsWarper(float(config.temperature)),
        theirs.TopKLogitsWarper(config.top_k),
        theirs.TopPLogitsWarper(config.top_p),
    ):
        logits = warper(None, logits)
    return torch.softmax(logits, -1)[0].numpy()


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    possible = expected > 0
    assert counts[~possible].sum() == 0, "a token that no filter lets through was drawn"
    expected = expected[possible] * counts.sum()
    return float((((counts[possible] - expected) ** 2) / expected).sum())


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 50},
        {"temperature": 0.6, "top_k": 50},
        {"top_k": 4},
        {"top_k": 50, "top_p": 0.7},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.8},
    ],
)
def test_draws_follow_the_processed_distribution(settings):
    config = GenerationConfig(
        do_sample=True,
        max_new_tokens=2,
        min_new_tokens=0,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
        **settings,
    )
    tables = same_rows(3)
    out = generate_jax(tables, config, jax.random.key(5))
    first = probabilities(tables, EOS, EOS, 0, config)
    counts = np.bincount(out.sequences[:, 1], minlength=VOCAB)
    assert chi_square(counts, first) < CHI_SQUARE_LIMIT
    # The second token, given the most frequent first one that goes on.
    counts[EOS] = 0
    token = int(counts.argmax())
    second = probabilities(tables, EOS, token, 1, config)
    follow = np.bincount(out.sequences[out.sequences[:, 1] == token, 2], minlength=VOCAB)
    assert chi_square(follow, second) < CHI_SQUARE_LIMIT
    # And the scores are the logarithms of just these probabilities.
    np.testing.assert_allclose(
        out.token_scores[:, 0], np.log(first[out.sequences[:, 1]]), rtol=1e-4, atol=1e-5
    )


def test_samples_of_a_row_differ_and_depend_on_the_row_alone():
    config = GenerationConfig(
        do_sample=True, num_return_sequences=4, max_new_tokens=10, forced_eos_token_id=None
    )
    tables = same_rows(1, rows=3)
    out = generate_jax(tables, config, jax.random.key(0))
    assert out.sequences.shape[0] == 12
    assert len({tuple(s) for s in out.sequences.tolist()}) > 8
    again = generate_jax(tables, config, jax.random.key(0))
    np.testing.assert_array_equal(again.sequences, out.sequences)
    fewer = generate_jax(tables._replace(bias=tables.bias[:2]), config, jax.random.key(0))
    width = fewer.sequences.shape[1]
    np.testing.assert_array_equal(fewer.sequences, out.sequences[:8, :width])
    other = generate_jax(tables, config, jax.random.key(1))
    assert other.sequences.shape != out.sequences.shape or (other.sequences != out.sequences).any()


def test_cold_beam_sampling_is_beam_search():
    """At a low temperature the noise decides nothing, and scores rank as in beam search."""
    tables = random_tables(2, VOCAB, 6)
    common = {"num_beams": 3, "max_new_tokens": 8, "early_stopping": "never", "length_penalty": 0.0}
    cold = GenerationConfig(do_sample=True, temperature=0.002, top_k=0, **common)
    np.testing.assert_array_equal(
        generate_jax(tables, cold, jax.random.key(0)).sequences,
        generate_jax(tables, GenerationConfig(**common)).sequences,
    )


def test_beam_sampling_draws_without_replacement():
    """One token, two beams: the better of the first two draws is returned, here and there."""
    config = GenerationConfig(
        do_sample=True,
        num_beams=2,
        top_k=0,
        max_new_tokens=1,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
    )
    tables = same_rows(8)
    logits = tables.table[EOS, EOS] + tables.drift[0] + tables.bias[0]
    p = np.exp(logits - np.log(np.exp(logits).sum()))
    expected = np.zeros(VOCAB)
    for one, two in itertools.permutations(range(VOCAB), 2):
        expected[one if p[one] > p[two] else two] += p[one] * p[two] / (1 - p[one])
    ours = generate_jax(tables, config, jax.random.key(2)).sequences
    torch.manual_seed(0)
    reference, _, _ = generate_torch(tables, config)
    for sequences in (ours, reference):
        counts = np.bincount(sequences[:, 1], minlength=VOCAB)
        assert chi_square(counts, expected) < CHI_SQUARE_LIMIT
