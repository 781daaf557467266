"""The BART encoder-decoder: post-norm layers, learned positions, exact GELU.

Shapes: B batch, K beams, L text tokens, M encoder tokens, T cached tokens, D model, N heads,
        E channels of a head.
Source: https://arxiv.org/abs/1910.13461.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from florence_jax.config import BartConfig
from florence_jax.model.kv_cache import (
    DecoderCache,
    KeyValue,
    Stored,
    join_heads,
    split_heads,
)
from florence_jax.model.layers import (
    LayerNorm,
    Linear,
    Stack,
    attend,
    dropout,
    fold_in,
    gelu,
    normal,
    pick,
    split,
)
from florence_jax.ops.decode_step import kernel_projects

# BART keeps two unused rows in front of its position table.
POSITION_OFFSET = 2


class Encoder(nnx.Module):
    def __init__(self, config: BartConfig, *, rngs: nnx.Rngs | None):
        self.dropout_rate = config.dropout
        self.positions = _position_table(config, rngs)
        self.embedding_norm = LayerNorm(config.d_model)
        self.layers = Stack([EncoderLayer(config, rngs=rngs) for _ in range(config.encoder_layers)])

    def __call__(
        self, embeds_BMD: jax.Array, mask_BM: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """float[B, M, D] embeddings and bool[B, M] (False: padding) -> float[B, M, D]."""
        *_, hidden = self.layer_outputs(embeds_BMD, mask_BM, key=key)
        return hidden

    def layer_outputs(
        self, embeds_BMD: jax.Array, mask_BM: jax.Array, *, key: jax.Array | None = None
    ) -> Iterator[jax.Array]:
        """The normalised embeddings, then each layer's output in turn."""
        x = embeds_BMD + _positions(self.positions, 0, embeds_BMD)
        x = dropout(self.embedding_norm(x), self.dropout_rate, fold_in(key, 0))
        yield x
        keys = split(fold_in(key, 1), self.layers.depth, EncoderLayer.DRAWS)
        for number, (_, layer) in enumerate(self.layers.calls()):
            x = layer(x, mask_BM[:, None, None, :], keys=pick(keys, number))
            yield x


class Decoder(nnx.Module):
    def __init__(self, config: BartConfig, *, rngs: nnx.Rngs | None):
        self.dropout_rate = config.dropout
        self.num_heads = config.decoder_attention_heads
        self.positions = _position_table(config, rngs)
        self.embedding_norm = LayerNorm(config.d_model)
        self.layers = Stack([DecoderLayer(config, rngs=rngs) for _ in range(config.decoder_layers)])

    def __call__(
        self,
        embeds_BLD: jax.Array,
        memory_BMD: jax.Array,
        memory_mask_BM: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Teacher forcing: float[B, L, D] embeddings of all tokens at once -> float[B, L, D]."""
        *_, hidden = self.layer_outputs(embeds_BLD, memory_BMD, memory_mask_BM, key=key)
        return hidden

    def layer_outputs(
        self,
        embeds_BLD: jax.Array,
        memory_BMD: jax.Array,
        memory_mask_BM: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> Iterator[jax.Array]:
        """The normalised embeddings, then each layer's output in turn."""
        x = embeds_BLD + _positions(self.positions, 0, embeds_BLD)
        x = dropout(self.embedding_norm(x), self.dropout_rate, fold_in(key, 0))
        yield x
        length = x.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))
        keys = split(fold_in(key, 1), self.layers.depth, DecoderLayer.DRAWS)
        for number, (layer, call) in enumerate(self.layers.calls()):
            x = call(
                x,
                causal,
                layer.cross_attn.key_value(memory_BMD),
                memory_mask_BM[:, None, None, :],
                keys=pick(keys, number),
            )
            yield x

    def cross_key_values(self, memory_BMD: jax.Array, form: type[Stored]) -> tuple[Stored, ...]:
        """Each layer's keys and values of the encoder's output, for `step`."""
        return tuple(form.store(layer.cross_attn.key_value(memory_BMD)) for layer in self.layers)

    def step(
        self,
        embeds_BKD: jax.Array,
        index: jax.Array,
        cache: DecoderCache,
        cross: tuple[Stored, ...],
        memory_mask_BM: jax.Array,
    ) -> tuple[jax.Array, DecoderCache]:
        """One token of every beam.

        Args:
            embeds_BKD: embeddings of the tokens at position `index`.
            cache: what each layer's self-attention has seen.
            cross: `cross_key_values`, shared by the beams of an example.

        Returns:
            float[B, K, D] and the cache with position `index` filled.
        """
        x = embeds_BKD + _positions(self.positions, index, embeds_BKD[:, :1])
        x = self.embedding_norm(x)
        cache = cache.begin(index)
        seen = cache.visible_rows()
        known = memory_mask_BM[:, None]
        filled = []
        steps = (step for _, step in self.layers.calls("step"))
        for step, own, memory in zip(steps, cache.layers, cross, strict=True):
            x, own = step(x, index, own, seen, memory, known)
            filled.append(own)
        return x, cache._replace(layers=tuple(filled))


