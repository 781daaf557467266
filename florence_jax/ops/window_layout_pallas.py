"""How the Pallas TPU kernels of window attention lay windows and heads out in registers.

Shapes: S tokens of a strip (a row of windows of the map), window after window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.lazy_pallas import pl, pltpu
from florence_jax.ops.pallas_primitive import LANES

# The published models' window side and head width, which the kernels are written for.
SIDE, HEAD_DIM = 12, 32
# How scores fill the lanes: a window's first 128 keys for each of the four heads in a block of
# channels, then the remaining keys of all four.
TOKENS, HEADS = SIDE * SIDE, LANES // HEAD_DIM
TAIL = TOKENS - LANES
KEYS = (HEADS + 1) * LANES
# Two rows of bfloat16 share a register's row, 16 a register.
PACKED, ROWS = 2, 16


def fitting_columns(width: int, dim: int, max_elements: int) -> int:
    """The number of columns in a strip: pairs of windows that divide the map, or 0.

    Args:
        width: of the map. dim: its channels.
        max_elements: the most that a row of the strip may hold.
    """
    pair = 2 * SIDE
    fitting = [
        columns
        for columns in range(pair, width + 1, pair)
        if width % columns == 0 and columns * dim <= max_elements
    ]
    return max(fitting, default=0)


@dataclass(frozen=True)
class Tiles:
    """How a map is divided: strips of windows, and groups of channels of whole heads.

    Attributes:
        grid: (images, rows of strips, strips of a row, groups).
        columns: of a strip. channels: of a group.
    """

    grid: tuple[int, int, int, int]
    columns: int
    channels: int

    @classmethod
    def of(cls, qkv_BHWD: jax.Array, max_channels: int, max_elements: int) -> Tiles:
        """
        Args:
            qkv_BHWD: queries, keys and values of the map.
            max_channels: the most of a group.
            max_elements: the most that a row of a strip may hold.
        """
        batch, height, width, dim = qkv_BHWD.shape
        blocks = dim // 3 // LANES
        fitting = (n for n in range(1, blocks + 1) if blocks % n == 0)
        channels = LANES * next(blocks // n for n in fitting if blocks // n * LANES <= max_channels)
        columns = fitting_columns(width, channels, max_elements)
        grid = (batch, height // SIDE, width // columns, dim // 3 // channels)
        return cls(grid, columns, channels)

    @property
    def groups(self) -> int:
        return self.grid[3]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a strip of the map."""
        return 1, SIDE, self.columns, self.channels

    @property
    def windows_shape(self) -> tuple[int, int, int]:
        """Of a strip, window after window, by blocks of channels."""
        return self.channels // LANES, SIDE * self.columns, LANES

    @property
    def of_channels(self) -> Any:
        """The strip of a map of C channels."""
        return pl.BlockSpec(self.shape, lambda b, i, j, c, *_: (b, i, j, c))

    @property
    def of_parts(self) -> list[Any]:
        """The strips of queries, keys and values, in one map of 3 C channels."""

        def strip(part: int) -> Any:
            first = part * self.groups
            return pl.BlockSpec(self.shape, lambda b, i, j, c, *_: (b, i, j, first + c))

        return [strip(part) for part in range(3)]

    def buffers(self, dtype: Any) -> list[Any]:
        """For moving strips; queries, keys and values; and the attention's result or gradient."""
        return [
            *[pltpu.VMEM((SIDE * self.columns // PACKED, self.channels), jnp.uint32)] * 2,
            pltpu.VMEM((3, *self.windows_shape), dtype),
            pltpu.VMEM(self.windows_shape, dtype),
        ]


def read_strip(strip_ref: Any, map_ref: Any, windows_ref: Any, unroll: bool) -> jax.Array:
    """The strip bfloat16[1, P, columns, C] as windows, bfloat16[S, C].

    Args:
        map_ref, windows_ref: uint32[S / 2, C] buffers.
        unroll: lay loops out flat, so that the units of the chip work at the same time; compiling
            the interpreted kernel takes several times as long then.
    """
    columns = strip_ref.shape[2]
    for line, rows in enumerate(_lines(columns)):
        map_ref[rows] = pltpu.bitcast(strip_ref[0, line], jnp.uint32)
    _move(map_ref, windows_ref, columns, unroll, back=False)
    return pltpu.bitcast(windows_ref[...], strip_ref.dtype)


def write_strip(
    x_SC: jax.Array, strip_ref: Any, map_ref: Any, windows_ref: Any, unroll: bool
) -> None:
    """Invert `read_strip`."""
    columns = strip_ref.shape[2]
    windows_ref[...] = pltpu.bitcast(x_SC, jnp.uint32)
    _move(map_ref, windows_ref, columns, unroll, back=True)
    for line, rows in enumerate(_lines(columns)):
        strip_ref[0, line] = pltpu.bitcast(map_ref[rows], strip_ref.dtype)


def _lines(columns: int) -> list[Any]:
    return [pl.ds(line * columns // PACKED, columns // PACKED) for line in range(SIDE)]


def _move(map_ref: Any, windows_ref: Any, columns: int, unroll: bool, *, back: bool) -> None:
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

    lax.fori_loop(0, columns // SIDE, window, None, unroll=unroll)


def tile_of(ref: Any, turn: jax.Array, *part: int) -> Any:
    """One window of one block of channels, in a buffer [*part, blocks, S, LANES].

    Args:
        turn: number of the window among those of all blocks.
    """
    windows = ref.shape[-2] // TOKENS
    block, window = lax.div(turn, windows), lax.rem(turn, windows)
    return ref.at[(*part, block, pl.ds(window * TOKENS, TOKENS))]


def lanes_of_heads() -> list[jax.Array]:
    """For each head of a block, bool[1, LANES]: which channels are its own."""
    lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return [lax.div(lane, HEAD_DIM) == head for head in range(HEADS)]


def heads_of_tail() -> jax.Array:
    """int32[1, LANES]: the head of each of the last scores; HEADS and more where there is none."""
    return lax.div(lax.broadcasted_iota(jnp.int32, (1, LANES), 1), TAIL)


def spread(rows: jax.Array) -> jax.Array:
    """Expand rows [TOKENS, LANES] -> [KEYS, LANES], for each head with zeros for the others."""
    packed = pltpu.bitcast(rows, jnp.uint32)
    copies = [jnp.where(own, packed, jnp.uint32(0)) for own in lanes_of_heads()]
    main = LANES // PACKED
    none = jnp.zeros(((LANES - HEADS * TAIL) // PACKED, LANES), jnp.uint32)
    parts = [copy[:main] for copy in copies] + [copy[main:] for copy in copies] + [none]
    return pltpu.bitcast(jnp.concatenate(parts), rows.dtype)


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """x y in float32."""
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def matmul_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    """x y^T in float32."""
    across = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, y, across, preferred_element_type=jnp.float32)
