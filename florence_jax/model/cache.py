"""Keys and values that decoding keeps. Knows no model: generation loops move it as a pytree."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class KeyValue(NamedTuple):
    """One attention's keys and values, both float[..., N heads, S tokens, E channels]."""

    key: jax.Array
    value: jax.Array

    def write(self, new: KeyValue, index: jax.Array) -> KeyValue:
        """Fill token `index` with the one token of `new`, float[..., N, 1, E]."""

        def put(old: jax.Array, token: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(old, token.astype(old.dtype), index, axis=-2)

        return KeyValue(put(self.key, new.key), put(self.value, new.value))


def empty_cache(
    *, layers: int, batch: int, beams: int, heads: int, length: int, head_dim: int, dtype: jnp.dtype
) -> tuple[KeyValue, ...]:
    """A decoder's self-attention cache before its first token: float[B, K, N, T, E] a layer."""
    zeros = jnp.zeros((batch, beams, heads, length, head_dim), dtype)
    return tuple(KeyValue(zeros, zeros) for _ in range(layers))


def grow_cache(cache: tuple[KeyValue, ...], length: int) -> tuple[KeyValue, ...]:
    """The same cache with room for `length` tokens: a new allocation, copied once.

    Attending over the whole of a small buffer costs less than over a large one that is masked.
    """

    def grow(leaf: jax.Array) -> jax.Array:
        missing = [(0, 0)] * leaf.ndim
        missing[-2] = (0, length - leaf.shape[-2])
        return jnp.pad(leaf, missing)

    return jax.tree.map(grow, cache)
