"""What DaViT does beyond matching the reference on a forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert.verify.reference import native_model, random_params_with_spread_logits
from florence_jax import config as configs
from florence_jax.backbone.config import preset
from florence_jax.model import Model
from florence_jax.model.davit import DaViT
from florence_jax.model.layers import drop_path, dropout
from florence_jax.ops.attention import dot_product_attention
from florence_jax.ops.depthwise_conv_xla import (
    depthwise_conv_shifted_fma,
    depthwise_conv_xla,
    no_inline_jit,
)
from tests.small_model import small_model_config


@pytest.mark.parametrize("shape", [(2, 7, 5, 8), (1, 1, 1, 4), (1, 16, 16, 3)])
@pytest.mark.parametrize(
    "form", [depthwise_conv_shifted_fma, no_inline_jit(depthwise_conv_shifted_fma)]
)
def test_depthwise_forms_agree_forward_and_backward(form, shape):
    channels = shape[-1]
    keys = jax.random.split(jax.random.key(0), 3)
    operands = [
        jax.random.normal(key, size)
        for key, size in zip(keys, [shape, (3, 3, 1, channels), (channels,)], strict=True)
    ]

    def value_and_gradients(form):
        def loss(*operands):
            y = form(*operands)
            return jnp.sum(jnp.sin(y)), y

        (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*operands)
        return [y, *gradients]

    expected = value_and_gradients(depthwise_conv_xla)
    for ours, theirs in zip(value_and_gradients(form), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_attention_divided_last_is_softmax_attention():
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (2, 3, 9, 8)) for key in keys[:3])
    mask = jax.random.bernoulli(keys[3], 0.7, (2, 1, 1, 9)).at[..., 0].set(True)

    def softmax_first(q, k, v):
        scores = jnp.where(mask, jnp.einsum("bnqe,bnse->bnqs", q, k) * 8**-0.5, -jnp.inf)
        return jnp.einsum("bnqs,bnse->bnqe", jax.nn.softmax(scores, axis=-1), v)

    def ours(q, k, v):
        return dot_product_attention(q, k, v, mask=mask)

    np.testing.assert_allclose(ours(q, k, v), softmax_first(q, k, v), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        *(
            jax.grad(lambda *qkv, form=form: jnp.sum(jnp.sin(form(*qkv))), (0, 1, 2))(q, k, v)
            for form in (ours, softmax_first)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_drop_path_rates_are_the_references():
    config = configs.tiny()
    reference = native_model(config, random_params_with_spread_logits(config, seed=0))
    tower = Model(config=config).bind(random_params_with_spread_logits(config, seed=0)).vision_tower
    for stage, blocks in zip(tower.stages, reference.model.vision_tower.blocks, strict=True):
        for rates, theirs in zip(stage.drop_path_rates, blocks, strict=True):
            for rate, side in zip(rates, ("spatial", "channel"), strict=True):
                drop = getattr(theirs, f"{side}_block").drop_path1
                # Identity stands for a rate of zero.
                expected = getattr(drop, "drop_prob", 0.0)
                assert rate == pytest.approx(expected, abs=1e-7)


def test_drop_path_rates_per_block_are_timms():
    """The rates of timm 1.0.31's `davit_tiny` with drop_path_rate=0.3, block by block."""
    tiny = preset("davit_tiny").vision
    vision = dataclasses.replace(tiny, drop_path_rate=0.3, drop_path_per_block=True)
    tower = nnx.eval_shape(lambda: DaViT(vision, rngs=None))
    rates = [rate for stage in tower.stages for rate in stage.drop_path_rates]
    expected = [0.0, 0.06, 0.12, 0.18, 0.24, 0.3]
    np.testing.assert_allclose(rates, [(one, one) for one in expected], atol=1e-7)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    y = np.asarray(drop_path(x, 0.25, jax.random.key(0)))
    per_example = y.reshape(4000, -1)
    assert np.all(per_example == per_example[:, :1]), "an example is dropped whole or not at all"
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert y.mean() == pytest.approx(1.0, abs=0.03)


def test_dropout_needs_a_key():
    x = jnp.ones((100, 100))
    assert dropout(x, 0.5, None) is x
    y = dropout(x, 0.5, jax.random.key(0))
    assert float((y == 0).mean()) == pytest.approx(0.5, abs=0.02)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.04)


def test_a_key_turns_on_randomness_everywhere_and_only_then():
    config = small_model_config()
    config = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, drop_path_rate=0.5)
    )
    model = Model(config=config)
    params = random_params_with_spread_logits(config, seed=1)
    pixels = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    ids = jnp.ones((2, 4), jnp.int32) * 5

    @jax.jit
    def run(params, key):
        return model.bind(params)(pixels, ids, jnp.ones_like(ids), ids, key=key)

    plain = run(params, None)
    np.testing.assert_array_equal(plain, run(params, None))
    one, same, other = (run(params, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    assert np.abs(one - plain).max() > 0.1
