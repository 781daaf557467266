"""Every form that XLA:TPU is given computes what the others are given, forward and backward."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from florence_jax import config as configs
from florence_jax.model import Model, davit
from florence_jax.model.model import abstract_params
from florence_jax.ops.layer_norm_gelu import gelu_exact, gelu_poly_bf16
from florence_jax.ops.strided_conv import (
    _xla_conv,
    conv_space_to_depth,
    space_to_depth_applies,
)


def assert_agree(ours, theirs, *arguments):
    """Values and gradients by every argument, to float32 rounding."""

    def loss(form):
        return lambda *arguments: jnp.sum(jnp.sin(form(*arguments)))

    # Compiled whole: operation by operation takes three times as long.
    values = (jax.jit(form)(*arguments) for form in (ours, theirs))
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)
    by = tuple(range(len(arguments)))
    gradients = (jax.jit(jax.grad(loss(form), by))(*arguments) for form in (ours, theirs))
    for own, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())


def draw(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def randomised(module):
    """Parameters of an attention module, and both its forms as functions of them and the input."""
    graphdef, state = nnx.split(module)
    leaves, tree = jax.tree.flatten(nnx.to_pure_dict(state))
    params = jax.tree.unflatten(tree, [0.2 * leaf for leaf in draw(*(x.shape for x in leaves))])

    def form(name):
        return lambda params, x: getattr(nnx.merge(graphdef, params), name)(x)

    return params, form("_folded"), form("_reference")


def assert_forms_agree(module, x):
    params, folded, reference = randomised(module)
    values = (jax.jit(form)(params, x) for form in (folded, reference))
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)

    def loss(form):
        return lambda params, x: jnp.sum(jnp.sin(form(params, x)))

    ours, theirs = (
        jax.jit(jax.grad(loss(form), (0, 1)))(params, x) for form in (folded, reference)
    )
    for own, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-4 * np.abs(other).max() + 1e-6)


@pytest.mark.parametrize(("dim", "groups"), [(256, 8), (128, 2), (24, 3), (256, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_channel_attention(dim, groups, bias):
    """Four groups a block, two, one where groups fill no block, one wider than a block."""
    assert_forms_agree(
        davit.ChannelAttention(dim, groups, bias, v2=True, rngs=nnx.Rngs(0)), *draw((2, 36, dim))
    )


@pytest.mark.parametrize("bias", [True, False])
def test_window_attention(bias):
    assert_forms_agree(davit.WindowAttention(32, 4, 4, bias, rngs=nnx.Rngs(0)), *draw((3, 16, 32)))


def test_an_adapter_is_never_bypassed():
    """Fine-tuning adds to a linear layer's output, which the TPU's forms never compute whole."""
    layer = davit.ChannelAttention(32, 2, True, v2=True, rngs=nnx.Rngs(0))
    layer.proj.adapter = lambda x: 7.0 * jnp.ones_like(x)
    (x,) = draw((1, 4, 4, 32))

    def run(x):
        return layer(x)

    plain = davit.ChannelAttention(32, 2, True, v2=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(run(x), plain(x) + 7.0, rtol=1e-5, atol=1e-5)
    text = jax.jit(run).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    assert "7.000000e+00" in text


@pytest.mark.parametrize(("size", "stride", "padding"), [(7, 4, 3), (3, 2, 1), (4, 4, 0)])
def test_strided_convolution(size, stride, padding):
    assert space_to_depth_applies(24, size=size, stride=stride, padding=padding)
    assert_agree(
        functools.partial(conv_space_to_depth, stride=stride, padding=padding),
        functools.partial(_xla_conv, stride=stride, padding=padding),
        *draw((2, 22, 24, 3), (size, size, 3, 5)),
    )


def test_columns_that_do_not_fit_are_refused():
    assert not space_to_depth_applies(25, size=7, stride=4, padding=3)
    assert not space_to_depth_applies(24, size=5, stride=4, padding=3), "one output more"


def test_gelu_rounds_like_the_true_one():
    every = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)
    numbers = every.astype(np.float32)
    every = every[np.isfinite(numbers) & (np.abs(numbers) < 4) & (np.abs(numbers) > 1e-3)]
    true = [x * 0.5 * math.erfc(-x / math.sqrt(2)) for x in every.astype(np.float64)]
    ours = np.asarray(gelu_poly_bf16(jnp.asarray(every)))
    np.testing.assert_array_equal(ours, np.asarray(true).astype(ml_dtypes.bfloat16))


def test_gelu_far_out():
    x = jnp.asarray([-3e38, -1e4, -40.0, -9.0, -6.0, 0.0, 6.0, 9.0, 40.0, 1e4, 3e38], jnp.bfloat16)
    ours = gelu_poly_bf16(x).astype(np.float32)
    np.testing.assert_allclose(ours, gelu_exact(x).astype(np.float32), rtol=0, atol=1e-8)


def test_gelu_gradient():
    x = jnp.linspace(-6.0, 6.0, 1001)

    def slope(form):
        return jax.vmap(jax.grad(lambda v: form(v).astype(jnp.float32)))(x)

    np.testing.assert_allclose(slope(gelu_poly_bf16), slope(gelu_exact), rtol=0, atol=1e-4)


def lowered(platform):
    model = Model(config=configs.tiny(), dtype="bfloat16")
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)

    def encode(params, pixels):
        return model.bind(params).vision_tower(pixels.astype(jnp.bfloat16))

    traced = jax.jit(encode).trace(abstract_params(model.config), pixels)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_each_platform_is_given_its_own_forms():
    """No clock and no device: the StableHLO alone says which form was lowered."""
    # Equal blocks of a stage are one function.
    blocks = 2 * len(configs.tiny().vision.depths)
    depthwise = {name: lowered(name) for name in ("cpu", "cuda", "tpu")}
    counts = {
        name: sum(
            "stablehlo.convolution" in line and "feature_group_count = 1 " not in line
            for line in text.splitlines()
        )
        for name, text in depthwise.items()
    }
    assert counts == {"cpu": 0, "cuda": 2 * blocks, "tpu": 2 * blocks}
    assert "7x2x12x8x" in depthwise["tpu"], "the stem's kernel with its columns folded"
    assert "7x2x12x8x" not in depthwise["cpu"] + depthwise["cuda"]
    assert "chlo.erf" not in depthwise["tpu"]
    assert "chlo.erf" in depthwise["cpu"]
    assert "chlo.erf" in depthwise["cuda"]


@pytest.mark.parametrize(
    ("platform", "side", "dtype", "folded"),
    [
        ("tpu", 8, "bfloat16", True),
        ("cpu", 32, "float32", True),
        ("cpu", 8, "float32", False),
        ("cpu", 32, "bfloat16", False),
        ("cuda", 32, "float32", False),
    ],
)
def test_channel_attention_is_folded_where_that_wins(platform, side, dtype, folded):
    """On a CPU where a map has many tokens. Unfolded, q, k and v are one array of 3 x 8 groups."""
    layer = davit.ChannelAttention(256, 8, True, v2=True, rngs=nnx.Rngs(0))
    x = jax.ShapeDtypeStruct((1, side, side, 256), jnp.dtype(dtype))
    text = jax.jit(lambda x: layer(x)).trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert ("x3x8x32x" not in text) == folded
