"""Pallas TPU kernel of window attention with its projections, a row of windows at a time.

XLA:TPU writes the scores of all windows to memory and reads them again, 1.4 GB a block for eight
images in the first stage, and moves the map into windows and back. Here both stay on the chip.

Shapes: B images, H W grid, C channels, M blocks of 128 channels, S tokens of a strip, window after
        window.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.lazy_pallas import pl, pltpu
from florence_jax.ops.pallas_primitive import LANES, make_pallas_primitive
from florence_jax.ops.window_attention import (
    window_attention_folded,
    window_partition,
    window_reverse,
)
from florence_jax.ops.window_layout_pallas import (
    HEAD_DIM,
    HEADS,
    KEYS,
    PACKED,
    ROWS,
    SIDE,
    TOKENS,
    fitting_columns,
    heads_of_tail,
    lanes_of_heads,
    matmul,
    matmul_transposed,
    read_strip,
    spread,
    tile_of,
    write_strip,
)
from florence_jax.sharding.activations import batch_is_local

# Largest widths whose weights and strip still fit in VMEM.
MAX_CHANNELS, _MAX_STRIP_ELEMENTS_PER_ROW = 512, 192 * 128


def pallas_supported(
    x_BHWC: jax.Array | jax.ShapeDtypeStruct, *, side: int, num_heads: int
) -> bool:
    """Whether `window_attention` supports this map, bfloat16[B, H, W, C]."""
    height, width, dim = x_BHWC.shape[1:]
    published = side == SIDE and dim == num_heads * HEAD_DIM and x_BHWC.dtype == jnp.bfloat16
    whole = height % SIDE == 0 and dim % LANES == 0 and tile_width(width, dim) > 0
    return published and whole and dim <= MAX_CHANNELS and batch_is_local(x_BHWC.shape[0])


def tile_width(width: int, dim: int) -> int:
    """The number of columns in a tile: as many pairs of windows as fit in VMEM, or 0."""
    return fitting_columns(width, dim, _MAX_STRIP_ELEMENTS_PER_ROW)


def reference(x_BHWC: jax.Array, *weights: jax.Array) -> jax.Array:
    """Window attention without a kernel: float[B, H, W, C] -> float[B, H, W, C]."""
    heads = x_BHWC.shape[-1] // HEAD_DIM
    y_BSC = window_attention_folded(window_partition(x_BHWC, SIDE), *weights, num_heads=heads)
    return window_reverse(y_BSC, x_BHWC.shape, SIDE)


def window_attention_kernel(
    x_BHWC: jax.Array,
    qkv_kernel: jax.Array,
    qkv_bias: jax.Array,
    proj_kernel: jax.Array,
    proj_bias: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """The Pallas kernel; `interpret` runs it on any backend, slowly."""
    batch, height, width, dim = x_BHWC.shape
    columns = tile_width(width, dim)
    tokens = SIDE * columns
    strip = pl.BlockSpec((1, SIDE, columns, dim), lambda b, i, j: (b, i, j, 0))
    weights = [qkv_kernel, _row(qkv_bias), proj_kernel, _row(proj_bias)]
    whole = [pl.BlockSpec(leaf.shape, lambda b, i, j: (0, 0)) for leaf in weights]
    blocks, dtype = dim // LANES, x_BHWC.dtype
    return pl.pallas_call(
        functools.partial(_kernel, unroll=not interpret),
        grid=(batch, height // SIDE, width // columns),
        in_specs=[strip, *whole],
        out_specs=strip,
        out_shape=jax.ShapeDtypeStruct(x_BHWC.shape, dtype),
        scratch_shapes=[
            *[pltpu.VMEM((tokens // PACKED, dim), jnp.uint32)] * 2,
            pltpu.VMEM((3, blocks, tokens, LANES), dtype),
            pltpu.VMEM((blocks, tokens, LANES), dtype),
            *[pltpu.VMEM((TOKENS, KEYS), jnp.float32)] * 2,
            *[pltpu.VMEM((TOKENS, KEYS), dtype)] * 2,
            *[pltpu.VMEM((TOKENS, LANES), jnp.float32)] * 2,
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        interpret=interpret,
        name="window_attention",
    )(x_BHWC, *weights)


def _row(bias: jax.Array) -> jax.Array:
    return bias.astype(jnp.float32)[None]


def _kernel(
    x_ref: Any,
    qkv_kernel_ref: Any,
    qkv_bias_ref: Any,
    proj_kernel_ref: Any,
    proj_bias_ref: Any,
    out_ref: Any,
    map_ref: Any,
    windows_ref: Any,
    qkv_ref: Any,
    mixed_ref: Any,
    *buffers: Any,
    unroll: bool,
) -> None:
    dim, dtype = x_ref.shape[-1], x_ref.dtype
    x_SC = read_strip(x_ref, map_ref, windows_ref, unroll)
    for part in range(3):
        own = slice(part * dim, (part + 1) * dim)
        y_SC = matmul(x_SC, qkv_kernel_ref[:, own]) + qkv_bias_ref[:, own]
        if part == 0:
            # The softmax's exponentials are powers of two.
            y_SC = y_SC * (HEAD_DIM**-0.5 * math.log2(math.e))
        for block in range(dim // LANES):
            lanes = slice(block * LANES, (block + 1) * LANES)
            qkv_ref[part, block] = y_SC[:, lanes].astype(dtype)
    attend(qkv_ref, mixed_ref, *buffers, unroll=unroll)
    mixed_SC = jnp.concatenate([mixed_ref[block] for block in range(dim // LANES)], axis=-1)
    y_SC = matmul(mixed_SC, proj_kernel_ref[...]) + proj_bias_ref[...]
    write_strip(y_SC.astype(dtype), out_ref, map_ref, windows_ref, unroll)


def attend(qkv_ref: Any, mixed_ref: Any, *buffers: Any, unroll: bool) -> None:
    """Attend with four heads of one window at a time, in float32 except for the products.

    While the vector unit weighs one window's keys, the matrix unit makes the next one's scores and
    mixes the last one's values: neither waits, so long as the loop is laid out flat.
    """
    scores, weights, totals = buffers[:2], buffers[2:4], buffers[4:]
    of_head, tail_of = lanes_of_heads(), heads_of_tail()
    count = qkv_ref.shape[1] * qkv_ref.shape[2] // TOKENS

    def score(turn: jax.Array, slot: int) -> None:
        query, keys = tile_of(qkv_ref, turn, 0)[...], spread(tile_of(qkv_ref, turn, 1)[...])
        scores[slot][...] = matmul_transposed(query, keys)

    def weigh(slot: int) -> None:
        def rows_of(number: jax.Array, _: None) -> None:
            rows = pl.ds(number * ROWS, ROWS)
            main = [scores[slot][rows, pl.ds(head * LANES, LANES)] for head in range(HEADS)]
            tail = scores[slot][rows, pl.ds(HEADS * LANES, LANES)]
            highest = [
                jnp.maximum(own, jnp.where(tail_of == head, tail, -jnp.inf)).max(-1, keepdims=True)
                for head, own in enumerate(main)
            ]
            of_tail = highest[0]
            for head in range(1, HEADS):
                of_tail = jnp.where(tail_of >= head, highest[head], of_tail)
            tail = jnp.where(tail_of < HEADS, jnp.exp2(tail - of_tail), 0.0)
            weights[slot][rows, pl.ds(HEADS * LANES, LANES)] = tail.astype(weights[slot].dtype)
            total = jnp.zeros((ROWS, LANES), jnp.float32)
            for head, own in enumerate(main):
                weight = jnp.exp2(own - highest[head])
                weights[slot][rows, pl.ds(head * LANES, LANES)] = weight.astype(weights[slot].dtype)
                weight = weight + jnp.where(tail_of == head, tail, 0.0)
                total = jnp.where(of_head[head], weight.sum(-1, keepdims=True), total)
            totals[slot][rows] = 1.0 / total

        lax.fori_loop(0, TOKENS // ROWS, rows_of, None, unroll=unroll)

    def mix(turn: jax.Array, slot: int) -> None:
        mixed = matmul(weights[slot][...], spread(tile_of(qkv_ref, turn, 2)[...]))
        tile_of(mixed_ref, turn)[...] = (mixed * totals[slot][...]).astype(mixed_ref.dtype)

    def pair(number: jax.Array, _: None) -> None:
        turn = 2 * number
        score(turn + 1, 1)
        # Before the first pair there is nothing to mix: what this writes is written over below.
        mix(jnp.maximum(turn - 1, 0), 1)
        weigh(0)
        score(jnp.minimum(turn + 2, count - 1), 0)
        mix(turn, 0)
        weigh(1)

    score(jnp.int32(0), 0)
    lax.fori_loop(0, count // 2, pair, None, unroll=unroll)
    mix(jnp.int32(count - 1), 1)


# QKV projection, window attention and output projection of a whole map, bfloat16[B, H, W, C], for
# maps that `pallas_supported` accepts; see `window_attention_core_pallas` for its gradient.
window_attention = make_pallas_primitive("window_attention", reference, window_attention_kernel)
