"""Pallas TPU kernels of window attention in training: its core, forward and backward.

Training keeps queries, keys and values, and recomputes the softmax in the backward kernel: scores
never reach the chip's memory, and the map is never moved into windows and back.

Shapes: B images, H W grid, C channels, D = 3 C, S tokens of a strip, window after window.
Source: the softmax's backward as in FlashAttention, https://arxiv.org/abs/2205.14135, appendix B.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops import window_attention_pallas
from florence_jax.ops.lazy_pallas import pl, pltpu
from florence_jax.ops.pallas_primitive import LANES, make_pallas_primitive
from florence_jax.ops.window_attention import (
    window_attention_reference,
    window_partition,
    window_reverse,
)
from florence_jax.ops.window_layout_pallas import (
    HEAD_DIM,
    HEADS,
    KEYS,
    ROWS,
    SIDE,
    TAIL,
    TOKENS,
    Tiles,
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

# Largest group of channels, and row of a strip, that fit in VMEM with all gradients. Heads do not
# depend on each other: wider maps are taken group by group.
_MAX_CHANNELS, _MAX_STRIP_ELEMENTS_PER_ROW = 512, 96 * 128
# The softmax's exponentials are powers of two.
_SCALE = HEAD_DIM**-0.5 * math.log2(math.e)


def pallas_supported(x_BHWC: jax.Array, *, side: int, num_heads: int) -> bool:
    """Whether `window_attention_core` supports the projections of this map, bfloat16[B, H, W, C].

    Args:
        x_BHWC: the map, or its shape and dtype.
    """
    height, width, dim = x_BHWC.shape[1:]
    published = side == SIDE and dim == num_heads * HEAD_DIM and x_BHWC.dtype == jnp.bfloat16
    whole = height % SIDE == 0 and width % (2 * SIDE) == 0 and dim % LANES == 0
    return published and whole and batch_is_local(x_BHWC.shape[0])


def reference(qkv_BHWD: jax.Array) -> jax.Array:
    """The core without a kernel: float[B, H, W, 3C] -> float[B, H, W, C]."""
    *grid, dim = qkv_BHWD.shape
    qkv_BSD = window_partition(qkv_BHWD, SIDE)
    y_BSNE = window_attention_reference(qkv_BSD.reshape(*qkv_BSD.shape[:2], 3, -1, HEAD_DIM))
    y_BSC = y_BSNE.reshape(*qkv_BSD.shape[:2], dim // 3)
    return window_reverse(y_BSC, (*grid, dim // 3), SIDE)


def reference_backward(qkv_BHWD: jax.Array, g_BHWC: jax.Array) -> jax.Array:
    """The gradient of `reference` without a kernel, float[B, H, W, 3C]."""
    return jax.vjp(reference, qkv_BHWD)[1](g_BHWC)[0]


def forward_kernel(qkv_BHWD: jax.Array, *, interpret: bool = False) -> jax.Array:
    """The Pallas kernel of the core; `interpret` runs it on any backend, slowly."""
    tiles = Tiles.of(qkv_BHWD, _MAX_CHANNELS, _MAX_STRIP_ELEMENTS_PER_ROW)
    *grid, dim = qkv_BHWD.shape
    return pl.pallas_call(
        functools.partial(_forward, unroll=not interpret),
        grid=tiles.grid,
        in_specs=tiles.of_parts,
        out_specs=tiles.of_channels,
        out_shape=jax.ShapeDtypeStruct((*grid, dim // 3), qkv_BHWD.dtype),
        scratch_shapes=[
            *tiles.buffers(qkv_BHWD.dtype),
            *[pltpu.VMEM((TOKENS, KEYS), jnp.float32)] * 2,
            *[pltpu.VMEM((TOKENS, KEYS), qkv_BHWD.dtype)] * 2,
            *[pltpu.VMEM((TOKENS, LANES), jnp.float32)] * 2,
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 4),
        interpret=interpret,
        name="window_attention_core",
    )(*[qkv_BHWD] * 3)


def backward_kernel(
    qkv_BHWD: jax.Array, g_BHWC: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """The Pallas kernel of the core's gradient with respect to `qkv_BHWD`."""
    tiles = Tiles.of(qkv_BHWD, _MAX_CHANNELS, _MAX_STRIP_ELEMENTS_PER_ROW)
    dtype = qkv_BHWD.dtype
    return pl.pallas_call(
        functools.partial(_backward, unroll=not interpret),
        # The last axis writes the gradients of queries, keys and values, one after the other.
        grid=(*tiles.grid, 3),
        in_specs=[*tiles.of_parts, tiles.of_channels],
        out_specs=pl.BlockSpec(
            tiles.shape, lambda b, i, j, c, part: (b, i, j, part * tiles.groups + c)
        ),
        out_shape=jax.ShapeDtypeStruct(qkv_BHWD.shape, dtype),
        scratch_shapes=[
            *tiles.buffers(dtype),
            pltpu.VMEM((3, *tiles.windows_shape), dtype),
            *[pltpu.VMEM((TOKENS, KEYS), jnp.float32)] * 4,
            *[pltpu.VMEM((TOKENS, KEYS), dtype)] * 4,
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 4 + ("arbitrary",)
        ),
        interpret=interpret,
        name="window_attention_core_backward",
    )(*[qkv_BHWD] * 3, g_BHWC)


