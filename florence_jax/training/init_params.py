"""First weights of a small model that trains from scratch.

The reference draws kernels from N(0, 0.02), which is made for a width of 768 and for weights that a
checkpoint replaces. A narrow model that starts so learns its targets' frequencies first and, in
doing so, turns its faint image tokens into a constant, which it does not come back from (seen at a
width of 192: after 1,000 steps they differed by 2 % between pictures). Three things are drawn anew:

- Kernels keep the variance of what passes through them, N(0, 1 / fan-in), but those that end the
  image encoder's N branches have N times less: the sum of all branches weighs as much as what
  entered the first. Depthwise kernels stay small. Drawn like the others, 24 of them in a row had
  spread each cell over its neighbours, and colours were learnt three times as slowly.
- Location tokens, the image encoder's row and column positions and the text encoder's positions of
  image tokens start as the same waves over the picture's side, half a period to 100 long. Drawn
  independently, a thousand location tokens have to learn one by one that `<loc_500>` lies beside
  `<loc_501>`; now what is learnt of one place holds, less and less, for those around it.
- Keys of the text encoder and decoder start as their queries: like attends to like
  (https://arxiv.org/abs/2305.09828), a location token to the cells of its row and column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from florence_jax.model.bart import POSITION_OFFSET
from florence_jax.model.layers import INIT_STD
from florence_jax.training.state import Flat

_TABLE = "shared/embedding"
_AXES = ("projector/column_positions", "projector/row_positions")
_SEQUENCE = "encoder/positions"
_KEY = "/k_proj/"
_BRANCH = re.compile(r"vision_tower/.*(attn/proj|/fc2)/kernel")


def scratch_parameters(
    params: Flat, location_ids: Sequence[int], grid: tuple[int, int], key: jax.Array
) -> Flat:
    """The reference's random parameters with those drawn anew that a small model cannot start from.

    Args:
        params: by path.
        location_ids: of `<loc_0>` to `<loc_999>`.
        grid: (rows, columns) of the image encoder's output at the size that is trained at.
        key: of the kernels.
    """
    drawn = _kernels(params, key)
    alike = {path: drawn[path.replace("/k_proj/", "/q_proj/")] for path in drawn if _KEY in path}
    return {**params, **drawn, **alike, **_places(params, location_ids, grid)}


def _kernels(params: Flat, key: jax.Array) -> Flat:
    paths = sorted(path for path in params if path.endswith("/kernel"))
    branches = sum(1 for path in paths if _BRANCH.fullmatch(path))
    drawn = {}
    for number, path in enumerate(paths):
        shape = params[path].shape
        if len(shape) == 4 and shape[2] == 1:
            continue
        # Of a convolution too, all axes but the last lead to an output.
        variance = 1 / np.prod(shape[:-1])
        if _BRANCH.fullmatch(path):
            variance /= branches
        normal = jax.random.normal(jax.random.fold_in(key, number), shape)
        drawn[path] = normal * np.sqrt(variance)
    return drawn


def _places(params: Flat, location_ids: Sequence[int], grid: tuple[int, int]) -> Flat:
    table = params[_TABLE]
    count, dim = len(location_ids), table.shape[1]
    # Once for x and once for y: a location token does not say which of them it is.
    waves = _waves((np.arange(count) + 0.5) / count, dim // 2)
    # Waves have a mean square of 1/2.
    rows = np.sqrt(2) * INIT_STD * np.concatenate([waves, waves, waves[:, : dim % 2]], axis=1)
    ordered = {_TABLE: table.at[jnp.asarray(location_ids)].set(rows)}
    for path, cells in zip(_AXES, reversed(grid), strict=True):
        positions, width = params[path].shape
        places = (np.arange(positions) + 0.5) / cells
        # The positions' own scale is that of a standard normal.
        ordered[path] = jnp.asarray(np.sqrt(2) * _waves(places, width), jnp.float32)
    columns, lines = (
        np.sqrt(2) * _waves((np.arange(cells) + 0.5) / cells, dim // 2) for cells in reversed(grid)
    )
    cells = [[*x, *y, *x[: dim % 2]] for y in lines for x in columns]
    # Behind BART's two unused rows and the mean of all cells.
    first = POSITION_OFFSET + 1
    ordered[_SEQUENCE] = params[_SEQUENCE].at[first : first + len(cells)].set(jnp.asarray(cells))
    return ordered


def _waves(places: np.ndarray, dim: int) -> np.ndarray:
    """float64[N, dim] of places in 0..1: sines, then cosines, of periods in geometric order."""
    periods = np.geomspace(0.5, 100.0, (dim + 1) // 2)
    angles = 2 * np.pi * places[:, None] * periods
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :dim]
