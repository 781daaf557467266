"""Multi-head attention of BART for whole sequences: reference and Pallas TPU kernels.

XLA:TPU writes the scores of all heads to memory in float32 and passes over them several times,
backward too. Here a step computes some heads of one example in VMEM, and the backward kernel
computes their softmax again. Which weights dropout keeps is drawn outside, as on other platforms.

Shapes: B examples, Q queries, S keys, D model, N heads, E channels of a head, L = 128 channels of
        neighbouring heads.
Source: the softmax's backward as in FlashAttention, https://arxiv.org/abs/2205.14135, appendix B.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.attention import dot_product_attention
from florence_jax.ops.lazy_pallas import pl, pltpu
from florence_jax.ops.pallas_primitive import LANES, make_pallas_primitive
from florence_jax.sharding.activations import batch_is_local

# Queries whose scores exist at one time, and the most tokens whose arrays fit in VMEM.
_ROWS, _MAX_TOKENS = 256, 1024
_LOWEST = float(jnp.finfo(jnp.float32).min)


def pallas_supported(q_BQD: jax.Array, keys: int, num_heads: int) -> bool:
    """Whether `text_attention` supports bfloat16[B, Q, D] queries and this number of keys."""
    batch, queries, dim = q_BQD.shape
    whole = dim % LANES == 0 and dim % num_heads == 0 and LANES % (dim // num_heads) == 0
    small = max(queries, keys) <= _MAX_TOKENS
    return whole and small and q_BQD.dtype == jnp.bfloat16 and batch_is_local(batch)


def causal_mask(queries: int, keys: int) -> jax.Array:
    """bool[Q, S]: a query attends to the keys up to its own position."""
    return jnp.tril(jnp.ones((queries, keys), bool))


def reference(
    q_BQD: jax.Array,
    k_BSD: jax.Array,
    v_BSD: jax.Array,
    mask_BS: jax.Array,
    *kept_BNQS: jax.Array,
    num_heads: int,
    causal: bool,
    dropout_rate: float,
) -> jax.Array:
    """Attention without a kernel, float[B, Q, D].

    Args:
        q_BQD, k_BSD, v_BSD: float, the heads side by side; queries are not scaled yet.
        mask_BS: bool, False for keys that are not attended to.
        kept_BNQS: bool, the weights that dropout keeps; without it, all.
        num_heads: N.
        causal: whether queries see the keys up to their own position alone.
        dropout_rate: the share of weights that dropout removes.
    """

    def heads(x_BSD: jax.Array) -> jax.Array:
        return x_BSD.reshape(*x_BSD.shape[:2], num_heads, -1).swapaxes(1, 2)

    q, k, v = heads(q_BQD), heads(k_BSD), heads(v_BSD)
    mask = mask_BS[:, None, None]
    if causal:
        mask = mask & causal_mask(q.shape[-2], k.shape[-2])
    kept = kept_BNQS[0].astype(bool) if kept_BNQS else None
    y = dot_product_attention(q, k, v, mask=mask, dropout_rate=dropout_rate, kept=kept)
    return y.swapaxes(1, 2).reshape(q_BQD.shape)


def reference_backward(
    q_BQD: jax.Array,
    k_BSD: jax.Array,
    v_BSD: jax.Array,
    mask_BS: jax.Array,
    g_BQD: jax.Array,
    *kept_BNQS: jax.Array,
    **options: Any,
) -> tuple[jax.Array, ...]:
    """The gradients of `reference` with respect to queries, keys and values."""

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return reference(q, k, v, mask_BS, *kept_BNQS, **options)

    return jax.vjp(forward, q_BQD, k_BSD, v_BSD)[1](g_BQD)


def forward_kernel(
    q_BQD: jax.Array,
    k_BSD: jax.Array,
    v_BSD: jax.Array,
    mask_BS: jax.Array,
    *kept_BNQS: jax.Array,
    interpret: bool = False,
    **options: Any,
) -> jax.Array:
    """The Pallas kernel; `interpret` runs it on any backend, slowly."""
    tiles = _Tiles(q_BQD, k_BSD, options["num_heads"])
    return pl.pallas_call(
        functools.partial(_forward, **tiles.options(options)),
        grid=tiles.grid,
        in_specs=[tiles.queries, tiles.keys, tiles.keys, tiles.mask, *tiles.kept(kept_BNQS)],
        out_specs=tiles.queries,
        out_shape=jax.ShapeDtypeStruct(q_BQD.shape, q_BQD.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="text_attention",
    )(q_BQD, k_BSD, v_BSD, _row(mask_BS), *_bytes(kept_BNQS))


def backward_kernel(
    q_BQD: jax.Array,
    k_BSD: jax.Array,
    v_BSD: jax.Array,
    mask_BS: jax.Array,
    g_BQD: jax.Array,
    *kept_BNQS: jax.Array,
    interpret: bool = False,
    **options: Any,
) -> tuple[jax.Array, ...]:
    """The Pallas kernel of `reference_backward`."""
    tiles = _Tiles(q_BQD, k_BSD, options["num_heads"])
    given = [tiles.queries, tiles.keys, tiles.keys, tiles.mask, tiles.queries]
    return pl.pallas_call(
        functools.partial(_backward, **tiles.options(options)),
        grid=tiles.grid,
        in_specs=[*given, *tiles.kept(kept_BNQS)],
        out_specs=[tiles.queries, tiles.keys, tiles.keys],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BQD, k_BSD, v_BSD)],
        scratch_shapes=[pltpu.VMEM((k_BSD.shape[1], LANES), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="text_attention_backward",
    )(q_BQD, k_BSD, v_BSD, _row(mask_BS), g_BQD, *_bytes(kept_BNQS))


class _Tiles:
    """The grid, examples by groups of neighbouring heads, and the blocks of a step."""

    def __init__(self, q_BQD: jax.Array, k_BSD: jax.Array, num_heads: int):
        (batch, queries, dim), keys = q_BQD.shape, k_BSD.shape[1]
        self.head_dim = dim // num_heads
        self.grid = (batch, dim // LANES)
        self.queries = pl.BlockSpec((None, queries, LANES), lambda b, n: (b, 0, n))
        self.keys = pl.BlockSpec((None, keys, LANES), lambda b, n: (b, 0, n))
        self.mask = pl.BlockSpec((None, 1, keys), lambda b, n: (b, 0, 0))
        kept = (None, LANES // self.head_dim, queries, keys)
        self._kept = pl.BlockSpec(kept, lambda b, n: (b, n, 0, 0))

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in given.items() if name != "num_heads"}
        return {**rest, "head_dim": self.head_dim}

    def kept(self, given: tuple[jax.Array, ...]) -> list[Any]:
        return [self._kept] * len(given)


def _row(mask_BS: jax.Array) -> jax.Array:
    """float32[B, 1, S]: 0 for keys that are attended to, else the lowest number."""
    return jnp.where(mask_BS, 0.0, _LOWEST)[:, None]


def _bytes(kept_BNQS: tuple[jax.Array, ...]) -> list[jax.Array]:
    return [kept.astype(jnp.int8) for kept in kept_BNQS]


def _forward(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    mask_ref: Any,
    *kept_and_out: Any,
    head_dim: int,
    causal: bool,
    dropout_rate: float,
) -> None:
    *kept_ref, out_ref = kept_and_out
    for rows in _blocks(q_ref.shape[0]):
        mixed = jnp.zeros((rows.size, LANES), jnp.float32)
        for head in range(LANES // head_dim):
            own = _lanes(head, head_dim)
            query = _scaled(_only(q_ref[rows, :], own), head_dim)
            weights = _exponentials(query, k_ref[...], mask_ref[...], rows.start, causal)
            used = _dropped(weights, kept_ref, head, rows, dropout_rate).astype(v_ref.dtype)
            y = _product(used, v_ref[...]) / weights.sum(-1, keepdims=True)
            mixed = jnp.where(own, y, mixed)
        out_ref[rows, :] = mixed.astype(out_ref.dtype)


def _backward(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    mask_ref: Any,
    g_ref: Any,
    *others: Any,
    head_dim: int,
    causal: bool,
    dropout_rate: float,
) -> None:
    *kept_ref, dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = others
    dtype = q_ref.dtype
    for total in (dk_sum, dv_sum):
        total[...] = jnp.zeros(total.shape, jnp.float32)
    # A component that all keys share changes no gradient, and without dropout neither does one that
    # all values share; both would only add rounding errors.
    keys = _centred(k_ref[...])
    values = v_ref[...] if kept_ref else _centred(v_ref[...])
    for rows in _blocks(q_ref.shape[0]):
        mixed = jnp.zeros((rows.size, LANES), jnp.float32)
        for head in range(LANES // head_dim):
            own = _lanes(head, head_dim)
            query = _scaled(_only(q_ref[rows, :], own), head_dim)
            weights = _exponentials(query, k_ref[...], mask_ref[...], rows.start, causal)
            weights = weights / weights.sum(-1, keepdims=True)
            g = _only(g_ref[rows, :], own)
            d_weights = _product_transposed(g, values)
            d_weights = _dropped(d_weights, kept_ref, head, rows, dropout_rate)
            mean = (weights * d_weights).sum(-1, keepdims=True)
            d_scores = (weights * (d_weights - mean)).astype(dtype)
            mixed = jnp.where(own, _product(d_scores, keys), mixed)
            dk_sum[...] += _product_first_transposed(d_scores, query)
            used = _dropped(weights, kept_ref, head, rows, dropout_rate).astype(dtype)
            dv_sum[...] += _product_first_transposed(used, g)
        dq_ref[rows, :] = (mixed * head_dim**-0.5).astype(dtype)
    dk_ref[...] = dk_sum[...].astype(dtype)
    dv_ref[...] = dv_sum[...].astype(dtype)


def _blocks(queries: int) -> list[Any]:
    return [pl.ds(start, min(_ROWS, queries - start)) for start in range(0, queries, _ROWS)]


def _lanes(head: int, head_dim: int) -> jax.Array:
    """bool[1, L]: the channels of one head of a group."""
    lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return (lane >= head * head_dim) & (lane < (head + 1) * head_dim)


def _only(x_QL: jax.Array, own: jax.Array) -> jax.Array:
    """One head's channels and zeros for the others', whose products then add nothing."""
    return jnp.where(own, x_QL, jnp.zeros((), x_QL.dtype))


def _scaled(q_QL: jax.Array, head_dim: int) -> jax.Array:
    return (q_QL.astype(jnp.float32) * head_dim**-0.5).astype(q_QL.dtype)


def _exponentials(
    q_QL: jax.Array, k_SL: jax.Array, mask_1S: jax.Array, first: int, causal: bool
) -> jax.Array:
    """The softmax's weights before they are divided by their sum, float32[Q, S]."""
    scores = _product_transposed(q_QL, k_SL)
    unseen = mask_1S < 0.0
    if causal:
        query = first + lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        unseen = unseen | (lax.broadcasted_iota(jnp.int32, scores.shape, 1) > query)
    scores = jnp.where(unseen, _LOWEST, scores)
    return jnp.exp(scores - scores.max(-1, keepdims=True))