def _forward(
    q_strip: Any,
    k_strip: Any,
    v_strip: Any,
    out_strip: Any,
    map_ref: Any,
    windows_ref: Any,
    qkv_ref: Any,
    mixed_ref: Any,
    *buffers: Any,
    unroll: bool,
) -> None:
    move = functools.partial(_read, map_ref=map_ref, windows_ref=windows_ref, unroll=unroll)
    move(q_strip, qkv_ref.at[0], scale=_SCALE)
    move(k_strip, qkv_ref.at[1])
    move(v_strip, qkv_ref.at[2])
    window_attention_pallas.attend(qkv_ref, mixed_ref, *buffers, unroll=unroll)
    write_strip(_joined(mixed_ref), out_strip, map_ref, windows_ref, unroll)


def _backward(
    q_strip: Any,
    k_strip: Any,
    v_strip: Any,
    g_strip: Any,
    out_strip: Any,
    map_ref: Any,
    windows_ref: Any,
    qkv_ref: Any,
    g_ref: Any,
    d_ref: Any,
    *buffers: Any,
    unroll: bool,
) -> None:
    part = pl.program_id(4)

    @pl.when(part == 0)
    def _() -> None:
        move = functools.partial(_read, map_ref=map_ref, windows_ref=windows_ref, unroll=unroll)
        move(q_strip, qkv_ref.at[0], scale=_SCALE)
        move(k_strip, qkv_ref.at[1])
        move(v_strip, qkv_ref.at[2])
        move(g_strip, g_ref)
        _attend_backward(qkv_ref, g_ref, d_ref, *buffers, unroll=unroll)

    write_strip(_joined(d_ref.at[part]), out_strip, map_ref, windows_ref, unroll)


def _read(
    strip: Any, out_ref: Any, *, map_ref: Any, windows_ref: Any, unroll: bool, scale: float = 1.0
) -> None:
    """Put a strip of the map into windows, by blocks of channels."""
    x_SC = read_strip(strip, map_ref, windows_ref, unroll)
    if scale != 1.0:
        x_SC = (x_SC.astype(jnp.float32) * scale).astype(x_SC.dtype)
    for block in range(out_ref.shape[0]):
        out_ref[block] = x_SC[:, block * LANES : (block + 1) * LANES]


def _joined(ref: Any) -> jax.Array:
    """Blocks of channels side by side, [S, C]."""
    return jnp.concatenate([ref[block] for block in range(ref.shape[0])], axis=-1)