class EncoderLayer(nnx.Module):
    # Keys that one call with dropout needs.
    DRAWS = 4

    def __init__(self, config: BartConfig, *, rngs: nnx.Rngs | None):
        self.dropout_rate = config.dropout
        self.activation_dropout_rate = config.activation_dropout
        self.self_attn = Attention(config, num_heads=config.encoder_attention_heads, rngs=rngs)
        self.self_attn_norm = LayerNorm(config.d_model)
        self.fc1 = Linear(config.d_model, config.encoder_ffn_dim, rngs=rngs)
        self.fc2 = Linear(config.encoder_ffn_dim, config.d_model, rngs=rngs)
        self.final_norm = LayerNorm(config.d_model)

    def __call__(
        self, x: jax.Array, mask: jax.Array, *, keys: jax.Array | None = None
    ) -> jax.Array:
        own = self.self_attn.key_value(x)
        y = self.self_attn(x, own, mask, key=pick(keys, 0))
        x = self.self_attn_norm(x + dropout(y, self.dropout_rate, pick(keys, 1)))
        return _feed_forward(self, x, pick(keys, 2), pick(keys, 3))


class DecoderLayer(nnx.Module):
    DRAWS = 6

    def __init__(self, config: BartConfig, *, rngs: nnx.Rngs | None):
        heads = config.decoder_attention_heads
        self.dropout_rate = config.dropout
        self.activation_dropout_rate = config.activation_dropout
        self.self_attn = Attention(config, num_heads=heads, rngs=rngs)
        self.self_attn_norm = LayerNorm(config.d_model)
        self.cross_attn = Attention(config, num_heads=heads, rngs=rngs)
        self.cross_attn_norm = LayerNorm(config.d_model)
        self.fc1 = Linear(config.d_model, config.decoder_ffn_dim, rngs=rngs)
        self.fc2 = Linear(config.decoder_ffn_dim, config.d_model, rngs=rngs)
        self.final_norm = LayerNorm(config.d_model)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        memory: KeyValue,
        memory_mask: jax.Array,
        *,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        y = self.self_attn(x, self.self_attn.key_value(x), mask, key=pick(keys, 0))
        x = self.self_attn_norm(x + dropout(y, self.dropout_rate, pick(keys, 1)))
        y = self.cross_attn(x, memory, memory_mask, key=pick(keys, 2))
        x = self.cross_attn_norm(x + dropout(y, self.dropout_rate, pick(keys, 3)))
        return _feed_forward(self, x, pick(keys, 4), pick(keys, 5))

    def step(
        self,
        x_BKD: jax.Array,
        index: jax.Array,
        own: Stored,
        own_mask: jax.Array,
        memory: Stored,
        memory_mask: jax.Array,
    ) -> tuple[jax.Array, Stored]:
        # The beams of an image are the queries of one memory, its own cache as well as the
        # encoder's output: neither is ever copied for them.
        attention = self.self_attn
        row = index * x_BKD.shape[1]
        own = own.write(attention.k_proj(x_BKD), attention.v_proj(x_BKD), row)
        y = attention.step(x_BKD, own, own_mask)
        x_BKD = _project_and_norm(x_BKD, y, attention.out_proj, self.self_attn_norm)
        y = self.cross_attn.step(x_BKD, memory, memory_mask)
        x_BKD = _project_and_norm(x_BKD, y, self.cross_attn.out_proj, self.cross_attn_norm)
        return _project_and_norm(x_BKD, gelu(self.fc1(x_BKD)), self.fc2, self.final_norm), own


