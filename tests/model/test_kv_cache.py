"""Both forms of the decoder's cache hold the same and answer as teacher forcing does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.verify.stages import random_inputs
from florence_jax.model import Model, random_params_with_spread_logits
from florence_jax.model.kv_cache import KVCacheHeadMajor, KVCacheRowMajor, empty_cache
from tests.small_model import small_model_config

# Float32 sums in another order, on values of order one.
TOLERANCE = 2e-5
BATCH, BEAMS, HEADS, DIM, TOKENS = 2, 3, 4, 32, 5


def test_both_forms_answer_alike_after_reordering_and_growing():
    caches = [
        empty_cache(
            form,
            layers=1,
            batch=BATCH,
            beams=BEAMS,
            heads=HEADS,
            tokens=2,
            dim=DIM,
            dtype=jnp.dtype("float32"),
        )
        for form in (KVCacheHeadMajor, KVCacheRowMajor)
    ]
    generator = np.random.default_rng(0)
    answers = []
    for index in range(TOKENS):
        key, value, query = generator.standard_normal((3, BATCH, BEAMS, DIM), np.float32)
        parents = generator.integers(BEAMS, size=(BATCH, BEAMS))
        for number, cache in enumerate(caches):
            if index == 2:
                cache = cache.resize(TOKENS)
            cache = cache.start_step(jnp.int32(index))
            own = cache.layers[0].write(key, value, jnp.int32(index * BEAMS))
            answers.append(own.attend(jnp.asarray(query), cache.ancestor_mask(), HEADS))
            cache = cache._replace(layers=(own,)).reorder(jnp.asarray(parents))
            caches[number] = cache
    head_major, row_major = np.stack(answers[::2]), np.stack(answers[1::2])
    np.testing.assert_allclose(row_major, head_major, rtol=0, atol=1e-6)
    # The first token's queries see one row each: their own value.
    assert np.abs(head_major[-1]).max() > 0.01
    key, value = caches[0].layers[0]
    rows = caches[1].layers[0]
    np.testing.assert_array_equal(_rows(key.swapaxes(-2, -1)), rows.key)
    np.testing.assert_array_equal(_rows(value), rows.value)


@pytest.mark.parametrize("row_major", [False, True])
def test_cached_steps_equal_teacher_forcing(row_major):
    config = small_model_config(decoder_layers=2)
    model, params = Model(config=config), random_params_with_spread_logits(config, seed=3)
    inputs = random_inputs(model, batch=2, size=(96, 96), text=6, target=9, seed=2)
    beams = 3

    @jax.jit
    def run(params):
        module = model.bind(params)
        features = module.encode_image(inputs.pixel_values)
        memory, mask = module.encode(features, inputs.input_ids, inputs.attention_mask)
        full = module.decode(inputs.decoder_input_ids, memory, mask)
        cross = module.cross_attention_cache(memory, row_major=row_major)
        cache = module.init_cache(2, beams, 16, row_major=row_major)
        steps = []
        for index in range(inputs.decoder_input_ids.shape[1]):
            tokens = jnp.repeat(inputs.decoder_input_ids[:, index, None], beams, axis=1)
            logits, cache = module.decode_step(tokens, jnp.int32(index), cache, cross, mask)
            steps.append(logits)
        return full, jnp.stack(steps, axis=2)

    full, steps = run(params)
    assert steps.shape == (2, beams, *full.shape[1:])
    np.testing.assert_allclose(
        steps, np.broadcast_to(full[:, None], steps.shape), rtol=0, atol=TOLERANCE
    )


def _rows(head_major: jax.Array) -> np.ndarray:
    moved = np.moveaxis(np.asarray(head_major), 1, 2)
    return moved.reshape(*moved.shape[:2], DIM)
