"""Whole models against transformers' Florence-2 in the same test: tokens and scores."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from transformers import Florence2ForConditionalGeneration
from transformers import GenerationConfig as TorchGenerationConfig

from florence_jax.checkpoint import load_checkpoint
from florence_jax.generation import PUBLISHED, GenerationConfig
from florence_jax.model import Model
from tests.generation.florence import (
    Pair,
    Prompts,
    generate_ours,
    generate_reference,
    random_pair,
    random_prompts,
    reference_is_undecided,
    torch_inputs,
)
from tests.shared_data import needs_shared, shared_path

# Sums of up to 24 log-probabilities of logits that agree to 2e-5.
TOLERANCE = 1e-4

SETTINGS = {
    "greedy": {},
    "greedy, trigrams": {"no_repeat_ngram_size": 3},
    "beam 2": {"num_beams": 2},
    "beam 3 as published": {
        "num_beams": 3,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
    },
    "beam 3, never, two returned": {
        "num_beams": 3,
        "early_stopping": "never",
        "num_return_sequences": 2,
    },
    "beam 4, bigrams": {"num_beams": 4, "no_repeat_ngram_size": 2},
    "beam 5, all returned": {"num_beams": 5, "early_stopping": True, "num_return_sequences": 5},
}
# Within each of the above nothing of this is compiled again.
TRACED = [
    {},
    {"length_penalty": 2.0, "forced_eos_token_id": None},
    {"length_penalty": 0.5, "forced_bos_token_id": None, "repetition_penalty": 1.2},
    {"min_new_tokens": 6, "max_new_tokens": 9, "length_penalty": 0.0},
]
MODELS = {
    "two layers": {"encoder_layers": 1},
    "one layer, eight heads": {
        "decoder_layers": 1,
        "encoder_layers": 2,
        "decoder_attention_heads": 8,
        "scale_embedding": True,
    },
}


@functools.cache
def pair_of(name: str) -> Pair:
    return random_pair(seed=len(name), **MODELS[name])


# The other settings: test_loops.py compares them on a model that is a table.
ORDINARY = {
    ("two layers", "greedy, trigrams"),
    ("two layers", "beam 3, never, two returned"),
    ("two layers", "beam 5, all returned"),
    ("one layer, eight heads", "beam 3 as published"),
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param(*case, marks=() if case in ORDINARY else pytest.mark.slow)
        for case in itertools.product(MODELS, SETTINGS)
    ],
)
def test_random_models_with_spread_logits(name, settings):
    pair = pair_of(name)
    compared = skipped = 0
    for traced in TRACED:
        for seed in range(2):
            prompts = random_prompts(pair, seed, batch=3, length=7)
            config = GenerationConfig(**({"max_new_tokens": 16} | SETTINGS[settings] | traced))
            if not equals_reference(pair, prompts, config):
                assert reference_is_undecided(pair, prompts, config), config
                skipped += 1
            compared += 1
    assert skipped <= compared // 6


@needs_shared
def test_tiny_checkpoint_with_its_own_generation_config():
    """The call of the README on both sides, ids and forced tokens left to the checkpoint."""
    pair = tiny_native(own_settings=True)
    prompts = random_prompts(pair, 1, batch=2, length=9, size=96)
    arguments = {
        "num_beams": 3,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
        "max_new_tokens": 64,
    }
    expected = pair.reference.generate(**torch_inputs(pair, prompts), **arguments)
    ours = generate_ours(pair, prompts, GenerationConfig(**arguments))
    np.testing.assert_array_equal(ours.sequences, expected.numpy())


@needs_shared
@pytest.mark.parametrize(
    "settings",
    [
        # The call of the README, above, has trigrams; the original's tokens are greedy.
        pytest.param("greedy, trigrams", marks=pytest.mark.slow),
        "beam 3, never, two returned",
    ],
)
def test_tiny_checkpoint(settings):
    pair = tiny_native()
    for seed in range(3):
        prompts = random_prompts(pair, seed, batch=2, length=9, size=96)
        config = GenerationConfig(max_new_tokens=24, **SETTINGS[settings])
        assert equals_reference(pair, prompts, config)


@needs_shared
@pytest.mark.parametrize(
    "settings",
    # test_loops.py outgrows the buffers of both.
    [pytest.param("greedy", marks=pytest.mark.slow), "beam 3 as published"],
)
def test_answers_longer_than_two_buffers(settings):
    pair = tiny_native()
    prompts = random_prompts(pair, 0, batch=2, length=9, size=96)
    config = GenerationConfig(min_new_tokens=131, max_new_tokens=140, **SETTINGS[settings])
    assert equals_reference(pair, prompts, config)
    assert generate_ours(pair, prompts, config).sequences.shape[1] > 131


def test_published_settings_name_themselves():
    assert (PUBLISHED.num_beams, PUBLISHED.no_repeat_ngram_size) == (3, 3)
    assert PUBLISHED.early_stopping is True


@functools.cache
def tiny_native(own_settings: bool = False) -> Pair:
    directory = shared_path("tiny", "native_hf")
    config, params, _ = load_checkpoint(directory, dtype="float32")
    reference = Florence2ForConditionalGeneration.from_pretrained(directory, dtype="float32").eval()
    if not own_settings:
        reference.generation_config = TorchGenerationConfig()
    return Pair(Model(config=config), params, reference)


def equals_reference(pair: Pair, prompts: Prompts, config: GenerationConfig) -> bool:
    """Whether the tokens are transformers'; if so the scores must be as well."""
    ours = generate_ours(pair, prompts, config)
    sequences, scores, token_scores = generate_reference(pair, prompts, config)
    if ours.sequences.shape != sequences.shape or (ours.sequences != sequences).any():
        return False
    if config.num_beams > 1:
        np.testing.assert_allclose(ours.sequence_scores, scores, rtol=TOLERANCE, atol=TOLERANCE)
    real = np.arange(token_scores.shape[1]) < ours.lengths[:, None]
    np.testing.assert_allclose(
        ours.token_scores, np.where(real, token_scores, 0.0), rtol=TOLERANCE, atol=TOLERANCE
    )
    return True