class Attention(nnx.Module):
    """Multi-head attention whose keys and values are computed apart, so that they can be cached."""

    def __init__(self, config: BartConfig, *, num_heads: int, rngs: nnx.Rngs | None):
        self.num_heads = num_heads
        self.attention_dropout_rate = config.attention_dropout
        self.q_proj = Linear(config.d_model, config.d_model, rngs=rngs)
        self.k_proj = Linear(config.d_model, config.d_model, rngs=rngs)
        self.v_proj = Linear(config.d_model, config.d_model, rngs=rngs)
        self.out_proj = Linear(config.d_model, config.d_model, rngs=rngs)

    def key_value(self, x: jax.Array) -> KeyValue:
        """float[..., S, D] -> keys and values, float[..., N, S, E]."""
        return KeyValue(self._split_heads(self.k_proj(x)), self._split_heads(self.v_proj(x)))

    def __call__(
        self, x: jax.Array, memory: KeyValue, mask: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """float[..., Q, D] queries; bool mask, broadcastable to [..., N, Q, S]."""
        y = attend(
            self._split_heads(self.q_proj(x)),
            memory.key,
            memory.value,
            mask=mask,
            dropout_rate=self.attention_dropout_rate,
            dropout_key=key,
        )
        return self.out_proj(join_heads(y))

    def step(self, x_BKD: jax.Array, memory: Stored, mask: jax.Array) -> jax.Array:
        """One query per beam of what decoding keeps, before `out_proj`; bool[B, 1 or K, S]."""
        return memory.attend(self.q_proj(x_BKD), mask, self.num_heads)

    def _split_heads(self, x: jax.Array) -> jax.Array:
        return split_heads(x, self.num_heads)


def _project_and_norm(
    x_BKD: jax.Array, y_BKF: jax.Array, linear: Linear, norm: LayerNorm
) -> jax.Array:
    """The end of a step's sublayers."""
    plain = linear.scale is None and linear.adapter is None
    if not (plain and kernel_projects(x_BKD, y_BKF.shape[-1])):
        return norm(x_BKD + linear(y_BKF))
    # Not with the module: Pallas takes a quarter of a second to import.
    from florence_jax.ops.linear_residual_norm_pallas import project_and_norm_by_kernel

    weights = *linear.kernel_and_bias(x_BKD.dtype), norm.scale[...], norm.bias[...]
    return project_and_norm_by_kernel(x_BKD, y_BKF, *weights)


def _feed_forward(
    layer: EncoderLayer | DecoderLayer, x: jax.Array, *keys: jax.Array | None
) -> jax.Array:
    inner, outer = keys or (None, None)
    y = dropout(gelu(layer.fc1(x)), layer.activation_dropout_rate, inner)
    y = dropout(layer.fc2(y), layer.dropout_rate, outer)
    return layer.final_norm(x + y)


def _position_table(config: BartConfig, rngs: nnx.Rngs | None) -> nnx.Param:
    shape = (config.max_position_embeddings + POSITION_OFFSET, config.d_model)
    return nnx.Param(normal(rngs, shape))


def _positions(table: nnx.Param, start: int | jax.Array, like: jax.Array) -> jax.Array:
    """Position rows for `like.shape[1]` tokens from position `start` on, float[L, D]."""
    rows = lax.dynamic_slice_in_dim(table[...], start + POSITION_OFFSET, like.shape[1])
    return rows.astype(like.dtype)
