"""`generate`: buckets and traces, independence of rows, encode once, limits and errors."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from convert.verify.reference import random_params_with_spread_logits
from florence_jax import config as configs
from florence_jax.generation import (
    GenerationConfig,
    compilation_count,
    generate,
    prompt_bucket,
    token_buckets,
)
from florence_jax.generation.generate import generate_jit
from florence_jax.generation.inputs import prepare_inputs
from florence_jax.model import Model

BEAM = GenerationConfig(num_beams=3, no_repeat_ngram_size=3, early_stopping=True, max_new_tokens=12)


@functools.cache
def tiny():
    base = configs.tiny()
    text = dataclasses.replace(
        base.text, vocab_size=48, max_position_embeddings=96, encoder_layers=1, decoder_layers=1
    )
    config = dataclasses.replace(base, text=text, image_token_id=47)
    return Model(config=config), jax.device_put(random_params_with_spread_logits(config, 4))


def features(batch: int, seed: int = 0, tokens: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, tokens, 24)).astype(np.float32)


def prompts(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 47, (batch, length)).astype(np.int32)


def ask(image_features, input_ids, config=BEAM, **kwargs):
    model, params = tiny()
    return generate(
        model, params, image_features=image_features, input_ids=input_ids, config=config, **kwargs
    )


def test_nothing_is_traced_again_within_a_bucket():
    ask(features(2), prompts(2, 5))
    programs = compilation_count()
    for length in (1, 3, 16):
        ask(features(2, seed=length), prompts(2, length))
    for change in (
        {"max_new_tokens": 7},
        {"max_new_tokens": 64},
        {"min_new_tokens": 4},
        {"length_penalty": 2.0},
        {"repetition_penalty": 1.5},
        {"forced_bos_token_id": None},
        {"forced_eos_token_id": None},
    ):
        ask(features(2), prompts(2, 5), dataclasses.replace(BEAM, **change))
    assert compilation_count() == programs
    ask(features(2), prompts(2, 17))
    assert compilation_count() == programs + 1


def test_sampling_settings_share_one_program():
    config = GenerationConfig(do_sample=True, max_new_tokens=8)
    ask(features(2), prompts(2, 5), config, rng=jax.random.key(0))
    programs = compilation_count()
    for change in ({"temperature": 0.5}, {"top_p": 0.7}, {"top_p": 0.2, "temperature": 2.0}):
        config = dataclasses.replace(config, **change)
        ask(features(2), prompts(2, 5), config, rng=jax.random.key(1))
    assert compilation_count() == programs


@pytest.mark.parametrize("config", [BEAM, dataclasses.replace(BEAM, num_beams=1)])
def test_a_row_does_not_depend_on_its_neighbours_or_padding(config):
    images, ids = features(4), prompts(4, 11)
    mask = np.arange(11) < np.array([11, 3, 1, 8])[:, None]
    together = ask(images, ids, config, attention_mask=mask)
    for row, length in enumerate(mask.sum(1)):
        alone = ask(images[row : row + 1], ids[row : row + 1, :length], config)
        tokens = int(alone.lengths[0])
        assert tokens == together.lengths[row]
        np.testing.assert_array_equal(alone.sequences[0], together.sequences[row, : tokens + 1])
        np.testing.assert_allclose(
            alone.sequence_scores[0], together.sequence_scores[row], rtol=0, atol=1e-5
        )
        np.testing.assert_allclose(
            alone.token_scores[0], together.token_scores[row, :tokens], rtol=0, atol=1e-5
        )


def test_pads_are_masked_unless_a_mask_says_otherwise():
    ids = prompts(1, 6)
    padded = np.pad(ids, ((0, 0), (0, 4)), constant_values=1)
    expected = ask(features(1), ids)
    inferred = ask(features(1), padded)
    attended = ask(features(1), padded, attention_mask=np.ones_like(padded))
    np.testing.assert_array_equal(inferred.sequences, expected.sequences)
    np.testing.assert_allclose(inferred.sequence_scores, expected.sequence_scores, rtol=1e-5)
    assert abs(attended.sequence_scores - expected.sequence_scores).max() > 1e-4


def test_pixels_and_their_features_give_the_same():
    model, params = tiny()
    pixels = np.random.default_rng(0).standard_normal((1, 64, 64, 3)).astype(np.float32)
    config = GenerationConfig(max_new_tokens=8)
    direct = generate(model, params, pixel_values=pixels, input_ids=prompts(1, 4), config=config)
    encoded = model.encode_image(params, pixels)
    np.testing.assert_array_equal(direct.sequences, ask(encoded, prompts(1, 4), config).sequences)


def test_padded_output_stays_on_the_device_and_trims_to_the_same():
    model, params = tiny()
    arguments = {"image_features": features(2), "input_ids": prompts(2, 5), "config": BEAM}
    padded = generate_jit(*prepare_inputs(model, params, **arguments))
    assert isinstance(padded.sequences, jax.Array)
    assert padded.sequences.shape == (2, 65)
    assert padded.token_scores.shape == (2, 64)
    trimmed = generate(model, params, **arguments)
    assert trimmed.sequences.dtype == np.int32
    assert trimmed.sequences.shape == (2, trimmed.lengths.max() + 1)
    np.testing.assert_array_equal(padded.trimmed().sequences, trimmed.sequences)


def test_buckets():
    assert [prompt_bucket(n, 447) for n in (1, 16, 17, 300)] == [16, 16, 32, 447]
    assert token_buckets(1, 1024) == token_buckets(64, 1024) == (64,)
    assert token_buckets(65, 1024) == (64, 128)
    assert token_buckets(600, 1024) == (64, 128, 256, 512, 1024)
    assert token_buckets(70, 96) == (64, 96)
    assert token_buckets(20, 40) == (40,)


def test_a_higher_limit_adds_buffers_behind_those_of_a_lower_one():
    """So that an answer costs what its own length asks for, whatever the limit is."""
    longest = token_buckets(1024, 1024)
    for limit in range(1, 1025):
        buffers = token_buckets(limit, 1024)
        assert buffers == longest[: len(buffers)]
        assert limit <= buffers[-1] < max(2 * limit, 65)


def test_the_longest_possible_prompt_and_answer():
    config = GenerationConfig(max_new_tokens=96, min_new_tokens=96)
    out = ask(features(1, tokens=5), prompts(1, 91), config)
    assert out.sequences.shape == (1, 97)


def test_no_limit_means_the_position_table():
    out = ask(features(1), prompts(1, 91), GenerationConfig(min_new_tokens=96))
    assert out.sequences.shape == (1, 97)


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        (
            {"input_ids": prompts(1, 92)},
            BEAM,
            r"5 image tokens \+ 92 .* max_position_embeddings is",
        ),
        ({}, GenerationConfig(max_new_tokens=97), "max_position_embeddings is 96"),
        ({}, GenerationConfig(min_new_tokens=97), "max_position_embeddings"),
        ({}, GenerationConfig(eos_token_id=48), "eos_token_id=48 is outside the vocabulary of 48"),
        ({}, GenerationConfig(forced_bos_token_id=99), "forced_bos_token_id=99"),
        ({}, GenerationConfig(do_sample=True), "needs rng"),
        ({"input_ids": prompts(2, 4)}, BEAM, "1 images were given for 2 prompts"),
        ({"input_ids": prompts(2, 4)[0]}, BEAM, r"input_ids must be int\[B, L\]"),
        ({"attention_mask": np.ones((1, 3))}, BEAM, "attention_mask has shape"),
        ({"image_features": None}, BEAM, "either pixel_values or image_features"),
        ({"image_features": np.zeros((5, 24))}, BEAM, "image_features must be"),
        (
            {"image_features": None, "pixel_values": np.zeros((1, 3, 64, 64))},
            BEAM,
            "channels come last",
        ),
    ],
)
def test_errors_name_the_limit(arguments, config, message):
    model, params = tiny()
    arguments = {"image_features": features(1), "input_ids": prompts(1, 4)} | arguments
    with pytest.raises(ValueError, match=message):
        generate(model, params, config=config, **arguments)
