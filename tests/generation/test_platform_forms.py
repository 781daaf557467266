"""The loop as it is compiled for a TPU: another cache, another search, the same tokens."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax.config import tiny
from florence_jax.generation import GenerationConfig, logits_processors
from florence_jax.model import Model
from florence_jax.model.random_params import random_params_with_spread_logits
from florence_jax.ops import top_k_pallas
from florence_jax.ops.pallas_primitive import LANES
from florence_jax.ops.top_k import top_k, top_k_tpu

# Not `generate` itself, which the package offers under the same name.
room = importlib.import_module("florence_jax.generation.generate")
beam_search = importlib.import_module("florence_jax.generation.beam_search")

BATCH, BEAMS, IMAGE_TOKENS = 2, 3, 37
CONFIG = tiny()
SETTINGS = {
    # Longer than the first buffer, so that the cache grows.
    "beams": GenerationConfig(
        num_beams=BEAMS, no_repeat_ngram_size=3, min_new_tokens=70, max_new_tokens=70
    ),
    "greedy": GenerationConfig(max_new_tokens=20),
}


class As:
    """`lax` whose programs take one platform's form wherever they are compiled."""

    def __init__(self, platform):
        self.platform = platform

    def platform_dependent(self, *operands, **forms):
        return forms[self.platform](*operands)


def arguments(settings):
    generator = np.random.default_rng(1)
    shape = (BATCH, IMAGE_TOKENS, CONFIG.text.d_model)
    return room.prepare_inputs(
        Model(config=CONFIG),
        random_params_with_spread_logits(CONFIG, seed=5),
        image_features=jnp.asarray(generator.standard_normal(shape, np.float32)),
        input_ids=generator.integers(5, 200, (BATCH, 6)),
        config=settings,
    )


def on_tpu(scores, count):
    return top_k_tpu(scores, count=count)


def on_tpu_by_kernel(scores, count):
    """Where the kernel cannot be used, what is used there."""
    if scores.shape[-1] <= count * LANES:
        return on_tpu(scores, count)
    return top_k_pallas.top_k_kernel(scores, count=count, interpret=True)


@pytest.mark.parametrize("vocab", [3, 100, 4001])
def test_the_best_do_not_depend_on_the_platform(vocab):
    """Equal scores, rows of which little or nothing is possible, and a last group cut short."""
    generator = np.random.default_rng(vocab)
    scores = generator.integers(0, 9, (4, 3, vocab)).astype(np.float32)
    scores[1][generator.random((3, vocab)) < 0.999] = -np.inf
    scores[2] = -np.inf
    scores[3] = generator.standard_normal((3, vocab))
    count = min(6, vocab)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    for search in (top_k, on_tpu, on_tpu_by_kernel):
        values, places = jax.jit(search, static_argnums=1)(scores, count)
        np.testing.assert_array_equal(places, order)
        np.testing.assert_array_equal(values, np.take_along_axis(scores, order, -1))


def test_rows_of_scores_that_do_not_fill_the_kernels_last_step(monkeypatch):
    monkeypatch.setattr(top_k_pallas, "VMEM_BUDGET_BYTES", 8 * 2 * 4 * 1024)
    scores = np.random.default_rng(0).standard_normal((5, 3, 1000), np.float32)
    order = np.argsort(-scores, axis=-1)[..., :4]
    values, places = top_k_pallas.top_k_kernel(jnp.asarray(scores), count=4, interpret=True)
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, order, -1))


def test_scores_that_are_no_numbers_are_found_within_the_row():
    """Whatever they mean: what the kernel reads for them must exist."""
    scores = jnp.full((2, 1000), jnp.nan).at[1].set(jnp.arange(1000.0))
    _, places = top_k_pallas.top_k_kernel(scores, count=3, interpret=True)
    assert (places[0] < 1000).all()
    np.testing.assert_array_equal(places[1], [999, 998, 997])


