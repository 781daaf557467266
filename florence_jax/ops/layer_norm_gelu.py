"""Layer normalisation and exact GELU in float32, with gradients that store little.

Plain reverse mode stores five arrays for each normalisation and four for each GELU, and XLA:CPU
takes minutes to compile the backward pass of a whole model made of them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

# torch.nn.LayerNorm's default; Flax's is 1e-6.
LAYER_NORM_EPSILON = 1e-5


# log2 of the normal distribution's upper tail at a >= 0, by powers of a: minimax on [0, 7] with an
# error of 1e-5 up to 4. The last one is negative, so the tail vanishes as it should far outside.
_LOG2_TAIL = (
    -0.9999958276748657,
    -1.1512378454208374,
    -0.4585154056549072,
    -0.053889352828264236,
    0.00846280250698328,
    -0.0009162045898847282,
    5.9403275372460485e-05,
    -1.7059683159459382e-06,
)


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU, computed in float32 and returned in x's dtype."""
    if x.dtype != jnp.bfloat16:
        return gelu_exact(x)
    return lax.platform_dependent(x, tpu=gelu_poly_bf16, default=gelu_exact)


@jax.custom_jvp
def gelu_exact(x: jax.Array) -> jax.Array:
    """The exact GELU with torch's arithmetic."""
    y = x.astype(jnp.float32)
    # `jax.nn.gelu` uses erfc, which XLA:CPU expands into several passes.
    return (0.5 * y * (1.0 + lax.erf(y * 0.5**0.5))).astype(x.dtype)


@gelu_exact.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    y = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(y)) / math.sqrt(2.0 * math.pi)
    slope = 0.5 * (1.0 + lax.erf(y * 0.5**0.5)) + y * density
    return gelu_exact(x), tangent * slope.astype(x.dtype)


def gelu_poly_bf16(x: jax.Array) -> jax.Array:
    """The exact GELU of bfloat16 as max(x, 0) - |x| tail(|x|): a polynomial and one exponential.

    It rounds to the same bfloat16 as the true value wherever |x| < 4, and costs so little that an
    MLP on a TPU stays bound by its matrix products.
    """
    y = x.astype(jnp.float32)
    # At zero its slope is 0, and so GELU's 0.5; that of `jnp.abs` is 1 in jax 0.12.
    distance = jnp.maximum(y, -y)
    return (jnp.maximum(y, 0.0) - distance * _tail(distance)).astype(x.dtype)


def gelu_poly_with_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`gelu_poly_bf16` of float32, not rounded, and its derivative with the same tail."""
    distance = jnp.abs(x)
    tail = _tail(distance)
    below = jnp.where(x < 0.0, tail, 1.0 - tail)
    density = jnp.exp2((-0.5 * math.log2(math.e)) * x * x) * (2.0 * math.pi) ** -0.5
    return jnp.maximum(x, 0.0) - distance * tail, below + x * density


def _tail(distance: jax.Array) -> jax.Array:
    log2_tail = jnp.full_like(distance, _LOG2_TAIL[-1])
    for coefficient in _LOG2_TAIL[-2::-1]:
        log2_tail = log2_tail * distance + coefficient
    return jnp.exp2(log2_tail)


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalise the last axis of float[..., C] in float32, with the two-pass variance.

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
