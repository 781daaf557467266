"""What every decoding loop shares: the callback it is given, and how candidates are picked.

The loops have never heard of a model. They own the tokens and the beams; whoever calls them owns
the arithmetic, behind one callback.

Shape suffixes: B batch, K beams (or parallel samples), N candidates, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.pallas_primitive import LANES, tpu_operation
from florence_jax.sharding.activations import by_rows, rows_are_local


class _Counted(Protocol):
    @property
    def index(self) -> jax.Array: ...


# Neighbouring tokens whose maximum `best` looks at first; on a TPU they are LANES.
GROUP = 64
# Beyond so many, one maximum after the other takes longer than sorting on a TPU too.
MOST_PASSES = 16
# Rows of more groups do not fit, eight at a time, what a TPU kernel has of memory.
MOST_GROUPS = 1024

Search = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]

State = TypeVar("State", bound=_Counted)
Result = TypeVar("Result")


class Cache(Protocol):
    """What the model remembers of each beam's tokens: a pytree that only its owner looks into.

    What is the same for all beams of a row (cross-attention keys and values) is closed over by the
    callback and is never in here.
    """

    def reorder(self, parents_BK: jax.Array) -> Self:
        """Gives beam k of row b the memory of beam `parents_BK[b, k]`."""
        ...

    def grow(self, tokens: int) -> Self:
        """The same with room for `tokens` tokens, what it holds kept."""
        ...


# (tokens int32[B, K], index int32[], cache) -> (logits [B, K, V], cache). `index` is the position
# of `tokens` in the decoder sequence: 0 for the start token.
StepFn = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def take_beams(tree: Any, indices_BN: jax.Array) -> Any:
    """Gathers along axis 1 of every [B, K, ...] leaf: [B, N, ...]."""

    def row(leaf: jax.Array, indices_N: jax.Array) -> jax.Array:
        return leaf.at[indices_N].get(mode="promise_in_bounds")

    return jax.tree.map(lambda leaf: jax.vmap(row)(leaf, indices_BN), tree)


def best(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` highest of each row, best first: values and int32 indices, both [..., count].

    Equal scores come lowest index first; torch leaves their order open.
    """
    if count > MOST_PASSES:
        return best_of_groups(scores, count, GROUP, _top_k)
    on_tpu = functools.partial(best_on_tpu, count=count)
    groups = -(-scores.shape[-1] // LANES)
    fits = count < groups <= MOST_GROUPS and scores.dtype == jnp.float32
    if fits and rows_are_local(scores.shape[0]):
        on_tpu = functools.partial(best_by_kernel, count=count)
    return lax.platform_dependent(
        scores,
        tpu=on_tpu,
        default=functools.partial(best_of_groups, count=count, group=GROUP, search=_top_k),
    )


def best_of_groups(
    scores: jax.Array, count: int, group: int, search: Search
) -> tuple[jax.Array, jax.Array]:
    """`best`, looking first at the maxima of so many neighbours, and with a search for the rest."""
    groups = -(-scores.shape[-1] // group)
    if groups <= count:
        return search(scores, count)
    # A score among the best lies in one of the `count` groups of neighbours with the best maxima,
    # equal maxima taken lowest group first: each group ahead of its own holds a score that comes
    # before it. One pass over the vocabulary finds these groups, and what is searched is small.
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


def best_on_tpu(scores: jax.Array, *, count: int) -> tuple[jax.Array, jax.Array]:
    """`best` in plain operations of XLA:TPU."""
    return best_of_groups(scores, count, LANES, top_by_passes)


def _top_kernel(scores: jax.Array, *, count: int) -> tuple[jax.Array, jax.Array]:
    # Only where it is compiled: Pallas takes a quarter of a second to import.
    from florence_jax.ops.top_k_pallas import top_kernel

    return top_kernel(scores, count=count)


best_by_kernel = tpu_operation("top", best_on_tpu, _top_kernel)


def _top_k(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    # Without the barrier XLA:CPU loses the TopK pattern as soon as values and indices are sliced
    # differently downstream (`keep_top_k` does), and sorts everything: 150 times slower.
    # One for each: XLA:CPU fails at a barrier around both on several devices.
    values, indices = by_rows(lambda rows: lax.top_k(rows, count), scores)
    return lax.optimization_barrier(values), lax.optimization_barrier(indices)


def top_by_passes(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` for XLA:TPU, which sorts whole rows for it: one maximum after the other."""
    size = scores.shape[-1]
    place = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    taken = jnp.zeros(scores.shape, jnp.bool_)
    values, places = [], []
    for _ in range(count):
        value = jnp.where(taken, -jnp.inf, scores).max(-1, keepdims=True)
        # Where only -inf is left, the maximum alone would find places that are taken already.
        found = jnp.where((scores == value) & ~taken, place, size - 1).min(-1, keepdims=True)
        taken |= place == found
        values.append(value)
        places.append(found)
    return jnp.concatenate(values, axis=-1), jnp.concatenate(places, axis=-1)


def loop_through_buffers(
    state: State,
    buffers: tuple[int, ...],
    *,
    unfinished: Callable[[State], jax.Array],
    advance: Callable[[State], State],
    grow: Callable[[State, int], State],
    result: Callable[[State], Result],
) -> Result:
    """One `while_loop` per buffer size, each entered only by a search that outgrew the one before.

    Args:
      state: has an `index`, the number of tokens so far, and room for `buffers[0]` of them.
      buffers: the sizes to grow through.
      unfinished: bool[]: is there more to do?
      advance: adds a token.
      grow: the state with room for so many tokens.
      result: what to return of the last state; of one shape, whatever the state's buffers are.
    """
    here, rest = buffers[0], buffers[1:]
    state = lax.while_loop(lambda state: (state.index < here) & unfinished(state), advance, state)
    if not rest:
        return result(state)

    def go_on(state: State) -> Result:
        return loop_through_buffers(
            grow(state, rest[0]),
            rest,
            unfinished=unfinished,
            advance=advance,
            grow=grow,
            result=result,
        )

    return lax.cond(unfinished(state), go_on, result, state)


def grow_axis(leaf: jax.Array, axis: int, size: int, fill: int = 0) -> jax.Array:
    """`leaf` with `fill` behind what it holds along `axis`, up to `size`."""
    missing = [(0, 0)] * leaf.ndim
    missing[axis] = (0, size - leaf.shape[axis])
    return jnp.pad(leaf, missing, constant_values=fill)


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
