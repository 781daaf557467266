"""Parts shared by the decoding loops: the model callback, buffers that grow, random keys.

The loops know no model. They own the tokens and the beams; the caller owns the model's arithmetic,
behind one callback.

Shape suffixes: B batch, K beams (or parallel samples), N candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
from jax import lax


class _Counted(Protocol):
    @property
    def index(self) -> jax.Array: ...


State = TypeVar("State", bound=_Counted)
Result = TypeVar("Result")


class Cache(Protocol):
    """The model's cache of every beam: a pytree that only the model looks into.

    State that all beams of a row share (cross-attention keys and values) is not part of it: the
    callback closes over that.
    """

    def reorder(self, parents_BK: jax.Array) -> Self:
        """Give beam k of row b the cache of beam `parents_BK[b, k]`."""
        ...

    def resize(self, tokens: int) -> Self:
        """The cache with room for `tokens` tokens; its content is kept."""
        ...


# (tokens int32[B, K], index int32[], cache) -> (logits [B, K, V], cache). `index` is the position
# of `tokens` in the decoder sequence: 0 for the start token.
StepFn = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def gather_beams(tree: Any, indices_BN: jax.Array) -> Any:
    """Gather along axis 1 of every [B, K, ...] leaf: [B, N, ...]."""

    def row(leaf: jax.Array, indices_N: jax.Array) -> jax.Array:
        return leaf.at[indices_N].get(mode="promise_in_bounds")

    return jax.tree.map(lambda leaf: jax.vmap(row)(leaf, indices_BN), tree)


def while_loop_with_growing_buffers(
    state: State,
    buffers: tuple[int, ...],
    *,
    unfinished: Callable[[State], jax.Array],
    advance: Callable[[State], State],
    grow: Callable[[State, int], State],
    result: Callable[[State], Result],
) -> Result:
    """Run one `while_loop` per buffer size, entering the next only when a search outgrows one.

    Args:
        state: has an `index`, the number of tokens so far, and room for `buffers[0]` of them.
        buffers: the sizes to grow through.
        unfinished: returns bool[], whether to continue.
        advance: adds a token.
        grow: returns the state with room for a given number of tokens.
        result: extracts the result from the last state, in one shape for all buffer sizes.
    """
    here, rest = buffers[0], buffers[1:]
    state = lax.while_loop(lambda state: (state.index < here) & unfinished(state), advance, state)
    if not rest:
        return result(state)

    def go_on(state: State) -> Result:
        return while_loop_with_growing_buffers(
            grow(state, rest[0]),
            rest,
            unfinished=unfinished,
            advance=advance,
            grow=grow,
            result=result,
        )

    return lax.cond(unfinished(state), go_on, result, state)


def grow_axis(leaf: jax.Array, axis: int, size: int, fill: int = 0) -> jax.Array:
    """Extend `leaf` along `axis` to `size` with `fill`."""
    missing = [(0, 0)] * leaf.ndim
    missing[axis] = (0, size - leaf.shape[axis])
    return jnp.pad(leaf, missing, constant_values=fill)


def row_keys(rng: jax.Array | None, batch: int) -> jax.Array:
    """One random key per row, key[B]: it depends on the row's index alone.

    Splitting `rng` by the batch size would make a row's samples depend on the number of rows.

    Raises:
        ValueError: there is no `rng`.
    """
    if rng is None:
        raise ValueError("do_sample=True needs rng, for example rng=jax.random.key(0)")
    return jax.vmap(lambda row: jax.random.fold_in(rng, row))(jnp.arange(batch))


def step_keys(keys_B: jax.Array, index: jax.Array) -> jax.Array:
    """The keys of one decoding step: key[B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys_B)
