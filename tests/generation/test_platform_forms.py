"""The loop as it is compiled for a TPU: another cache, the same tokens."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax.config import tiny
from florence_jax.generation import GenerationConfig
from florence_jax.model import Model
from florence_jax.model.spread import spread_params

# Not `generate` itself, which the package offers under the same name.
room = importlib.import_module("florence_jax.generation.generate")

BATCH, BEAMS, IMAGE_TOKENS = 2, 3, 37
CONFIG = tiny()
SETTINGS = {
    # Longer than the first buffer, so that the cache grows.
    "beams": GenerationConfig(
        num_beams=BEAMS, no_repeat_ngram_size=3, min_new_tokens=70, max_new_tokens=70
    ),
    "greedy": GenerationConfig(max_new_tokens=20),
}


def arguments(settings):
    generator = np.random.default_rng(1)
    shape = (BATCH, IMAGE_TOKENS, CONFIG.text.d_model)
    return room.prepare(
        Model(config=CONFIG),
        spread_params(CONFIG, seed=5),
        image_features=jnp.asarray(generator.standard_normal(shape, np.float32)),
        input_ids=generator.integers(5, 200, (BATCH, 6)),
        config=settings,
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_do_not_depend_on_the_form_of_the_cache(monkeypatch, name):
    prepared = arguments(SETTINGS[name])
    expected = room.generate_program(*prepared).trimmed()

    class OnTpu:
        @staticmethod
        def platform_dependent(*operands, **forms):
            return forms["tpu"](*operands)

    monkeypatch.setattr(room, "lax", OnTpu)
    program = jax.jit(room.generate_program.__wrapped__, static_argnums=(0, 1, 2))
    found = program(*prepared).trimmed()
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    np.testing.assert_allclose(found.sequence_scores, expected.sequence_scores, atol=1e-5)


def test_each_platform_writes_the_cache_in_its_form():
    traced = room.generate_program.trace(*arguments(SETTINGS["beams"]))
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
