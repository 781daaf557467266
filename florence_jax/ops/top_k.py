"""Top-k of each row, dispatched by platform.

XLA:TPU sorts whole rows for `lax.top_k`, and a vocabulary has 51,289 entries. Every form first
finds the few groups of neighbouring scores with the highest maxima and searches only those.

Shapes: R rows, V scores of a row, N of the highest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.pallas_primitive import LANES, make_pallas_primitive
from florence_jax.ops.top_k_pallas import top_k_kernel, top_k_kernel_supported
from florence_jax.sharding.activations import map_batch_shards

# Neighbours in a group, outside TPUs; on a TPU a group is `LANES` wide.
GROUP = 64
# For more results than this, sorting beats one maximum after the other on a TPU too.
MAX_PASSES = 16

Search = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]


def top_k(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` highest scores of each row, highest first; of equal scores the lowest index
    first.

    Args:
        scores: float[..., V].
        count: N.

    Returns:
        Values float[..., N] and indices int32[..., N].
    """
    if count > MAX_PASSES:
        return top_k_two_stage(scores, count, GROUP, _xla_top_k)
    on_tpu = functools.partial(top_k_tpu, count=count)
    if top_k_kernel_supported(scores, count):
        on_tpu = functools.partial(top_k_pallas, count=count)
    default = functools.partial(top_k_two_stage, count=count, group=GROUP, search=_xla_top_k)
    return lax.platform_dependent(scores, tpu=on_tpu, default=default)


def top_k_two_stage(
    scores: jax.Array, count: int, group: int, search: Search
) -> tuple[jax.Array, jax.Array]:
    """`top_k` by the maxima of groups of `group` neighbours, then `search` in the best groups."""
    groups = -(-scores.shape[-1] // group)
    if groups <= count:
        return search(scores, count)
    # Each of the highest scores lies in one of the `count` groups with the highest maxima, equal
    # maxima taken lowest group first: each group ahead of its own holds a score that precedes it.
    # One pass over the vocabulary finds these groups, and the rest searches little.
    missing = groups * group - scores.shape[-1]
    padding = [(0, 0)] * (scores.ndim - 1) + [(0, missing)]
    grouped = jnp.pad(scores, padding, constant_values=-jnp.inf)
    grouped = grouped.reshape(*scores.shape[:-1], groups, group)
    _, chosen = search(grouped.max(-1), count)
    # In the order of the vocabulary, so that equal scores keep theirs.
    chosen = jnp.sort(chosen, axis=-1)
    candidates = jnp.take_along_axis(
        grouped, chosen[..., None], axis=-2, mode="promise_in_bounds"
    ).reshape(*scores.shape[:-1], count * group)
    values, places = search(candidates, count)
    chosen = jnp.take_along_axis(chosen, places // group, axis=-1, mode="promise_in_bounds")
    return values, chosen * group + places % group


def top_k_tpu(scores: jax.Array, *, count: int) -> tuple[jax.Array, jax.Array]:
    """`top_k` in XLA operations that are fast on a TPU."""
    return top_k_two_stage(scores, count, LANES, top_k_iterative)


def top_k_iterative(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` as `count` maxima, one after the other."""
    size = scores.shape[-1]
    place = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    taken = jnp.zeros(scores.shape, jnp.bool_)
    values, places = [], []
    for _ in range(count):
        value = jnp.where(taken, -jnp.inf, scores).max(-1, keepdims=True)
        # If only -inf is left, the maximum alone would find indices that are taken already.
        found = jnp.where((scores == value) & ~taken, place, size - 1).min(-1, keepdims=True)
        taken |= place == found
        values.append(value)
        places.append(found)
    return jnp.concatenate(values, axis=-1), jnp.concatenate(places, axis=-1)


def _xla_top_k(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    # Without a barrier XLA:CPU loses the TopK pattern as soon as values and indices are sliced
    # differently downstream (top-k filtering does), and sorts everything: 150 times slower.
    # One barrier each: XLA:CPU fails at a barrier around both on several devices.
    values, indices = map_batch_shards(lambda rows: lax.top_k(rows, count), scores)
    return lax.optimization_barrier(values), lax.optimization_barrier(indices)


# `top_k_tpu` of float32, for shapes that `top_k_kernel_supported` accepts.
top_k_pallas = make_pallas_primitive("top_k", top_k_tpu, top_k_kernel)