def _attend_backward(qkv_ref: Any, g_ref: Any, d_ref: Any, *buffers: Any, unroll: bool) -> None:
    """The gradient of `attend`, with four heads of one window at a time.

    As in `attend`, the matrix unit works for one window while the vector unit works for another.
    """
    scores, d_weights, weights, d_scores = (buffers[2 * n : 2 * n + 2] for n in range(4))
    count = qkv_ref.shape[1] * qkv_ref.shape[2] // TOKENS

    def score(turn: jax.Array, slot: int) -> None:
        keys = spread(tile_of(qkv_ref, turn, 1)[...])
        scores[slot][...] = matmul_transposed(tile_of(qkv_ref, turn, 0)[...], keys)
        values = spread(_centred(tile_of(qkv_ref, turn, 2)[...]))
        d_weights[slot][...] = matmul_transposed(tile_of(g_ref, turn)[...], values)

    def differentiate(slot: int) -> None:
        _softmax_backward(scores[slot], d_weights[slot], weights[slot], d_scores[slot], unroll)

    def mix(turn: jax.Array, slot: int) -> None:
        query, slope = tile_of(qkv_ref, turn, 0)[...], d_scores[slot][...]
        keys = spread(_centred(tile_of(qkv_ref, turn, 1)[...]))
        d_query = matmul(slope, keys) * HEAD_DIM**-0.5
        # The queries carry log2(e) beside the scale.
        d_key = _gather(_matmul_first_transposed(slope, query)) * math.log(2.0)
        g = tile_of(g_ref, turn)[...]
        d_value = _gather(_matmul_first_transposed(weights[slot][...], g))
        for part, value in enumerate((d_query, d_key, d_value)):
            tile_of(d_ref, turn, part)[...] = value.astype(d_ref.dtype)

    def pair(number: jax.Array, _: None) -> None:
        turn = 2 * number
        score(turn + 1, 1)
        # Before the first pair there is nothing to mix: what this writes is written over below.
        mix(jnp.maximum(turn - 1, 0), 1)
        differentiate(0)
        score(jnp.minimum(turn + 2, count - 1), 0)
        mix(turn, 0)
        differentiate(1)

    score(jnp.int32(0), 0)
    lax.fori_loop(0, count // 2, pair, None, unroll=unroll)
    mix(jnp.int32(count - 1), 1)


def _softmax_backward(
    scores: Any, d_weights: Any, weights: Any, d_scores: Any, unroll: bool
) -> None:
    """Write the softmax of `scores` into `weights`, and the gradient of the scores.

    All are [TOKENS, KEYS], laid out as `spread` keys make them.
    """
    tail_of = heads_of_tail()
    of_tail = pl.ds(HEADS * LANES, LANES)

    def by_head(values: list[jax.Array], rest: jax.Array) -> jax.Array:
        """For each lane of the tail its head's value."""
        lanes = jnp.broadcast_to(rest, (ROWS, LANES))
        for head, value in enumerate(values):
            lanes = jnp.where(tail_of == head, value, lanes)
        return lanes

    def rows_of(number: jax.Array, _: None) -> None:
        rows = pl.ds(number * ROWS, ROWS)
        main = [scores[rows, pl.ds(head * LANES, LANES)] for head in range(HEADS)]
        tail = scores[rows, of_tail]
        highest = [
            jnp.maximum(own, jnp.where(tail_of == head, tail, -jnp.inf)).max(-1, keepdims=True)
            for head, own in enumerate(main)
        ]
        zero = jnp.zeros((), jnp.float32)
        tail = jnp.where(tail_of < HEADS, jnp.exp2(tail - by_head(highest, zero)), 0.0)
        main = [jnp.exp2(own - top) for own, top in zip(main, highest, strict=True)]
        totals = [
            (own + jnp.where(tail_of == head, tail, 0.0)).sum(-1, keepdims=True)
            for head, own in enumerate(main)
        ]
        inverse = [1.0 / total for total in totals]
        main = [own * scale for own, scale in zip(main, inverse, strict=True)]
        tail = tail * by_head(inverse, zero)
        slopes = [d_weights[rows, pl.ds(head * LANES, LANES)] for head in range(HEADS)]
        tail_slope = d_weights[rows, of_tail]
        means = [
            (own * slope + jnp.where(tail_of == head, tail * tail_slope, 0.0)).sum(
                -1, keepdims=True
            )
            for head, (own, slope) in enumerate(zip(main, slopes, strict=True))
        ]
        for head, (own, slope, mean) in enumerate(zip(main, slopes, means, strict=True)):
            lanes = pl.ds(head * LANES, LANES)
            weights[rows, lanes] = own.astype(weights.dtype)
            d_scores[rows, lanes] = (own * (slope - mean)).astype(d_scores.dtype)
        weights[rows, of_tail] = tail.astype(weights.dtype)
        slope = tail * (tail_slope - by_head(means, zero))
        d_scores[rows, of_tail] = slope.astype(d_scores.dtype)

    lax.fori_loop(0, TOKENS // ROWS, rows_of, None, unroll=unroll)


def _centred(rows: jax.Array) -> jax.Array:
    """Subtract the mean over keys, which changes no gradient and would only add rounding errors."""
    wide = rows.astype(jnp.float32)
    return (wide - wide.mean(0, keepdims=True)).astype(rows.dtype)


def _gather(wide: jax.Array) -> jax.Array:
    """Transpose `spread`: float32[KEYS, LANES] -> float32[TOKENS, LANES]."""
    of_head, main, tail = lanes_of_heads(), wide[:LANES], wide[HEADS * LANES :][:TAIL]
    for head in range(1, HEADS):
        start = HEADS * LANES + head * TAIL
        main = jnp.where(of_head[head], wide[head * LANES : (head + 1) * LANES], main)
        tail = jnp.where(of_head[head], wide[start : start + TAIL], tail)
    return jnp.concatenate([main, tail])


def _matmul_first_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    down = (((0,), (0,)), ((), ()))
    return lax.dot_general(x, y, down, preferred_element_type=jnp.float32)


_core = make_pallas_primitive("window_attention_core", reference, forward_kernel)
_core_backward = make_pallas_primitive(
    "window_attention_core_backward", reference_backward, backward_kernel, batched_args=2
)


@jax.custom_vjp
def window_attention_core(qkv_BHWD: jax.Array) -> jax.Array:
    """Window attention of projections: bfloat16[B, H, W, 3C] -> bfloat16[B, H, W, C].

    For maps that `pallas_supported` accepts. On other platforms than TPU it is `reference`.
    """
    return _core(qkv_BHWD)


window_attention_core.defvjp(
    lambda qkv_BHWD: (_core(qkv_BHWD), qkv_BHWD),
    lambda qkv_BHWD, g_BHWC: (_core_backward(qkv_BHWD, g_BHWC),),
)


@jax.custom_vjp
def window_attention(x_BHWC: jax.Array, *weights: jax.Array) -> jax.Array:
    """Window attention with its projections; one kernel, or where it is differentiated the core's.

    Args:
        x_BHWC: bfloat16[B, H, W, C], a map that both `pallas_supported` accept.
        weights: kernel and bias of the QKV projection, and of the output projection.
    """
    return window_attention_pallas.window_attention(x_BHWC, *weights)


def _projected(
    x_BHWC: jax.Array,
    qkv_kernel: jax.Array,
    qkv_bias: jax.Array,
    proj_kernel: jax.Array,
    proj_bias: jax.Array,
) -> jax.Array:
    return window_attention_core(x_BHWC @ qkv_kernel + qkv_bias) @ proj_kernel + proj_bias


window_attention.defvjp(
    lambda *arguments: jax.vjp(_projected, *arguments), lambda backward, g_BHWC: backward(g_BHWC)
)
