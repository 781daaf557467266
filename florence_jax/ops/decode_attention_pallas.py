"""A decoding step's attention on XLA:TPU as one Pallas kernel, an example's memory at a time.

The step does little but read its memory. XLA:TPU reads it at its speed, but takes five kernels for
an attention and moves what is between them.

Shapes: B batch, K beams, S stored rows, D channels of all heads, H heads filled up to whole
        registers, Q = K * H.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from florence_jax.ops.davit_attention_tpu import LANES
from florence_jax.ops.decode_step import attend_to_rows, filled_heads, rows_at_once
from florence_jax.ops.pallas_primitive import tpu_operation

# Examples whose queries share registers.
_GROUP = 8
_NEVER = jnp.finfo(jnp.float32).min


def row_attention_kernel(
    q_BKD: jax.Array,
    key_BSD: jax.Array,
    value_BSD: jax.Array,
    mask: jax.Array,
    *,
    heads: int,
    interpret: bool = False,
) -> jax.Array:
    """The kernel for `step_forms.attend_to_rows`; with `interpret` on any backend, slowly."""
    batch, beams, dim = q_BKD.shape
    stored, asking = key_BSD.shape[1], mask.shape[1]
    queries = beams * filled_heads(heads)
    rows = rows_at_once(stored, dim, queries)
    # XLA:TPU keeps beams outermost, as they would fill few sublanes of a register.
    group = min(batch, _GROUP)
    few = pl.BlockSpec((beams, group, dim), lambda b, s: (0, lax.div(b, group), 0))
    some = pl.BlockSpec((1, rows, dim), lambda b, s: (b, s, 0))
    y_KBD = pl.pallas_call(
        functools.partial(_kernel, heads=heads),
        grid=(batch, stored // rows),
        in_specs=[few, some, some, pl.BlockSpec((1, asking, rows), lambda b, s: (b, 0, s))],
        out_specs=few,
        # In float32, of which single rows can be picked: rows of bfloat16 share registers.
        out_shape=jax.ShapeDtypeStruct((beams, batch, dim), jnp.float32),
        scratch_shapes=[
            pltpu.VMEM((queries, LANES), jnp.float32),
            pltpu.VMEM((queries, LANES), jnp.float32),
            pltpu.VMEM((queries, dim), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        interpret=interpret,
        name="row_attention",
    )(q_BKD.swapaxes(0, 1).astype(jnp.float32), key_BSD, value_BSD, mask.astype(jnp.int32))
    return y_KBD.swapaxes(0, 1).astype(q_BKD.dtype)


def _kernel(
    q_ref: Any,
    key_ref: Any,
    value_ref: Any,
    mask_ref: Any,
    out_ref: Any,
    highest_ref: Any,
    total_ref: Any,
    sum_ref: Any,
    *,
    heads: int,
) -> None:
    """One example's softmax over some of its rows, and so far (https://arxiv.org/abs/1805.02867)."""
    beams, group, dim = q_ref.shape
    width, padded = dim // heads, sum_ref.shape[0] // beams
    example = pl.ds(lax.rem(pl.program_id(0), group), 1)

    @pl.when(pl.program_id(1) == 0)
    def _begin() -> None:
        highest_ref[...] = jnp.full(highest_ref.shape, _NEVER)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    first = lax.broadcasted_iota(jnp.int32, (padded, dim), 0) * width
    channel = lax.broadcasted_iota(jnp.int32, (padded, dim), 1)
    own_HD = (channel >= first) & (channel < first + width)

    def of_queries(x_KHS: jax.Array) -> jax.Array:
        return x_KHS.reshape(beams * padded, x_KHS.shape[-1])

    q_KHD = jnp.where(own_HD, q_ref[:, example] * width**-0.5, 0.0)
    scores_QS = lax.dot_general(
        of_queries(q_KHD).astype(key_ref.dtype),
        key_ref[0],
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    mask_KHS = jnp.broadcast_to(mask_ref[0][:, None], (beams, padded, mask_ref.shape[-1]))
    scores_QS = jnp.where(of_queries(mask_KHS) != 0, scores_QS, _NEVER)
    before = highest_ref[:, :1]
    highest = jnp.maximum(before, scores_QS.max(-1, keepdims=True))
    weights_QS = jnp.exp(scores_QS - highest)
    faded = jnp.exp(before - highest)
    total = faded * total_ref[:, :1] + weights_QS.sum(-1, keepdims=True)
    sum_QD = faded * sum_ref[...] + jnp.dot(
        weights_QS.astype(value_ref.dtype), value_ref[0], preferred_element_type=jnp.float32
    )
    highest_ref[...] = jnp.broadcast_to(highest, highest_ref.shape)
    total_ref[...] = jnp.broadcast_to(total, total_ref.shape)
    sum_ref[...] = sum_QD

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _end() -> None:
        y_KHD = (sum_QD / total).reshape(beams, padded, dim)
        out_ref[:, example] = jnp.where(own_HD, y_KHD, 0.0).sum(1, keepdims=True)


attend_to_rows_by_kernel = tpu_operation("row_attention", attend_to_rows, row_attention_kernel, 4)
