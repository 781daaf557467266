"""Pallas TPU kernel of the depthwise convolution and its residual, over strips of rows.

XLA:TPU transposes the map for its own convolution and back. The kernel reads the map once and
writes it once, and is bound by that memory traffic.

Shapes: B images, H W grid, C channels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.depthwise_conv_xla import depthwise_conv_xla
from florence_jax.ops.lazy_pallas import pl, pltpu
from florence_jax.ops.pallas_primitive import LANES, make_pallas_primitive
from florence_jax.sharding.activations import batch_is_local

# A tile of fewer rows would read its neighbours' rows too often; a larger tile exceeds VMEM.
_MIN_ROWS, _MAX_TILE_ELEMENTS = 4, 24 * 192 * 128


def pallas_supported(x_BHWC: jax.Array) -> bool:
    """Whether `depthwise_conv_pallas` supports this map, bfloat16[B, H, W, C]."""
    fits = tile_rows(*x_BHWC.shape[1:]) > 0 and batch_is_local(x_BHWC.shape[0])
    return fits and x_BHWC.dtype == jnp.bfloat16


def tile_rows(height: int, width: int, dim: int) -> int:
    """The number of map rows in one tile of the kernel; 0 if no tile fits in VMEM."""
    fitting = [
        rows
        for rows in range(_MIN_ROWS, height + 1)
        if height % rows == 0 and rows * width * dim <= _MAX_TILE_ELEMENTS
    ]
    return max(fitting, default=0) if width % 8 == 0 and dim % LANES == 0 else 0


def depthwise_conv_kernel(
    x_BHWC: jax.Array, kernel: jax.Array, bias: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """The Pallas kernel; `interpret` runs it on any backend, slowly."""
    batch, height, width, dim = x_BHWC.shape
    rows = tile_rows(height, width, dim)
    strip = pl.BlockSpec((1, rows, width, dim), lambda b, i: (b, i, 0, 0))
    # The rows beside a strip; at the map's edges any row, as the kernel takes zeros there.
    one = (1, 1, width, dim)
    above = pl.BlockSpec(one, lambda b, i: (b, jnp.maximum(i * rows - 1, 0), 0, 0))
    below = pl.BlockSpec(one, lambda b, i: (b, jnp.minimum((i + 1) * rows, height - 1), 0, 0))
    weights = kernel.astype(jnp.float32).reshape(9, dim), bias.astype(jnp.float32)[None]
    whole = [pl.BlockSpec(leaf.shape, lambda b, i: (0, 0)) for leaf in weights]
    return pl.pallas_call(
        _kernel,
        grid=(batch, height // rows),
        in_specs=[above, strip, below, *whole],
        out_specs=strip,
        out_shape=jax.ShapeDtypeStruct(x_BHWC.shape, x_BHWC.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 2),
        interpret=interpret,
        name="depthwise_conv",
    )(x_BHWC, x_BHWC, x_BHWC, *weights)


def _kernel(
    above_ref: Any, x_ref: Any, below_ref: Any, taps_ref: Any, bias_ref: Any, out_ref: Any
) -> None:
    """Compute in float32, 128 channels of a row at a time."""
    rows, width, dim = x_ref.shape[1:]
    is_first, is_last = pl.program_id(1) == 0, pl.program_id(1) == pl.num_programs(1) - 1
    column = lax.broadcasted_iota(jnp.int32, (width, LANES), 0)

    for block in range(dim // LANES):
        lanes = slice(block * LANES, (block + 1) * LANES)
        taps = [[taps_ref[3 * row + col, lanes] for col in range(3)] for row in range(3)]

        def read(row: int, lanes: slice = lanes) -> jax.Array:
            if row < 0:
                return jnp.where(is_first, 0.0, above_ref[0, 0, :, lanes].astype(jnp.float32))
            if row == rows:
                return jnp.where(is_last, 0.0, below_ref[0, 0, :, lanes].astype(jnp.float32))
            return x_ref[0, row, :, lanes].astype(jnp.float32)

        for row in range(rows):
            neighbours = [read(row + step) for step in (-1, 0, 1)]
            # Each column of taps is summed where it lies: two sums are moved, not six products.
            left, centre, right = (
                neighbours[0] * taps[0][col]
                + neighbours[1] * taps[1][col]
                + neighbours[2] * taps[2][col]
                for col in range(3)
            )
            left = jnp.where(column == 0, 0.0, pltpu.roll(left, 1, 0))
            right = jnp.where(column == width - 1, 0.0, pltpu.roll(right, width - 1, 0))
            total = neighbours[1] + (centre + left + right + bias_ref[0, lanes])
            out_ref[0, row, :, lanes] = total.astype(out_ref.dtype)


# `depthwise_conv_xla` of bfloat16, rounded once.
depthwise_conv_pallas = make_pallas_primitive(
    "depthwise_conv", depthwise_conv_xla, depthwise_conv_kernel
)