def _dropped(
    weights: jax.Array, kept_ref: list[Any], head: int, rows: Any, rate: float
) -> jax.Array:
    if not kept_ref:
        return weights
    kept = kept_ref[0][head, rows, :].astype(jnp.float32)
    return weights * (kept * (1.0 / (1.0 - rate)))


def _centred(rows: jax.Array) -> jax.Array:
    wide = rows.astype(jnp.float32)
    return (wide - wide.mean(0, keepdims=True)).astype(rows.dtype)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _product_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    across = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, y, across, preferred_element_type=jnp.float32)


def _product_first_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    down = (((0,), (0,)), ((), ()))
    return lax.dot_general(x, y, down, preferred_element_type=jnp.float32)


# All arguments have a batch axis.
_forward_primitive = make_pallas_primitive(
    "text_attention", reference, forward_kernel, batched_args=5
)
_backward_primitive = make_pallas_primitive(
    "text_attention_backward", reference_backward, backward_kernel, batched_args=6
)


def text_attention(
    q_BQD: jax.Array,
    k_BSD: jax.Array,
    v_BSD: jax.Array,
    mask_BS: jax.Array,
    *kept_BNQS: jax.Array,
    num_heads: int,
    causal: bool,
    dropout_rate: float,
) -> jax.Array:
    """`reference` by a kernel on TPUs, with a kernel for its gradient too.

    For arrays that `pallas_supported` accepts.
    """
    options = (num_heads, causal, dropout_rate)
    return _text_attention(options, q_BQD, k_BSD, v_BSD, mask_BS, *kept_BNQS)


def _named(options: tuple[int, bool, float]) -> dict[str, Any]:
    return dict(zip(("num_heads", "causal", "dropout_rate"), options, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _text_attention(options: tuple[int, bool, float], *arguments: jax.Array) -> jax.Array:
    return _forward_primitive(*arguments, **_named(options))


def _gradient(
    options: tuple[int, bool, float], residuals: tuple[jax.Array, ...], g_BQD: jax.Array
) -> tuple[jax.Array | None, ...]:
    gradients = _backward_primitive(*residuals[:4], g_BQD, *residuals[4:], **_named(options))
    return *gradients, *[None] * (len(residuals) - 3)


_text_attention.defvjp(
    lambda options, *arguments: (_forward_primitive(*arguments, **_named(options)), arguments),
    _gradient,
)
