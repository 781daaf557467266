"""Pallas TPU kernel of window attention with its projections, a row of windows at a time.

XLA:TPU writes the scores of all windows to memory and reads them again, 1.4 GB a block for eight
images in the first stage, and moves the map into windows and back. Here both stay on the chip.

Shapes: B images, H W grid, C channels, M blocks of 128 channels, S tokens of a strip, window after
        window.
"""

from __future__ import annotations

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
from florence_jax.sharding.activations import batch_is_local

# The published models' window side and head width, which the kernel is written for.
SIDE, HEAD_DIM = 12, 32
# Largest widths whose weights and strip still fit in VMEM.
_MAX_CHANNELS, _MAX_STRIP_ELEMENTS_PER_ROW = 512, 192 * 128
# How scores fill the lanes: a window's first 128 keys for each of the four heads in a block of
# channels, then the remaining keys of all four.
TOKENS, HEADS = SIDE * SIDE, LANES // HEAD_DIM
TAIL = TOKENS - LANES
KEYS = (HEADS + 1) * LANES
# Two rows of bfloat16 share a register's row, 16 a register.
PACKED, ROWS = 2, 16


def pallas_supported(
    x_BHWC: jax.Array | jax.ShapeDtypeStruct, *, side: int, num_heads: int
) -> bool:
    """Whether `window_attention` supports this map, bfloat16[B, H, W, C]."""
    height, width, dim = x_BHWC.shape[1:]
    published = side == SIDE and dim == num_heads * HEAD_DIM and x_BHWC.dtype == jnp.bfloat16
    whole = height % SIDE == 0 and dim % LANES == 0 and tile_width(width, dim) > 0
    return published and whole and dim <= _MAX_CHANNELS and batch_is_local(x_BHWC.shape[0])


def tile_width(width: int, dim: int) -> int:
    """The number of columns in a tile: as many pairs of windows as fit in VMEM, or 0."""
    pair = 2 * SIDE
    fitting = [
        columns
        for columns in range(pair, width + 1, pair)
        if width % columns == 0 and columns * dim <= _MAX_STRIP_ELEMENTS_PER_ROW
    ]
    return max(fitting, default=0)


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
        _kernel,
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
) -> None:
    columns, dim = x_ref.shape[2:]
    dtype = x_ref.dtype
    lines = [pl.ds(line * columns // PACKED, columns // PACKED) for line in range(SIDE)]
    for number, line in enumerate(lines):
        map_ref[line] = pltpu.bitcast(x_ref[0, number], jnp.uint32)
    _move(map_ref, windows_ref, columns, back=False)
    x_SC = pltpu.bitcast(windows_ref[...], dtype)
    for part in range(3):
        own = slice(part * dim, (part + 1) * dim)
        y_SC = _product(x_SC, qkv_kernel_ref[:, own]) + qkv_bias_ref[:, own]
        if part == 0:
            # The softmax's exponentials are powers of two.
            y_SC = y_SC * (HEAD_DIM**-0.5 * math.log2(math.e))
        for block in range(dim // LANES):
            lanes = slice(block * LANES, (block + 1) * LANES)
            qkv_ref[part, block] = y_SC[:, lanes].astype(dtype)
    _attend(qkv_ref, mixed_ref, *buffers)
    mixed_SC = jnp.concatenate([mixed_ref[block] for block in range(dim // LANES)], axis=-1)
    y_SC = _product(mixed_SC, proj_kernel_ref[...]) + proj_bias_ref[...]
    windows_ref[...] = pltpu.bitcast(y_SC.astype(dtype), jnp.uint32)
    _move(map_ref, windows_ref, columns, back=True)
    for number, line in enumerate(lines):
        out_ref[0, number] = pltpu.bitcast(map_ref[line], dtype)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _move(map_ref: Any, windows_ref: Any, columns: int, *, back: bool) -> None:
    """Copy rows of the map, two in one, into windows; or back."""
    piece = SIDE // PACKED

    def window(number: jax.Array, _: None) -> None:
        for line in range(SIDE):
            on_map = pl.ds(line * (columns // PACKED) + number * piece, piece)
            in_window = pl.ds(number * (TOKENS // PACKED) + line * piece, piece)
            if back:
                map_ref[on_map] = windows_ref[in_window]
            else:
                windows_ref[in_window] = map_ref[on_map]

    lax.fori_loop(0, columns // SIDE, window, None, unroll=True)


def _attend(qkv_ref: Any, mixed_ref: Any, *buffers: Any) -> None:
    """Attend with four heads of one window at a time, in float32 except for the products.

    While the vector unit weighs one window's keys, the matrix unit makes the next one's scores and
    mixes the last one's values: neither waits, so long as the loop is laid out flat.
    """
    scores, weights, totals = buffers[:2], buffers[2:4], buffers[4:]
    lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    of_head = [lax.div(lane, HEAD_DIM) == head for head in range(HEADS)]
    tail_of = lax.div(lane, TAIL)
    windows = qkv_ref.shape[2] // TOKENS
    count = qkv_ref.shape[1] * windows

    def place(ref: Any, turn: jax.Array, *part: int) -> Any:
        block, window = lax.div(turn, windows), lax.rem(turn, windows)
        return ref.at[(*part, block, pl.ds(window * TOKENS, TOKENS))]

    def spread(rows: jax.Array) -> jax.Array:
        """Expand rows [TOKENS, LANES] -> [KEYS, LANES], for each head with zeros for the others."""
        packed = pltpu.bitcast(rows, jnp.uint32)
        copies = [jnp.where(own, packed, jnp.uint32(0)) for own in of_head]
        main = LANES // PACKED
        none = jnp.zeros(((LANES - HEADS * TAIL) // PACKED, LANES), jnp.uint32)
        parts = [copy[:main] for copy in copies] + [copy[main:] for copy in copies] + [none]
        return pltpu.bitcast(jnp.concatenate(parts), rows.dtype)

    def score(turn: jax.Array, slot: int) -> None:
        query, keys = place(qkv_ref, turn, 0)[...], spread(place(qkv_ref, turn, 1)[...])
        across = (((1,), (1,)), ((), ()))
        scores[slot][...] = lax.dot_general(query, keys, across, preferred_element_type=jnp.float32)

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

        lax.fori_loop(0, TOKENS // ROWS, rows_of, None, unroll=True)

    def mix(turn: jax.Array, slot: int) -> None:
        mixed = _product(weights[slot][...], spread(place(qkv_ref, turn, 2)[...]))
        place(mixed_ref, turn)[...] = (mixed * totals[slot][...]).astype(mixed_ref.dtype)

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
    lax.fori_loop(0, count // 2, pair, None, unroll=True)
    mix(jnp.int32(count - 1), 1)


# QKV projection, window attention and output projection of a whole map, bfloat16[B, H, W, C], for
# maps that `pallas_supported` accepts.
window_attention = make_pallas_primitive("window_attention", reference, window_attention_kernel)
