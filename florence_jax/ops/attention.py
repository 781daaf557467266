"""Attention with a float32 softmax, and a gradient that does not lose what queries have in common.

Shapes: Q queries, S keys, E channels of a head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def softmax_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    kept: jax.Array | None,
    dropout_rate: float,
) -> jax.Array:
    """softmax(q k^T) v, in the dtype of `v`.

    Args:
        q: float[..., Q, E], scaled. k, v: float[..., S, E], the same leading axes.
        mask: bool, broadcastable to [..., Q, S]; False keys are not attended to.
        kept: bool[..., Q, S], the weights that dropout keeps; None for all.
        dropout_rate: what share of them it drops.

    Has a reverse-mode derivative of its own, and therefore none in forward mode (`jax.jvp`).
    """
    return _forward(q, k, v, mask, kept, dropout_rate)[0]


def _forward(
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
    # Divided by its sum after the product with the values, the softmax passes once less over the
    # scores. Its result does not depend on the maximum, so no gradient need flow through that.
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    used = _dropped(weights, kept, dropout_rate).astype(v.dtype)
    y = jnp.einsum("...qs,...se->...qe", used, v, preferred_element_type=jnp.float32) / total
    return y.astype(v.dtype), (q, k, v, mask, kept, weights, total, y)


def _backward(dropout_rate: float, residuals: tuple, g: jax.Array) -> tuple:
    q, k, v, mask, kept, weights, total, y = residuals
    by_total = g.astype(jnp.float32) / total
    # A softmax sees neither what all keys share nor, in its gradient, what all values share: left
    # in, it is multiplied by rounding errors that should add up to zero.
    shared = jnp.zeros((), jnp.float32) if kept is not None else _mean_of_rows(v)
    d_weights = jnp.einsum(
        "...qe,...se->...qs",
        by_total.astype(v.dtype),
        _without(v, shared),
        preferred_element_type=jnp.float32,
    )
    d_total = (by_total * (y - shared)).sum(-1, keepdims=True)
    d_scores = weights * (_dropped(d_weights, kept, dropout_rate) - d_total)
    if mask is not None:
        d_scores = jnp.where(mask, d_scores, 0.0)
    d_scores = d_scores.astype(q.dtype)
    used = _dropped(weights, kept, dropout_rate).astype(v.dtype)
    dq = jnp.einsum("...qs,...se->...qe", d_scores, _without(k, _mean_of_rows(k)))
    dk = jnp.einsum("...qs,...qe->...se", d_scores, q)
    dv = jnp.einsum("...qs,...qe->...se", used, by_total.astype(v.dtype))
    return dq, dk, dv, None, None


softmax_attention.defvjp(_forward, _backward)


def _dropped(weights: jax.Array, kept: jax.Array | None, rate: float) -> jax.Array:
    return weights if kept is None else jnp.where(kept, weights / (1.0 - rate), 0.0)


def _mean_of_rows(x: jax.Array) -> jax.Array:
    return x.mean(-2, keepdims=True, dtype=jnp.float32)


def _without(x: jax.Array, shared: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) - shared).astype(x.dtype)
