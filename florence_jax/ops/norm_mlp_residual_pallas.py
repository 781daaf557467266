"""Norm, MLP and residual on XLA:TPU as one Pallas kernel, some rows at a time.

XLA:TPU writes the hidden activations, four times the map, to memory and reads them again, and takes
the norm's sums and its float32 copy in kernels of their own. Here a row is read and written once.

Shapes: S tokens, C channels, F hidden channels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from florence_jax.model.layers import gelu
from florence_jax.ops.davit_attention_tpu import LANES, gelu_by_exponential
from florence_jax.ops.layer_norm_gelu import LAYER_NORM_EPSILON, layer_norm
from florence_jax.ops.pallas_primitive import ROOM, tpu_operation

# Rows of a step, and hidden channels of which the products are made at a time.
ROWS, CHUNK = 512, 512


def plain_form(x: jax.Array, *weights: jax.Array) -> jax.Array:
    scale, shift, kernel1, bias1, kernel2, bias2 = weights
    hidden = layer_norm(x, scale, shift) @ kernel1 + bias1
    return x + (gelu(hidden) @ kernel2 + bias2)


def row_kernel(x: jax.Array, *weights: jax.Array, interpret: bool = False) -> jax.Array:
    """The kernel, for float[..., C]; with `interpret` on any backend, slowly."""
    x_SC = x.reshape(-1, x.shape[-1])
    tokens, dim = x_SC.shape
    scale, shift, kernel1, bias1, kernel2, bias2 = weights
    hidden = kernel1.shape[1]
    rows = min(ROWS, tokens)
    parts = (n for n in range(1, hidden // LANES + 1) if hidden % (n * LANES) == 0)
    part = next(hidden // n for n in parts if _bytes(rows, dim, hidden // n) <= ROOM)
    some = pl.BlockSpec((rows, dim), lambda i, j: (i, 0))
    vector = pl.BlockSpec((1, dim), lambda i, j: (0, 0))

    def row(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.float32)[None]

    y_SC = pl.pallas_call(
        _kernel,
        grid=(pl.cdiv(tokens, rows), hidden // part),
        in_specs=[
            some,
            vector,
            vector,
            pl.BlockSpec((dim, part), lambda i, j: (0, j)),
            pl.BlockSpec((1, part), lambda i, j: (0, j)),
            pl.BlockSpec((part, dim), lambda i, j: (j, 0)),
            vector,
        ],
        out_specs=some,
        out_shape=jax.ShapeDtypeStruct(x_SC.shape, x_SC.dtype),
        scratch_shapes=[pltpu.VMEM((rows, dim), x_SC.dtype), pltpu.VMEM((rows, dim), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="mlp",
    )(x_SC, row(scale), row(shift), kernel1, row(bias1), kernel2, row(bias2))
    return y_SC.reshape(x.shape)


def _bytes(rows: int, dim: int, part: int) -> int:
    """Two of each block that comes or goes, in bfloat16, and the scratch."""
    return 2 * 2 * (2 * part * dim + 2 * rows * dim) + (2 + 4) * rows * dim


def _kernel(
    x_ref: Any,
    scale_ref: Any,
    shift_ref: Any,
    kernel1_ref: Any,
    bias1_ref: Any,
    kernel2_ref: Any,
    bias2_ref: Any,
    out_ref: Any,
    normed_ref: Any,
    total_ref: Any,
) -> None:
    """In float32 but for the products."""
    part = kernel1_ref.shape[1]

    @pl.when(pl.program_id(1) == 0)
    def _begin() -> None:
        x_SC = x_ref[...].astype(jnp.float32)
        centred = x_SC - x_SC.mean(-1, keepdims=True)
        inverse = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
        normed_ref[...] = (centred * inverse * scale_ref[...] + shift_ref[...]).astype(x_ref.dtype)
        total_ref[...] = x_SC + bias2_ref[...]

    total = total_ref[...]
    for start in range(0, part, CHUNK):
        own = slice(start, min(start + CHUNK, part))
        hidden = _product(normed_ref[...], kernel1_ref[:, own]) + bias1_ref[:, own]
        total += _product(gelu_by_exponential(hidden).astype(x_ref.dtype), kernel2_ref[own])
    total_ref[...] = total

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _end() -> None:
        out_ref[...] = total_ref[...].astype(x_ref.dtype)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


# `plain_form` of bfloat16, with fewer roundings.
mlp_by_rows = tpu_operation("mlp_rows", plain_form, row_kernel)
