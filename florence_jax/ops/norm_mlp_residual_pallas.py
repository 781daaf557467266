"""Layer norm, MLP and residual of DaViT: reference and Pallas TPU kernel.

XLA:TPU writes the hidden activations, four times the map, to memory and reads them again, and uses
separate kernels for the norm's sums and its float32 copy. This kernel reads and writes a row once.

Shapes: B images, H W grid, S tokens, C channels, F hidden channels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.layer_norm_gelu import LAYER_NORM_EPSILON, gelu, gelu_poly_bf16, layer_norm
from florence_jax.ops.lazy_pallas import pl, pltpu
from florence_jax.ops.pallas_primitive import LANES, VMEM_BUDGET_BYTES, make_pallas_primitive
from florence_jax.sharding.activations import batch_is_local

# Row block, and hidden channels per matrix product.
ROWS, CHUNK = 512, 512
# The widest map whose row block and smallest weight block still fit in VMEM.
_MAX_CHANNELS = 1024


def pallas_supported(x_BHWC: jax.Array, hidden_channels: int) -> bool:
    """Whether `norm_mlp_residual` supports this map, bfloat16[B, H, W, C]."""
    dim = x_BHWC.shape[-1]
    whole = dim % LANES == 0 and hidden_channels % LANES == 0 and dim <= _MAX_CHANNELS
    return whole and x_BHWC.dtype == jnp.bfloat16 and batch_is_local(x_BHWC.shape[0])


def reference(x: jax.Array, *weights: jax.Array) -> jax.Array:
    """x + mlp(layer_norm(x)), x float[..., C]; weights in the order of the first line."""
    scale, shift, kernel1, bias1, kernel2, bias2 = weights
    hidden = layer_norm(x, scale, shift) @ kernel1 + bias1
    return x + (gelu(hidden) @ kernel2 + bias2)


def norm_mlp_residual_kernel(
    x: jax.Array, *weights: jax.Array, interpret: bool = False
) -> jax.Array:
    """The Pallas kernel; `interpret` runs it on any backend, slowly."""
    x_SC = x.reshape(-1, x.shape[-1])
    tokens, dim = x_SC.shape
    scale, shift, kernel1, bias1, kernel2, bias2 = weights
    hidden = kernel1.shape[1]
    rows = min(ROWS, tokens)
    part = hidden_block(rows, dim, hidden)
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
        name="norm_mlp_residual",
    )(x_SC, row(scale), row(shift), kernel1, row(bias1), kernel2, row(bias2))
    return y_SC.reshape(x.shape)


def hidden_block(rows: int, dim: int, hidden: int) -> int:
    """The largest block of hidden channels that fits in VMEM beside a block of rows."""
    parts = (n for n in range(1, hidden // LANES + 1) if hidden % (n * LANES) == 0)
    return next(hidden // n for n in parts if _bytes(rows, dim, hidden // n) <= VMEM_BUDGET_BYTES)


def _bytes(rows: int, dim: int, part: int) -> int:
    """Bytes of VMEM that double-buffered bfloat16 blocks and the scratch take."""
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
    """Compute everything but the products in float32."""
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
        total += _product(gelu_poly_bf16(hidden).astype(x_ref.dtype), kernel2_ref[own])
    total_ref[...] = total

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _end() -> None:
        out_ref[...] = total_ref[...].astype(x_ref.dtype)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


# `reference` of bfloat16, with fewer roundings.
norm_mlp_residual = make_pallas_primitive("norm_mlp_residual", reference, norm_mlp_residual_kernel)
