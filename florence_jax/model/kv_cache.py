"""Keys and values that decoding keeps. Knows no model: generation loops move it as a pytree.

Shapes: B batch, K beams, N heads, T tokens, S stored rows, R new rows, E channels of a head,
        D = N * E, Q = K * N.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.decode_step import attend_to_rows, kernel_attends


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

    @classmethod
    def empty(cls, batch: int, rows: int, heads: int, dim: int, dtype: jnp.dtype) -> Self:
        key = jnp.zeros((batch, heads, dim // heads, rows), dtype)
        return cls(key, jnp.zeros((batch, heads, rows, dim // heads), dtype))

    def write(self, key_BRD: jax.Array, value_BRD: jax.Array, row: jax.Array) -> StoredKeyValue:
        """Fills the R rows from `row` on."""
        heads = self.value.shape[1]
        key = split_heads(key_BRD, heads).swapaxes(-2, -1).astype(self.key.dtype)
        value = split_heads(value_BRD, heads).astype(self.value.dtype)
        return StoredKeyValue(
            lax.dynamic_update_slice_in_dim(self.key, key, row, axis=-1),
            lax.dynamic_update_slice_in_dim(self.value, value, row, axis=-2),
        )

    def extended(self, rows: int) -> StoredKeyValue:
        """The same with so many rows more."""
        return StoredKeyValue(
            jnp.pad(self.key, ((0, 0), (0, 0), (0, 0), (0, rows))),
            jnp.pad(self.value, ((0, 0), (0, 0), (0, rows), (0, 0))),
        )

    def attend(self, q_BKD: jax.Array, mask: jax.Array, heads: int) -> jax.Array:
        """`layers.attend` for a step's few queries, float[B, K, D]; mask bool[B, 1 or K, S]."""
        q_BNKE = split_heads(q_BKD, heads)
        q_BNKE = q_BNKE * q_BNKE.shape[-1] ** -0.5
        scores = jnp.einsum("bnke,bnes->bnks", q_BNKE, self.key, preferred_element_type=jnp.float32)
        scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.value.dtype)
        y_BNKE = jnp.einsum("bnks,bnse->bnke", weights, self.value)
        return y_BNKE.swapaxes(-3, -2).reshape(q_BKD.shape)


class StoredRows(NamedTuple):
    """The same for XLA:TPU, where a row is written with all of its heads along the lanes.

    `StoredKeyValue` has its rows along them, and to write one there goes through all of the cache.
    A query of one head is asked of whole rows with zeros for the other heads: the matrix unit has
    nothing else to do.
    """

    key: jax.Array  # float[B, S, D]
    value: jax.Array  # float[B, S, D]

    @classmethod
    def store(cls, memory: KeyValue) -> StoredRows:
        return cls(*(join_heads(part) for part in memory))

    @classmethod
    def empty(cls, batch: int, rows: int, heads: int, dim: int, dtype: jnp.dtype) -> Self:
        zeros = jnp.zeros((batch, rows, dim), dtype)
        return cls(zeros, zeros)

    def write(self, key_BRD: jax.Array, value_BRD: jax.Array, row: jax.Array) -> StoredRows:
        """Fills the R rows from `row` on."""
        key, value = key_BRD.astype(self.key.dtype), value_BRD.astype(self.value.dtype)
        return StoredRows(
            lax.dynamic_update_slice_in_dim(self.key, key, row, axis=1),
            lax.dynamic_update_slice_in_dim(self.value, value, row, axis=1),
        )

    def extended(self, rows: int) -> StoredRows:
        """The same with so many rows more."""
        more = ((0, 0), (0, rows), (0, 0))
        return StoredRows(jnp.pad(self.key, more), jnp.pad(self.value, more))

    def attend(self, q_BKD: jax.Array, mask: jax.Array, heads: int) -> jax.Array:
        """As `StoredKeyValue.attend`."""
        if not kernel_attends(q_BKD, self.key.shape[1], heads):
            return attend_to_rows(q_BKD, self.key, self.value, mask, heads=heads)
        # Not with the module: Pallas takes a quarter of a second to import.
        from florence_jax.ops.decode_attention_pallas import attend_to_rows_by_kernel

        return attend_to_rows_by_kernel(q_BKD, self.key, self.value, mask, heads=heads)


Stored = StoredKeyValue | StoredRows


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """float[..., S, D] -> float[..., N, S, E]."""
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-3, -2)


def join_heads(x: jax.Array) -> jax.Array:
    """float[..., N, S, E] -> float[..., S, D]."""
    x = x.swapaxes(-3, -2)
    return x.reshape(*x.shape[:-2], -1)


class DecoderCache(NamedTuple):
    """What the beams of each row have said so far, to attend to.

    Nothing that is written ever moves. Token t of beam k stays in row `t * K + k`, and `ancestors`
    says which of a token's K rows each beam descends from: reordering the beams moves these few
    integers, where moving keys and values would copy all of the cache at every step.
    """

    layers: tuple[Stored, ...]  # of T * K rows each
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
            tuple(layer.extended(rows) for layer in self.layers),
            jnp.pad(self.ancestors, ((0, 0), (0, 0), (0, tokens - held)), constant_values=-1),
        )


def empty_cache(
    form: type[Stored],
    *,
    layers: int,
    batch: int,
    beams: int,
    heads: int,
    tokens: int,
    dim: int,
    dtype: jnp.dtype,
) -> DecoderCache:
    """A decoder's self-attention cache before its first token."""
    empty = form.empty(batch, tokens * beams, heads, dim, dtype)
    return DecoderCache((empty,) * layers, jnp.full((batch, beams, tokens), -1, jnp.int32))
