"""Several end tokens and the settings few checkpoints use: tokens and scores of transformers."""

from __future__ import annotations

import numpy as np
import pytest

from florence_jax.generation import GenerationConfig
from tests.generation.table_model import EOS, generate_jax, generate_torch, random_tables

VOCAB = 12
GREEDY = {}
PUBLISHED = {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 3}
NEVER = {
    "num_beams": 4,
    "early_stopping": "never",
    "num_return_sequences": 2,
    "length_penalty": 0.5,
}
# Settings of one list compile one program.
CASES = {
    "two ends": (
        PUBLISHED,
        [
            {"eos_token_id": (EOS, 5)},
            {"eos_token_id": (EOS, 5), "min_new_tokens": 5},
            {"eos_token_id": (EOS, 5), "forced_eos_token_id": None, "forced_bos_token_id": None},
            {"eos_token_id": (EOS, 5), "forced_eos_token_id": 5, "repetition_penalty": 1.3},
        ],
    ),
    "four ends, the model's last": (NEVER, [{"eos_token_id": (9, 5, 4, EOS)}]),
    "ends without the model's": (NEVER, [{"eos_token_id": (9, 5), "forced_eos_token_id": 9}]),
    "suppressed": (
        PUBLISHED,
        [{"suppress_tokens": (3, 7, 8)}, {"suppress_tokens": (4,), "forced_bos_token_id": None}],
    ),
    "suppressed at first": (
        PUBLISHED,
        [
            {"begin_suppress_tokens": (EOS, 3, 4, 6)},
            {"begin_suppress_tokens": (EOS, 3, 4, 6), "forced_bos_token_id": None},
        ],
    ),
    "bad words and a bias": (
        NEVER,
        [
            {
                "bad_words_ids": ((4,), (6, 7), (3, 8, 3), (5,), (EOS,)),
                "sequence_bias": (((8,), 1.5), ((6, 9), 4.0), ((EOS, 0, 3), -9.5)),
                "eos_token_id": (EOS, 5),
            },
            {
                "bad_words_ids": ((0, 4), (6, 7), (8, 3), (EOS, 0, 9), (1,), (3,)),
                "sequence_bias": (((8, 8, 7), 1.5), ((6, EOS), -4.0), ((10,), 2.0)),
                "eos_token_id": (EOS, 5),
                "forced_bos_token_id": None,
            },
        ],
    ),
    "a growing end, renormalised": (
        PUBLISHED,
        [
            {
                "exponential_decay_length_penalty": (start, 1.3),
                "eos_token_id": (EOS, 5),
                "suppress_tokens": (3,),
                "renormalize_logits": True,
            }
            for start in (0, 3)
        ],
    ),
}


@pytest.mark.parametrize("beams", [False, True], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", CASES)
def test_tables(name, beams):
    search, settings = CASES[name]
    for given in settings:
        config = GenerationConfig(
            **({"max_new_tokens": 14} | (search if beams else GREEDY) | given)
        )
        for seed in range(2):
            tables = random_tables(seed, VOCAB, 8, eos=seed - 1)
            assert_equal(generate_jax(tables, config), generate_torch(tables, config), config)


def test_a_choice_of_forced_ends():
    """Greedy: between two that are forced, beams of transformers tie."""
    config = GenerationConfig(eos_token_id=(EOS, 5), forced_eos_token_id=[5, EOS], max_new_tokens=6)
    tables = random_tables(1, VOCAB, 8, eos=-3)
    assert_equal(generate_jax(tables, config), generate_torch(tables, config), config)


def assert_equal(ours, expected, config, tolerance=1e-5):
    sequences, scores, token_scores = expected
    np.testing.assert_array_equal(ours.sequences, sequences)
    if config.num_beams > 1:
        np.testing.assert_allclose(ours.sequence_scores, scores, rtol=tolerance, atol=tolerance)
    real = np.arange(token_scores.shape[1]) < ours.lengths[:, None]
    token_scores = np.where(real, token_scores, 0.0)
    np.testing.assert_allclose(ours.token_scores, token_scores, rtol=tolerance, atol=tolerance)
