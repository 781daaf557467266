"""A map cut into square windows, put together again, or cut into strips of windows for a kernel.

Shapes: B images, H W grid, C channels, P window side, S = P * P tokens of a window.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from florence_jax.ops.davit_attention_tpu import LANES
from florence_jax.sharding.activations import rows_are_local

# The published models' windows and heads, which the kernel is written for.
SIDE, HEAD_DIM = 12, 32
# What fits, with its weights, into the 16 MiB that every generation of TPUs has on the chip.
_MOST_CHANNELS, _MOST_OF_A_ROW = 512, 192 * 128


def into_windows(x_BHWC: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C], H and W multiples of P -> [B * H/P * W/P, S, C]."""
    batch, height, width, dim = x_BHWC.shape
    x = x_BHWC.reshape(batch, height // side, side, width // side, side, dim)
    return x.swapaxes(2, 3).reshape(-1, side * side, dim)


def from_windows(y_BSC: jax.Array, shape: tuple[int, ...], side: int) -> jax.Array:
    """The map [B, H, W, C] of that shape again."""
    batch, height, width, dim = shape
    y = y_BSC.reshape(batch, height // side, width // side, side, side, dim)
    return y.swapaxes(2, 3).reshape(shape)


def strips_fit(x_BHWC: jax.Array | jax.ShapeDtypeStruct, *, side: int, num_heads: int) -> bool:
    """Whether `window_strips` can take a map."""
    height, width, dim = x_BHWC.shape[1:]
    published = side == SIDE and dim == num_heads * HEAD_DIM and x_BHWC.dtype == jnp.bfloat16
    whole = height % SIDE == 0 and dim % LANES == 0 and strip_columns(width, dim) > 0
    return published and whole and dim <= _MOST_CHANNELS and rows_are_local(x_BHWC.shape[0])


def strip_columns(width: int, dim: int) -> int:
    """Columns of a strip: pairs of windows, as many as there is room for; 0 if they do not fit."""
    pair = 2 * SIDE
    fitting = [
        columns
        for columns in range(pair, width + 1, pair)
        if width % columns == 0 and columns * dim <= _MOST_OF_A_ROW
    ]
    return max(fitting, default=0)
