"""Keys and values that decoding keeps. Knows no model: generation loops move it as a pytree.

Shapes: B batch, K beams, N heads, T tokens, S stored rows, E channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class KeyValue(NamedTuple):
    """One attention's keys and values, both float[..., N, S, E]."""

    key: jax.Array
    value: jax.Array


class StoredKeyValue(NamedTuple):
    """Keys and values as decoding reads them, one step after the other.

    With few queries an attention does little but read its memory. Keys lie with their channels
    first, so that both of its products read rows as they lie: on XLA:CPU the scores take less than
    half the time that keys float[B, N, S, E] cost.
    """

    key: jax.Array  # float[B, N, E, S]
    value: jax.Array  # float[B, N, S, E]

    @classmethod
    def store(cls, memory: KeyValue) -> StoredKeyValue:
        # Without the barrier XLA moves the transposition behind the loop's products again.
        return cls(lax.optimization_barrier(memory.key.swapaxes(-2, -1)), memory.value)

    def write(self, new: KeyValue, row: jax.Array) -> StoredKeyValue:
        """Fills rows from `row` on with those of `new`."""
        key = new.key.swapaxes(-2, -1).astype(self.key.dtype)
        value = new.value.astype(self.value.dtype)
        return StoredKeyValue(
            lax.dynamic_update_slice_in_dim(self.key, key, row, axis=-1),
            lax.dynamic_update_slice_in_dim(self.value, value, row, axis=-2),
        )


class DecoderCache(NamedTuple):
    """What the beams of each row have said so far, to attend to.

    Nothing that is written ever moves. Token t of beam k stays in row `t * K + k`, and `ancestors`
    says which of a token's K rows each beam descends from: reordering the beams moves these few
    integers, where moving keys and values would copy all of the cache at every step.
    """

    layers: tuple[StoredKeyValue, ...]  # of T * K rows each
    ancestors: jax.Array  # int32[B, K, T]; -1 for tokens that are still to come

    def begin(self, index: jax.Array) -> DecoderCache:
        """The cache whose token `index` is about to be written by each beam for itself."""
        batch, beams, _ = self.ancestors.shape
        itself = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[:, None], (batch, beams, 1))
        ancestors = lax.dynamic_update_slice_in_dim(self.ancestors, itself, index, axis=2)
        return self._replace(ancestors=ancestors)

    def visible_rows(self) -> jax.Array:
        """bool[B, K, T * K]: the rows that hold a beam's own history."""
        batch, beams, tokens = self.ancestors.shape
        own = self.ancestors[..., None] == jnp.arange(beams)
        return own.reshape(batch, beams, tokens * beams)

    def reorder(self, parents_BK: jax.Array) -> DecoderCache:
        """Gives beam k of row b the history of beam `parents_BK[b, k]`."""
        moved = jnp.take_along_axis(
            self.ancestors, parents_BK[..., None], axis=1, mode="promise_in_bounds"
        )
        return self._replace(ancestors=moved)

    def grow(self, tokens: int) -> DecoderCache:
        """The same with room for `tokens` tokens: a new allocation, copied once.

        Attending over the whole of a small buffer costs less than over a large one that is masked.
        """
        _, beams, held = self.ancestors.shape
        rows = (tokens - held) * beams
        return DecoderCache(
            tuple(
                StoredKeyValue(
                    jnp.pad(layer.key, ((0, 0), (0, 0), (0, 0), (0, rows))),
                    jnp.pad(layer.value, ((0, 0), (0, 0), (0, rows), (0, 0))),
                )
                for layer in self.layers
            ),
            jnp.pad(self.ancestors, ((0, 0), (0, 0), (0, tokens - held)), constant_values=-1),
        )


def empty_cache(
    *, layers: int, batch: int, beams: int, heads: int, tokens: int, head_dim: int, dtype: jnp.dtype
) -> DecoderCache:
    """A decoder's self-attention cache before its first token."""
    rows = tokens * beams
    empty = StoredKeyValue(
        jnp.zeros((batch, heads, head_dim, rows), dtype),
        jnp.zeros((batch, heads, rows, head_dim), dtype),
    )
    return DecoderCache((empty,) * layers, jnp.full((batch, beams, tokens), -1, jnp.int32))
