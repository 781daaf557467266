"""What every decoding loop shares: the callback it is given, and how candidates are picked.

The loops have never heard of a model. They own the tokens and the beams; whoever calls them owns
the arithmetic, behind one callback.

Shape suffixes: B batch, K beams (or parallel samples), N candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# A pytree whose leaves all have leading axes [B, K, ...]. What is the same for all beams of a row
# (cross-attention keys and values) is closed over by the callback and is never in here.
Cache = Any

# (tokens int32[B, K], index int32[], cache) -> (logits [B, K, V], cache). `index` is the position
# of `tokens` in the decoder sequence: 0 for the start token.
StepFn = Callable[[jax.Array, jax.Array, Cache], tuple[jax.Array, Cache]]


def reorder_beams(cache: Cache, parents_BK: jax.Array) -> Cache:
    """Gives beam k of row b the cache of beam `parents_BK[b, k]`: leaves keep their shapes.

    The one place that moves cache memory between beams, so that a backend on which another form is
    faster needs a change here alone.
    """
    if parents_BK.shape[1] == 1:
        return cache
    return take_beams(cache, parents_BK)


def take_beams(tree: Any, indices_BN: jax.Array) -> Any:
    """Gathers along axis 1 of every [B, K, ...] leaf: [B, N, ...]."""

    def row(leaf: jax.Array, indices_N: jax.Array) -> jax.Array:
        return leaf.at[indices_N].get(mode="promise_in_bounds")

    return jax.tree.map(lambda leaf: jax.vmap(row)(leaf, indices_BN), tree)


def best(scores_BV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` highest of each row, best first: (values [B, count], indices int32[B, count]).

    Equal scores come lowest index first; torch leaves their order open.
    """
    # Without the barrier XLA:CPU loses the TopK pattern as soon as values and indices are sliced
    # differently downstream (`keep_top_k` does), and sorts the whole vocabulary: 150 times slower.
    return lax.optimization_barrier(lax.top_k(scores_BV, count))


def row_keys(rng: jax.Array | None, batch: int) -> jax.Array:
    """One random key per row, a function of the row's place alone: key[B].

    Splitting `rng` by the batch size would make a row's draw depend on how many neighbours it has.

    Raises:
      ValueError: there is no `rng`.
    """
    if rng is None:
        raise ValueError("do_sample=True needs rng, for example rng=jax.random.key(0)")
    return jax.vmap(lambda row: jax.random.fold_in(rng, row))(jnp.arange(batch))


def step_keys(keys_B: jax.Array, index: jax.Array) -> jax.Array:
    """The keys of one decoding step: key[B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys_B)
