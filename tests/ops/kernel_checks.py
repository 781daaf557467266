"""What the tests of all TPU kernels ask of them."""

import jax
import jax.numpy as jnp


def draw(*shapes_and_scales):
    keys = jax.random.split(jax.random.key(0), len(shapes_and_scales))
    return [
        (scale * jax.random.normal(key, shape)).astype(jnp.bfloat16)
        for key, (shape, scale) in zip(keys, shapes_and_scales, strict=True)
    ]


def error(ours, true):
    return float(jnp.sqrt(jnp.mean((ours.astype(jnp.float32) - true) ** 2)))


def check_against_float32(plain, kernel, arguments, **options):
    """The answer in float32, rounded where bfloat16 must be: nearer than the plain form's."""
    true = plain(*map(_wide, arguments), **options)
    ours = kernel(*arguments, **options, interpret=True)
    assert ours.dtype == jnp.bfloat16
    assert ours.shape == true.shape
    assert error(ours, true) <= error(plain(*arguments, **options), true)
    return ours, true


def _wide(array):
    return array.astype(jnp.float32) if array.dtype == jnp.bfloat16 else array
