"""The gradients written by hand beside the ones that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from florence_jax.ops.depthwise_conv import depthwise_conv
from florence_jax.ops.depthwise_conv_xla import (
    depthwise_conv_xla,
    kernel_grad_conv,
    kernel_grad_rowwise,
)
from florence_jax.ops.layer_norm_gelu import LAYER_NORM_EPSILON, gelu_exact, layer_norm


def draw(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def gradients(function, *operands):
    """Of a loss that weighs every entry differently, by every operand."""

    def loss(*operands):
        return jnp.sum(jnp.sin(function(*operands).astype(jnp.float32)))

    return jax.grad(loss, tuple(range(len(operands))))(*operands)


def assert_equal_gradients(ours, theirs, *operands, tolerance=2e-6):
    pairs = zip(gradients(ours, *operands), gradients(theirs, *operands), strict=True)
    for own, other in pairs:
        assert own.dtype == other.dtype
        own, other = np.asarray(own, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(own, other, rtol=0, atol=tolerance * np.abs(other).max())


def derived_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + LAYER_NORM_EPSILON) * scale + bias


def test_layer_norm():
    assert_equal_gradients(layer_norm, derived_norm, *draw((3, 5, 24), (24,), (24,)))


def test_layer_norm_of_bfloat16_with_float32_weights():
    x, scale, bias = draw((4, 64), (64,), (64,))
    x = x.astype(jnp.bfloat16)

    def derived(x, scale, bias):
        return derived_norm(x.astype(jnp.float32), scale, bias).astype(jnp.bfloat16)

    assert_equal_gradients(layer_norm, derived, x, scale, bias, tolerance=1e-2)


def test_gelu_beside_torch():
    x = np.linspace(-8.0, 8.0, 4001).astype(np.float32)
    theirs = torch.from_numpy(x).requires_grad_()
    torch.nn.functional.gelu(theirs).sum().backward()
    slope = jax.vmap(jax.grad(gelu_exact))(x)
    np.testing.assert_allclose(slope, theirs.grad.numpy(), rtol=0, atol=3e-7)
    _, forward_mode = jax.jvp(gelu_exact, (jnp.asarray(x),), (jnp.ones_like(x),))
    np.testing.assert_array_equal(forward_mode, slope)


@pytest.mark.parametrize("shape", [(2, 7, 5, 8), (1, 1, 1, 4), (3, 2, 9, 3)])
def test_depthwise(shape):
    operands = draw(shape, (3, 3, 1, shape[-1]), shape[-1:])
    assert_equal_gradients(depthwise_conv, depthwise_conv_xla, *operands)
    x, g = draw(shape, shape)
    map_batch_shards, by_convolution = kernel_grad_rowwise(x, g), kernel_grad_conv(x, g)
    np.testing.assert_allclose(map_batch_shards, by_convolution, rtol=0, atol=2e-5)


def test_they_work_under_vmap_remat_and_jit():
    def block(x, kernel, scale, bias):
        y = depthwise_conv(x, kernel, bias)
        return gelu_exact(layer_norm(y, scale, bias))

    def derived(x, kernel, scale, bias):
        y = depthwise_conv_xla(x, kernel, bias)
        return jax.nn.gelu(derived_norm(y, scale, bias), approximate=False)

    def mapped(function):
        return lambda x, *weights: jax.vmap(lambda x: function(x, *weights))(x)

    operands = draw((2, 1, 4, 4, 6), (3, 3, 1, 6), (6,), (6,))
    ours = jax.jit(mapped(jax.checkpoint(block)))
    assert_equal_gradients(ours, mapped(derived), *operands, tolerance=1e-5)


def test_nothing_is_kept_that_can_be_had_from_the_input():
    """The residuals: the input itself, and two numbers a row of a norm."""
    x, scale, bias, kernel = draw((2, 8, 8, 16), (16,), (16,), (3, 3, 1, 16))

    def sizes(function, *operands):
        _, pullback = jax.vjp(function, *operands)
        return sorted((leaf.size for leaf in jax.tree.leaves(pullback)), reverse=True)

    assert sizes(layer_norm, x, scale, bias)[:3] == [x.size, 2 * 8 * 8, 2 * 8 * 8]
    assert sizes(depthwise_conv, x, kernel, bias)[:2] == [x.size, kernel.size]
    assert sizes(gelu_exact, x)[:1] == [x.size]
