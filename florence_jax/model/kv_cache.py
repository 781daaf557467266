"""The decoder's key-value cache: cross-attention per example, self-attention with beam ancestors.

It knows no model; generation loops carry it as a pytree.

Shapes: B batch, K beams, N heads, T tokens, S cached rows, R new rows, E channels of a head,
        D = N * E.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.decode_attention_pallas import (
    attention_kernel_supported,
    decode_attention,
    decode_attention_reference,
)


class KeyValue(NamedTuple):
    """One attention's keys and values, both float[..., N, S, E]."""

    key: jax.Array
    value: jax.Array


class KVCacheHeadMajor(NamedTuple):
    """One layer's cache with heads in front: the layout for CPU and GPU.

    A decoding step is bound by reading its cache. Keys have their channels first, so that both
    products of attention read contiguous rows: on XLA:CPU the scores take less than half the time
    that keys float[B, N, S, E] take.
    """

    key: jax.Array  # float[B, N, E, S]
    value: jax.Array  # float[B, N, S, E]

    @classmethod
    def store(cls, kv: KeyValue) -> KVCacheHeadMajor:
        # Without the barrier XLA moves the transposition into the loop.
        return cls(lax.optimization_barrier(kv.key.swapaxes(-2, -1)), kv.value)

    @classmethod
    def empty(cls, batch: int, rows: int, heads: int, dim: int, dtype: jnp.dtype) -> Self:
        key = jnp.zeros((batch, heads, dim // heads, rows), dtype)
        return cls(key, jnp.zeros((batch, heads, rows, dim // heads), dtype))

    def write(self, key_BRD: jax.Array, value_BRD: jax.Array, row: jax.Array) -> KVCacheHeadMajor:
        """Write the R rows from `row` on."""
        heads = self.value.shape[1]
        key = split_heads(key_BRD, heads).swapaxes(-2, -1).astype(self.key.dtype)
        value = split_heads(value_BRD, heads).astype(self.value.dtype)
        return KVCacheHeadMajor(
            lax.dynamic_update_slice_in_dim(self.key, key, row, axis=-1),
            lax.dynamic_update_slice_in_dim(self.value, value, row, axis=-2),
        )

    def resize(self, extra_rows: int) -> KVCacheHeadMajor:
        """The cache with `extra_rows` more rows of zeros."""
        return KVCacheHeadMajor(
            jnp.pad(self.key, ((0, 0), (0, 0), (0, 0), (0, extra_rows))),
            jnp.pad(self.value, ((0, 0), (0, 0), (0, extra_rows), (0, 0))),
        )

    def attend(self, q_BKD: jax.Array, mask: jax.Array, heads: int) -> jax.Array:
        """One query per beam, float[B, K, D] -> float[B, K, D]; mask bool[B, 1 or K, S]."""
        q_BNKE = split_heads(q_BKD, heads)
        q_BNKE = q_BNKE * q_BNKE.shape[-1] ** -0.5
        scores = jnp.einsum("bnke,bnes->bnks", q_BNKE, self.key, preferred_element_type=jnp.float32)
        scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.value.dtype)
        y_BNKE = jnp.einsum("bnks,bnse->bnke", weights, self.value)
        return y_BNKE.swapaxes(-3, -2).reshape(q_BKD.shape)


class KVCacheRowMajor(NamedTuple):
    """One layer's cache with all heads of a row along the lanes: the layout for TPU.

    A TPU writes a whole row at once in this layout; in `KVCacheHeadMajor`, whose rows lie along the
    lanes, it rewrites the entire cache. Each head's query is zero outside its own channels.
    """

    key: jax.Array  # float[B, S, D]
    value: jax.Array  # float[B, S, D]

    @classmethod
    def store(cls, kv: KeyValue) -> KVCacheRowMajor:
        return cls(*(join_heads(part) for part in kv))

    @classmethod
    def empty(cls, batch: int, rows: int, heads: int, dim: int, dtype: jnp.dtype) -> Self:
        zeros = jnp.zeros((batch, rows, dim), dtype)
        return cls(zeros, zeros)

    def write(self, key_BRD: jax.Array, value_BRD: jax.Array, row: jax.Array) -> KVCacheRowMajor:
        """Write the R rows from `row` on."""
        key, value = key_BRD.astype(self.key.dtype), value_BRD.astype(self.value.dtype)
        return KVCacheRowMajor(
            lax.dynamic_update_slice_in_dim(self.key, key, row, axis=1),
            lax.dynamic_update_slice_in_dim(self.value, value, row, axis=1),
        )

    def resize(self, extra_rows: int) -> KVCacheRowMajor:
        """The cache with `extra_rows` more rows of zeros."""
        more = ((0, 0), (0, extra_rows), (0, 0))
        return KVCacheRowMajor(jnp.pad(self.key, more), jnp.pad(self.value, more))

    def attend(self, q_BKD: jax.Array, mask: jax.Array, heads: int) -> jax.Array:
        """Same as `KVCacheHeadMajor.attend`."""
        if attention_kernel_supported(q_BKD, self.key.shape[1], heads):
            return decode_attention(q_BKD, self.key, self.value, mask, heads=heads)
        return decode_attention_reference(q_BKD, self.key, self.value, mask, heads=heads)


KVCacheLayer = KVCacheHeadMajor | KVCacheRowMajor


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """float[..., S, D] -> float[..., N, S, E]."""
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-3, -2)


def join_heads(x: jax.Array) -> jax.Array:
    """float[..., N, S, E] -> float[..., S, D]."""
    x = x.swapaxes(-3, -2)
    return x.reshape(*x.shape[:-2], -1)


class DecoderCache(NamedTuple):
    """The self-attention cache of all layers, with the ancestry of the beams.

    Rows never move. Token t of beam k stays in row `t * K + k`, and `ancestors` says which of a
    token's K rows each beam descends from: reordering beams moves these few integers instead of
    copying all keys and values at every step.
    """

    layers: tuple[KVCacheLayer, ...]  # T * K rows each
    ancestors: jax.Array  # int32[B, K, T]; -1 for tokens that are not generated yet

    def start_step(self, index: jax.Array) -> DecoderCache:
        """Mark every beam as its own ancestor at token `index`."""
        batch, beams, _ = self.ancestors.shape
        itself = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[:, None], (batch, beams, 1))
        ancestors = lax.dynamic_update_slice_in_dim(self.ancestors, itself, index, axis=2)
        return self._replace(ancestors=ancestors)

    def ancestor_mask(self) -> jax.Array:
        """bool[B, K, T * K]: the rows that hold a beam's own history."""
        batch, beams, tokens = self.ancestors.shape
        own = self.ancestors[..., None] == jnp.arange(beams)
        return own.reshape(batch, beams, tokens * beams)

    def reorder(self, parents_BK: jax.Array) -> DecoderCache:
        """Give beam k of row b the history of beam `parents_BK[b, k]`."""
        moved = jnp.take_along_axis(
            self.ancestors, parents_BK[..., None], axis=1, mode="promise_in_bounds"
        )
        return self._replace(ancestors=moved)

    def resize(self, tokens: int) -> DecoderCache:
        """The cache with room for `tokens` tokens: a new allocation, copied once.

        Attention over all of a small buffer costs less than over a large one that is masked.
        """
        _, beams, held = self.ancestors.shape
        rows = (tokens - held) * beams
        return DecoderCache(
            tuple(layer.resize(rows) for layer in self.layers),
            jnp.pad(self.ancestors, ((0, 0), (0, 0), (0, tokens - held)), constant_values=-1),
        )


def empty_cache(
    layout: type[KVCacheLayer],
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
    empty = layout.empty(batch, tokens * beams, heads, dim, dtype)
    return DecoderCache((empty,) * layers, jnp.full((batch, beams, tokens), -1, jnp.int32))
