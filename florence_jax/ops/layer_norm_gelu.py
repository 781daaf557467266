"""GELU and layer normalisation in float32, with gradients that keep little and recompute little.

Left to itself, reverse mode keeps five arrays of a normalisation and four of a GELU; XLA:CPU takes
minutes to compile what becomes of them in a whole model.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

# torch.nn.LayerNorm's default; Flax's is 1e-6.
LAYER_NORM_EPSILON = 1e-5


@jax.custom_jvp
def gelu_by_erf(x: jax.Array) -> jax.Array:
    """The exact GELU in torch's own arithmetic."""
    y = x.astype(jnp.float32)
    # As torch writes it. `jax.nn.gelu` goes by erfc, which XLA:CPU expands into several passes.
    return (0.5 * y * (1.0 + lax.erf(y * 0.5**0.5))).astype(x.dtype)


@gelu_by_erf.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    y = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(y)) / math.sqrt(2.0 * math.pi)
    slope = 0.5 * (1.0 + lax.erf(y * 0.5**0.5)) + y * density
    return gelu_by_erf(x), tangent * slope.astype(x.dtype)


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalises the last axis of float[..., C], with the two-pass variance and in float32.

    `scale` and `bias` are float[C] of any dtype. Has a reverse-mode derivative of its own, and
    therefore none in forward mode (`jax.jvp`).
    """
    return _forward(x, scale, bias)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple]:
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    centred = y - mean
    inverse = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    y = centred * inverse * scale.astype(jnp.float32) + bias.astype(jnp.float32)
    return y.astype(x.dtype), (x, mean, inverse, scale, bias)


def _backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale, bias = residuals
    g = g.astype(jnp.float32)
    normalised = (x.astype(jnp.float32) - mean) * inverse
    scaled = g * scale.astype(jnp.float32)
    along = (scaled * normalised).mean(-1, keepdims=True)
    dx = inverse * (scaled - scaled.mean(-1, keepdims=True) - normalised * along)
    rows = tuple(range(x.ndim - 1))
    dscale, dbias = (g * normalised).sum(rows), g.sum(rows)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


layer_norm.defvjp(_forward, _backward)
