"""Pallas TPU kernel that finds the highest scores of each row in one pass over the row.

Shapes: R rows, V scores of a row, G groups of neighbours, N of the highest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.lazy_pallas import pl, pltpu
from florence_jax.ops.pallas_primitive import LANES, SUBLANES, VMEM_BUDGET_BYTES
from florence_jax.sharding.activations import batch_is_local

# Rows of more groups do not fit in VMEM eight at a time.
_MAX_GROUPS = 1024
_NOWHERE = jnp.iinfo(jnp.int32).max


def top_k_kernel_supported(scores: jax.Array, count: int) -> bool:
    """Whether `top_k_kernel` supports float[..., V] scores."""
    groups = -(-scores.shape[-1] // LANES)
    fits = count < groups <= _MAX_GROUPS and scores.dtype == jnp.float32
    return fits and batch_is_local(scores.shape[0])


def top_k_kernel(
    scores: jax.Array, *, count: int, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`top_k` of float32[..., V] as a Pallas kernel; `interpret` runs it on any backend, slowly."""
    vocab = scores.shape[-1]
    # XLA:TPU keeps beams outermost, as they would fill few sublanes of a register.
    batch_inside = jnp.moveaxis(scores, 0, -2)
    scores_RV = batch_inside.reshape(-1, vocab)
    total = len(scores_RV)
    padded = pl.cdiv(vocab, LANES) * LANES
    # Two of each block, as the next comes meanwhile.
    most = VMEM_BUDGET_BYTES // (2 * 4 * padded) // SUBLANES * SUBLANES
    rows = min(total, most)
    some = pl.BlockSpec((rows, count), lambda i: (i, 0))
    values, places = pl.pallas_call(
        functools.partial(_kernel, vocab=vocab),
        grid=(pl.cdiv(total, rows),),
        in_specs=[pl.BlockSpec((rows, padded), lambda i: (i, 0))],
        out_specs=[some, some],
        out_shape=[
            jax.ShapeDtypeStruct((total, count), scores.dtype),
            jax.ShapeDtypeStruct((total, count), jnp.int32),
        ],
        scratch_shapes=[pltpu.VMEM((rows, count * LANES), scores.dtype)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
        name="top_k",
    )(scores_RV)
    shape = *batch_inside.shape[:-1], count
    values, places = (jnp.moveaxis(found.reshape(shape), -2, 0) for found in (values, places))
    return values, places


def _kernel(
    scores_ref: Any, values_ref: Any, places_ref: Any, candidates_ref: Any, *, vocab: int
) -> None:
    """Search a few groups only; `top_k_two_stage` explains why these are enough."""
    rows, count = values_ref.shape
    groups = scores_ref.shape[1] // LANES
    lane = lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)

    def some_maxima(first: int) -> jax.Array:
        maxima = jnp.full((rows, LANES), -jnp.inf)
        for group in range(first, min(first + LANES, groups)):
            scores = scores_ref[:, group * LANES : (group + 1) * LANES]
            if (group + 1) * LANES > vocab:
                scores = jnp.where(group * LANES + lane < vocab, scores, -jnp.inf)
            maxima = jnp.where(lane == group - first, scores.max(-1, keepdims=True), maxima)
        return maxima

    maxima = jnp.concatenate([some_maxima(first) for first in range(0, groups, LANES)], axis=1)
    number = lax.broadcasted_iota(jnp.int32, maxima.shape, 1)
    number = jnp.where(number < groups, number, _NOWHERE)
    places = []
    for nth, (_, chosen) in enumerate(_highest(maxima, number, count)):
        # Of scores that are no numbers, as those of rows that fill the last step may be, none is
        # found: they too must be read from where there are some.
        chosen = jnp.minimum(chosen, groups - 1)
        own = slice(nth * LANES, (nth + 1) * LANES)
        for row in range(rows):
            group = pl.ds(pl.multiple_of(chosen[row, 0] * LANES, LANES), LANES)
            candidates_ref[row, own] = scores_ref[row, group]
        places.append(chosen * LANES + lane)
    place = jnp.concatenate(places, axis=1)
    candidates = jnp.where(place < vocab, candidates_ref[...], -jnp.inf)
    place = jnp.where(place < vocab, place, _NOWHERE)
    column = lax.broadcasted_iota(jnp.int32, (rows, count), 1)
    values = jnp.zeros((rows, count), candidates.dtype)
    found = jnp.zeros((rows, count), jnp.int32)
    for nth, (highest, where) in enumerate(_highest(candidates, place, count)):
        values = jnp.where(column == nth, highest, values)
        found = jnp.where(column == nth, jnp.minimum(where, vocab - 1), found)
    values_ref[...] = values
    places_ref[...] = found


def _highest(
    scores: jax.Array, places: jax.Array, count: int
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The highest scores of each row with their indices, in order; ties by index."""
    for _ in range(count):
        value = scores.max(-1, keepdims=True)
        place = jnp.where(scores == value, places, _NOWHERE).min(-1, keepdims=True)
        yield value, place
        scores = jnp.where(places == place, -jnp.inf, scores)
        places = jnp.where(places == place, _NOWHERE, places)