@pytest.mark.parametrize("vocab", [100, 4001])
def test_marks_do_not_depend_on_the_platform(vocab):
    generator = np.random.default_rng(vocab)
    tokens = generator.integers(0, vocab, (2, 3, 300))
    wanted = generator.random(tokens.shape) < 0.3
    tokens[1], wanted[1] = vocab - 1, True
    wanted[0, 1] = False
    expected = np.zeros((2, 3, vocab), bool)
    for row, beam_ in np.ndindex(2, 3):
        expected[row, beam_, tokens[row, beam_][wanted[row, beam_]]] = True
    for mark in (logits_processors.ngram_mask_matmul, logits_processors.ngram_mask_scatter):
        np.testing.assert_array_equal(mark(tokens, wanted, vocab), expected)


def test_each_platform_searches_in_its_form():
    scores = jax.ShapeDtypeStruct((2, 3, 4001), jnp.float32)
    traced = jax.jit(top_k, static_argnums=1).trace(scores, 6)
    for platform, searched in (("cpu", True), ("cuda", True), ("tpu", False)):
        assert ("chlo.top_k" in traced.lower(lowering_platforms=(platform,)).as_text()) == searched


def test_each_platform_marks_in_its_form():
    def ban(scores, sequences, index):
        return logits_processors.ban_repeated_ngrams(scores, sequences, index, 3)

    arguments = np.zeros((2, 3, 4001), np.float32), np.zeros((2, 3, 65), np.int32), 7
    traced = jax.jit(ban).trace(*arguments)
    for platform, scattered in (("cpu", True), ("cuda", True), ("tpu", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.scatter" in text) == scattered


@pytest.mark.parametrize("search", [on_tpu, on_tpu_by_kernel])
@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_do_not_depend_on_the_platform(monkeypatch, name, search):
    prepared = arguments(SETTINGS[name])
    expected = room.generate_jit(*prepared).trimmed()

    monkeypatch.setattr(room, "lax", As("tpu"))
    monkeypatch.setattr(beam_search, "top_k", search)
    monkeypatch.setattr(
        logits_processors, "ngram_mask_scatter", logits_processors.ngram_mask_matmul
    )
    program = jax.jit(room.generate_jit.__wrapped__, static_argnums=(0, 1, 2))
    found = program(*prepared).trimmed()
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    np.testing.assert_allclose(found.sequence_scores, expected.sequence_scores, atol=1e-5)


def test_each_platform_writes_the_cache_in_its_form():
    traced = room.generate_jit.trace(*arguments(SETTINGS["beams"]))
    text, rows = CONFIG.text, 64 * BEAMS
    heads = text.decoder_attention_heads
    forms = {
        "tpu": {f"{BATCH}x{rows}x{text.d_model}xf32"},
        "cpu": {
            f"{BATCH}x{heads}x{rows}x{text.d_model // heads}xf32",
            f"{BATCH}x{heads}x{text.d_model // heads}x{rows}xf32",
        },
    }
    for platform, expected in forms.items():
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        updates = re.findall(r"dynamic_update_slice .*-> tensor<(\w+)>", lowered)
        assert {shape for shape in updates if f"x{rows}" in shape} == expected, platform


@pytest.mark.parametrize("name", SETTINGS)
def test_words_and_memory_that_fill_up_a_gpus_products_change_no_token(monkeypatch, name):
    prepared = arguments(SETTINGS[name])
    expected = room.generate_jit(*prepared).trimmed()
    monkeypatch.setattr(room, "lax", As("cuda"))
    program = jax.jit(room.generate_jit.__wrapped__, static_argnums=(0, 1, 2))
    found = program(*prepared).trimmed()
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    np.testing.assert_allclose(found.sequence_scores, expected.sequence_scores, atol=1e-5)


def test_a_gpu_multiplies_whole_words_and_memory():
    traced = room.generate_jit.trace(*arguments(SETTINGS["beams"]))
    text, memory = CONFIG.text, IMAGE_TOKENS + 16  # the prompt's bucket
    heads = text.decoder_attention_heads

    def operands(words, memory):
        keys = f"tensor<{BATCH}x{heads}x{text.d_model // heads}x{memory}xf32>"
        return {f"tensor<{text.d_model}x{words}xf32>", keys}

    odd, whole = operands(text.vocab_size, memory), operands(1288, 56)
    for platform, expected, others in (("cpu", odd, whole), ("cuda", whole, odd)):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        found = set(re.findall(r"tensor<\w+>", "".join(re.findall(r"dot_general.*", lowered))))
        assert expected <= found, platform
        assert not others & found, platform
