"""Scaled dot-product attention with a float32 softmax and a numerically careful gradient.

Shapes: Q queries, S keys, E channels of a head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from florence_jax.matmul_precision import current_precision, same_precision


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    kept: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T * E^-0.5) v with the softmax in float32.

    Args:
        q: float[..., Q, E]. k, v: float[..., S, E], the same leading axes.
        mask: bool, broadcastable to [..., Q, S]; False keys are not attended to.
        dropout_rate: the share of attention weights to drop.
        dropout_key: a random key; None turns dropout off.
        kept: bool[..., Q, S], `draw_kept`'s, in place of a key.

    Returns:
        float[..., Q, E], in q's dtype.
    """
    if dropout_key is not None and dropout_rate > 0.0:
        kept = draw_kept(dropout_key, dropout_rate, q, k)
    q = q * q.shape[-1] ** -0.5
    return softmax_attention(q, k, v, mask, kept, dropout_rate, current_precision())


def draw_kept(key: jax.Array, rate: float, q: jax.Array, k: jax.Array) -> jax.Array:
    """bool[..., Q, S]: the attention weights that dropout keeps."""
    return jax.random.bernoulli(key, 1.0 - rate, (*q.shape[:-1], k.shape[-2]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def softmax_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    kept: jax.Array | None,
    dropout_rate: float,
    precision: str | None = None,
) -> jax.Array:
    """softmax(q k^T) v, in the dtype of `v`, with a reverse-mode derivative only (no `jax.jvp`).

    Args:
        q: float[..., Q, E], already scaled. k, v: float[..., S, E], the same leading axes.
        mask: bool, broadcastable to [..., Q, S]; False keys are not attended to.
        kept: bool[..., Q, S], the weights that dropout keeps; None keeps all.
        dropout_rate: the share of weights that dropout removes.
        precision: the matmul precision, in the gradient too.
    """
    return _forward(q, k, v, mask, kept, dropout_rate, precision)[0]


def _forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    kept: jax.Array | None,
    dropout_rate: float,
    precision: str | None,
) -> tuple[jax.Array, tuple]:
    with same_precision(precision):
        return _attend(q, k, v, mask, kept, dropout_rate)


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    kept: jax.Array | None,
    dropout_rate: float,
) -> tuple[jax.Array, tuple]:
    scores = jnp.einsum("...qe,...se->...qs", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    # Dividing by the sum after the product with the values saves a pass over the scores. The result
    # does not depend on the maximum, so no gradient flows through it.
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    used = _dropped(weights, kept, dropout_rate).astype(v.dtype)
    y = jnp.einsum("...qs,...se->...qe", used, v, preferred_element_type=jnp.float32) / total
    return y.astype(v.dtype), (q, k, v, mask, kept, weights, total, y)


def _backward(dropout_rate: float, precision: str | None, residuals: tuple, g: jax.Array) -> tuple:
    with same_precision(precision):
        return _gradient(dropout_rate, residuals, g)


def _gradient(dropout_rate: float, residuals: tuple, g: jax.Array) -> tuple:
    q, k, v, mask, kept, weights, total, y = residuals
    by_total = g.astype(jnp.float32) / total
    # A component that all keys share does not change a softmax, nor does one that all values share
    # change its gradient. Left in, it would multiply rounding errors that should cancel.
    shared = jnp.zeros((), jnp.float32) if kept is not None else _mean_over_keys(v)
    d_weights = jnp.einsum(
        "...qe,...se->...qs",
        by_total.astype(v.dtype),
        _subtract(v, shared),
        preferred_element_type=jnp.float32,
    )
    d_total = (by_total * (y - shared)).sum(-1, keepdims=True)
    d_scores = weights * (_dropped(d_weights, kept, dropout_rate) - d_total)
    if mask is not None:
        d_scores = jnp.where(mask, d_scores, 0.0)
    d_scores = d_scores.astype(q.dtype)
    used = _dropped(weights, kept, dropout_rate).astype(v.dtype)
    dq = jnp.einsum("...qs,...se->...qe", d_scores, _subtract(k, _mean_over_keys(k)))
    dk = jnp.einsum("...qs,...qe->...se", d_scores, q)
    dv = jnp.einsum("...qs,...qe->...se", used, by_total.astype(v.dtype))
    return dq, dk, dv, None, None


softmax_attention.defvjp(_forward, _backward)


def _dropped(weights: jax.Array, kept: jax.Array | None, rate: float) -> jax.Array:
    return weights if kept is None else jnp.where(kept, weights / (1.0 - rate), 0.0)


def _mean_over_keys(x: jax.Array) -> jax.Array:
    return x.mean(-2, keepdims=True, dtype=jnp.float32)


def _subtract(x: jax.Array, shared: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) - shared).astype(x.dtype)
