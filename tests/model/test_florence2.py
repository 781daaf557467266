"""Joining image and text, several frames, limits, and the parameter tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.verify.reference import random_params_with_spread_logits
from florence_jax import config as configs
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.model import Model, abstract_params
from florence_jax.model.projector import cosine_positions
from tests.small_model import small_model_config

# Unique parameters of the published checkpoints (shared/data/checkpoint_keys) and, beside them, the
# constant temporal table of 100 rows that those count as a buffer.
PUBLISHED_PARAMETERS = {
    "base": 231_414_016 + 100 * 1024,
    "large": 770_173_952 + 100 * 2048,
    "large-4k": 776_465_408 + 100 * 2048,
}


@pytest.mark.parametrize("preset", PUBLISHED_PARAMETERS)
def test_presets_have_the_published_number_of_parameters(preset):
    leaves = jax.tree.leaves(abstract_params(configs.PRESETS[preset]()))
    assert sum(leaf.size for leaf in leaves) == PUBLISHED_PARAMETERS[preset]


@pytest.mark.parametrize("preset", configs.PRESETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_preset_traces(preset, dtype):
    config = configs.PRESETS[preset]()
    model = Model(config=config, dtype=dtype)
    logits = jax.eval_shape(
        lambda params: model.logits(
            params,
            pixel_values=jnp.zeros((2, 768, 768, 3)),
            input_ids=jnp.zeros((2, 16), jnp.int32),
            decoder_input_ids=jnp.zeros((2, 8), jnp.int32),
        ),
        abstract_params(config),
    )
    assert logits.shape == (2, 8, config.text.vocab_size)
    assert logits.dtype == jnp.float32


def test_initialisation_follows_the_reference():
    params = Model(config=small_model_config()).init(jax.random.key(0))
    leaves = dict(flatten(params))
    for path, leaf in leaves.items():
        if path.endswith("/scale"):
            assert np.all(leaf == 1), path
        elif path.endswith("/bias"):
            assert np.all(leaf == 0), path
    assert float(leaves["shared/embedding"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(leaves["projector/row_positions"].std()) == pytest.approx(1.0, rel=0.1)
    again = Model(config=small_model_config()).init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_frames_follow_the_original_formula():
    """Several frames exist in the original alone; this is its projector, written out in numpy."""
    config = small_model_config()
    model, params = Model(config=config), random_params_with_spread_logits(config, seed=5)
    batch, frames, size = 2, 3, 96
    pixels = np.random.default_rng(0).standard_normal((batch, frames, size, size, 3))

    tokens = model.encode_image(params, jnp.asarray(pixels, jnp.float32))

    maps = jax.jit(lambda p, x: model.bind(p).vision_tower(x))(
        params, jnp.asarray(pixels.reshape(-1, size, size, 3), jnp.float32)
    )
    cells = size // 32
    x = np.asarray(maps, np.float64).reshape(batch, frames, cells, cells, -1)
    leaves = dict(flatten(params))
    rows, columns = leaves["projector/row_positions"], leaves["projector/column_positions"]
    for row in range(cells):
        for column in range(cells):
            x[:, :, row, column] += np.concatenate([columns[column], rows[row]])
    x += leaves["projector/temporal_positions"][:frames, None, None]
    x = x.reshape(batch, frames, cells * cells, -1)
    x = np.concatenate([x.mean(2), x.mean(1)], axis=1) @ leaves["projector/proj/kernel"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * leaves["projector/norm/scale"] + leaves["projector/norm/bias"]
    assert tokens.shape == (batch, frames + cells * cells, config.text.d_model)
    np.testing.assert_allclose(tokens, x, rtol=0, atol=5e-5)


def test_one_frame_is_an_image():
    config = small_model_config()
    model, params = Model(config=config), random_params_with_spread_logits(config, seed=6)
    image = jax.random.normal(jax.random.key(0), (1, 64, 96, 3))
    np.testing.assert_array_equal(
        model.encode_image(params, image), model.encode_image(params, image[:, None])
    )


def test_cosine_positions_are_the_original_table():
    table = cosine_positions(100, 32)
    np.testing.assert_array_equal(table[0, 0::2], 0)
    np.testing.assert_array_equal(table[0, 1::2], 1)
    expected = np.sin(7 * 10000.0 ** (-3 / 16))
    assert table[7, 6] == pytest.approx(expected, abs=1e-6)


def test_padding_does_not_change_the_answer():
    config = small_model_config()
    model, params = Model(config=config), random_params_with_spread_logits(config, seed=7)
    pixels = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    ids = jnp.array([[0, 44, 17, 2]])
    decoder_ids = jnp.array([[2, 0, 9]])
    short = model.logits(params, pixel_values=pixels, input_ids=ids, decoder_input_ids=decoder_ids)
    padded = model.logits(
        params,
        pixel_values=pixels,
        input_ids=jnp.pad(ids, ((0, 0), (0, 5)), constant_values=1),
        attention_mask=jnp.pad(jnp.ones_like(ids), ((0, 0), (0, 5))),
        decoder_input_ids=decoder_ids,
    )
    np.testing.assert_allclose(short, padded, rtol=0, atol=1e-5)


def test_limits_are_named():
    config = small_model_config()
    model, params = Model(config=config), random_params_with_spread_logits(config, seed=8)
    with pytest.raises(ValueError, match="grid of 51 x 24 cells, but the position table holds 50"):
        model.encode_image(params, jnp.zeros((1, 1632, 768, 3)))
    with pytest.raises(
        ValueError, match="101 frames were given; the temporal table holds 1 to 100"
    ):
        model.encode_image(params, jnp.zeros((1, 101, 32, 32, 3)))
    with pytest.raises(ValueError, match="577 image tokens and 448 text tokens make 1025"):
        model.logits(
            params,
            pixel_values=jnp.zeros((1, 768, 768, 3)),
            input_ids=jnp.zeros((1, 448), jnp.int32),
            decoder_input_ids=jnp.zeros((1, 1), jnp.int32),
        )
    with pytest.raises(ValueError, match="1025 decoder tokens were given"):
        model.logits(
            params,
            pixel_values=jnp.zeros((1, 64, 64, 3)),
            input_ids=jnp.zeros((1, 4), jnp.int32),
            decoder_input_ids=jnp.zeros((1, 1025), jnp.int32),
        )


def test_foreign_params_are_named():
    model = Model(config=small_model_config())
    params = random_params_with_spread_logits(small_model_config(), seed=9)
    del params["encoder"]["embedding_norm"]
    params["head"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"missing: encoder/embedding_norm/bias.*unexpected: head"):
        model.encode_image(params, jnp.zeros((1, 64, 64, 3)))


def test_the_compute_dtype_is_the_models_not_the_weights():
    config = small_model_config()
    params = random_params_with_spread_logits(config, seed=10)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    image = jnp.ones((1, 64, 64, 3))
    assert Model(config=config, dtype="bfloat16").encode_image(params, image).dtype == jnp.bfloat16
    assert Model(config=config).encode_image(half, image).dtype == jnp.float32
