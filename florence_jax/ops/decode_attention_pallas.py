"""Attention of one decoding step over cached keys and values: reference and Pallas TPU kernel.

A step is bound by reading its cache. XLA:TPU reads it at full speed, but uses five kernels for one
attention and writes their intermediate results to memory. This kernel keeps them on the chip.

Shapes: B batch, K beams, S cached rows, D channels of all heads, N heads, H heads padded to whole
        registers, Q = K * H queries.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.lazy_pallas import pl, pltpu
from florence_jax.ops.pallas_primitive import (
    LANES,
    SUBLANES,
    VMEM_BUDGET_BYTES,
    make_pallas_primitive,
    rows_fill_registers,
)

# Examples whose queries share registers.
_GROUP = 8
_MASKED = jnp.finfo(jnp.float32).min


def attention_kernel_supported(q_BKD: jax.Array, cached_rows: int, heads: int) -> bool:
    """Whether `decode_attention` runs as a kernel for these queries of `cached_rows` rows."""
    _, beams, dim = q_BKD.shape
    block = kv_block_size(cached_rows, dim, beams * pad_heads(heads))
    return rows_fill_registers(q_BKD) and block > 0


def pad_heads(heads: int) -> int:
    """The number of heads rounded up to whole float32 registers."""
    return -(-heads // SUBLANES) * SUBLANES


def kv_block_size(cached_rows: int, dim: int, queries: int) -> int:
    """The number of cached rows that the kernel reads at a time; 0 if no block divides them and
    fits.
    """
    # Bytes: keys and values in bfloat16, double-buffered, and three float32 arrays each of scores
    # and of outputs.
    most = (VMEM_BUDGET_BYTES - 3 * 4 * queries * dim) // (2 * 2 * 2 * dim + 3 * 4 * queries)
    if cached_rows <= most:
        return cached_rows
    return max((n for n in range(LANES, most + 1, LANES) if cached_rows % n == 0), default=0)


def decode_attention_reference(
    q_BKD: jax.Array, key_BSD: jax.Array, value_BSD: jax.Array, mask: jax.Array, *, heads: int
) -> jax.Array:
    """Multi-head attention of one query per beam over whole cached rows.

    Each head's query is zero outside its own channels, so that keys and values need no split.

    Args:
        q_BKD: float[B, K, D], not yet scaled.
        key_BSD: float[B, S, D]. value_BSD: float[B, S, D].
        mask: bool[B, 1 or K, S]; rows that are False are not attended to.
        heads: N.

    Returns:
        float[B, K, D], before the output projection.
    """
    batch, queries, dim = q_BKD.shape
    width = dim // heads
    head_mask_ND = jnp.arange(dim) // width == jnp.arange(heads)[:, None]
    q_BKND = jnp.where(head_mask_ND, (q_BKD * width**-0.5)[:, :, None], 0.0)
    q_BQD = q_BKND.reshape(batch, queries * heads, dim)
    scores = jnp.einsum("bqd,bsd->bqs", q_BQD, key_BSD, preferred_element_type=jnp.float32)
    mask = jnp.broadcast_to(mask, (batch, queries, mask.shape[-1]))
    scores = jnp.where(jnp.repeat(mask, heads, axis=1), scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value_BSD.dtype)
    y_BQD = jnp.einsum("bqs,bsd->bqd", weights, value_BSD)
    return jnp.where(head_mask_ND, y_BQD.reshape(q_BKND.shape), 0.0).sum(2)


def decode_attention_kernel(
    q_BKD: jax.Array,
    key_BSD: jax.Array,
    value_BSD: jax.Array,
    mask: jax.Array,
    *,
    heads: int,
    interpret: bool = False,
) -> jax.Array:
    """The Pallas kernel; `interpret` runs it on any backend, slowly."""
    batch, beams, dim = q_BKD.shape
    cached_rows, mask_rows = key_BSD.shape[1], mask.shape[1]
    queries = beams * pad_heads(heads)
    rows = kv_block_size(cached_rows, dim, queries)
    # XLA:TPU keeps beams outermost, as they would fill few sublanes of a register.
    group = min(batch, _GROUP)
    q_spec = pl.BlockSpec((beams, group, dim), lambda b, s: (0, lax.div(b, group), 0))
    kv_spec = pl.BlockSpec((1, rows, dim), lambda b, s: (b, s, 0))
    y_KBD = pl.pallas_call(
        functools.partial(_kernel, heads=heads),
        grid=(batch, cached_rows // rows),
        in_specs=[
            q_spec,
            kv_spec,
            kv_spec,
            pl.BlockSpec((1, mask_rows, rows), lambda b, s: (b, 0, s)),
        ],
        out_specs=q_spec,
        # In float32, of which single rows can be picked: rows of bfloat16 share registers.
        out_shape=jax.ShapeDtypeStruct((beams, batch, dim), jnp.float32),
        scratch_shapes=[
            pltpu.VMEM((queries, LANES), jnp.float32),
            pltpu.VMEM((queries, LANES), jnp.float32),
            pltpu.VMEM((queries, dim), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        interpret=interpret,
        name="decode_attention",
    )(q_BKD.swapaxes(0, 1).astype(jnp.float32), key_BSD, value_BSD, mask.astype(jnp.int32))
    return y_KBD.swapaxes(0, 1).astype(q_BKD.dtype)


def _kernel(
    q_ref: Any,
    key_ref: Any,
    value_ref: Any,
    mask_ref: Any,
    out_ref: Any,
    max_ref: Any,
    total_ref: Any,
    sum_ref: Any,
    *,
    heads: int,
) -> None:
    """One example's online softmax over a block of its rows (https://arxiv.org/abs/1805.02867)."""
    beams, group, dim = q_ref.shape
    width, padded = dim // heads, sum_ref.shape[0] // beams
    example = pl.ds(lax.rem(pl.program_id(0), group), 1)

    @pl.when(pl.program_id(1) == 0)
    def _begin() -> None:
        max_ref[...] = jnp.full(max_ref.shape, _MASKED)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    first = lax.broadcasted_iota(jnp.int32, (padded, dim), 0) * width
    channel = lax.broadcasted_iota(jnp.int32, (padded, dim), 1)
    head_mask_HD = (channel >= first) & (channel < first + width)

    def of_queries(x_KHS: jax.Array) -> jax.Array:
        return x_KHS.reshape(beams * padded, x_KHS.shape[-1])

    q_KHD = jnp.where(head_mask_HD, q_ref[:, example] * width**-0.5, 0.0)
    scores_QS = lax.dot_general(
        of_queries(q_KHD).astype(key_ref.dtype),
        key_ref[0],
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    mask_KHS = jnp.broadcast_to(mask_ref[0][:, None], (beams, padded, mask_ref.shape[-1]))
    scores_QS = jnp.where(of_queries(mask_KHS) != 0, scores_QS, _MASKED)
    old_max = max_ref[:, :1]
    new_max = jnp.maximum(old_max, scores_QS.max(-1, keepdims=True))
    weights_QS = jnp.exp(scores_QS - new_max)
    rescale = jnp.exp(old_max - new_max)
    total = rescale * total_ref[:, :1] + weights_QS.sum(-1, keepdims=True)
    sum_QD = rescale * sum_ref[...] + jnp.dot(
        weights_QS.astype(value_ref.dtype), value_ref[0], preferred_element_type=jnp.float32
    )
    max_ref[...] = jnp.broadcast_to(new_max, max_ref.shape)
    total_ref[...] = jnp.broadcast_to(total, total_ref.shape)
    sum_ref[...] = sum_QD

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _end() -> None:
        y_KHD = (sum_QD / total).reshape(beams, padded, dim)
        out_ref[:, example] = jnp.where(head_mask_HD, y_KHD, 0.0).sum(1, keepdims=True)


decode_attention = make_pallas_primitive(
    "decode_attention", decode_attention_reference, decode_attention_kernel, batched_args=4
)
