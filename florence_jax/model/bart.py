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
    KVCacheLayer,
    join_heads,
    split_heads,
)
from florence_jax.model.layers import (
    LayerNorm,
    Linear,
    Sequential,
    dropout,
    fold_in,
    index_key,
    normal,
    split_key,
)
from florence_jax.ops.attention import dot_product_attention, draw_kept
from florence_jax.ops.layer_norm_gelu import gelu
from florence_jax.ops.linear_residual_norm_pallas import (
    linear_norm_kernel_supported,
    linear_residual_norm,
)
from florence_jax.ops.text_attention_pallas import causal_mask, text_attention
from florence_jax.ops.text_attention_pallas import pallas_supported as text_attention_supported

# BART keeps two unused rows in front of its position table.
POSITION_OFFSET = 2


class Encoder(nnx.Module):
    """BART's encoder: embeddings plus positions, a layer norm, then post-norm layers."""

    def __init__(self, config: BartConfig, *, rngs: nnx.Rngs | None):
        self.dropout_rate = config.dropout
        self.positions = _position_table(config, rngs)
        self.embedding_norm = LayerNorm(config.d_model)
        self.layers = Sequential(
            [EncoderLayer(config, rngs=rngs) for _ in range(config.encoder_layers)]
        )

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
        keys = split_key(fold_in(key, 1), self.layers.depth, EncoderLayer.NUM_DROPOUT_KEYS)
        for number, (_, layer) in enumerate(self.layers.iter_calls()):
            x = layer(x, mask_BM, keys=index_key(keys, number))
            yield x


class Decoder(nnx.Module):
    """BART's decoder, for all tokens at once (`__call__`) or one token a beam (`step`)."""

    def __init__(self, config: BartConfig, *, rngs: nnx.Rngs | None):
        self.dropout_rate = config.dropout
        self.num_heads = config.decoder_attention_heads
        self.positions = _position_table(config, rngs)
        self.embedding_norm = LayerNorm(config.d_model)
        self.layers = Sequential(
            [DecoderLayer(config, rngs=rngs) for _ in range(config.decoder_layers)]
        )

    def __call__(
        self,
        embeds_BLD: jax.Array,
        encoder_hidden_states_BMD: jax.Array,
        encoder_mask_BM: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Teacher forcing: float[B, L, D] embeddings of all tokens at once -> float[B, L, D]."""
        *_, hidden = self.layer_outputs(
            embeds_BLD, encoder_hidden_states_BMD, encoder_mask_BM, key=key
        )
        return hidden

    def layer_outputs(
        self,
        embeds_BLD: jax.Array,
        encoder_hidden_states_BMD: jax.Array,
        encoder_mask_BM: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> Iterator[jax.Array]:
        """The normalised embeddings, then each layer's output in turn."""
        x = embeds_BLD + _positions(self.positions, 0, embeds_BLD)
        x = dropout(self.embedding_norm(x), self.dropout_rate, fold_in(key, 0))
        yield x
        keys = split_key(fold_in(key, 1), self.layers.depth, DecoderLayer.NUM_DROPOUT_KEYS)
        for number, (layer, call) in enumerate(self.layers.iter_calls()):
            x = call(
                x,
                layer.cross_attn.key_value(encoder_hidden_states_BMD),
                encoder_mask_BM,
                keys=index_key(keys, number),
            )
            yield x

    def cross_attention_cache(
        self, encoder_hidden_states_BMD: jax.Array, layout: type[KVCacheLayer]
    ) -> tuple[KVCacheLayer, ...]:
        """Each layer's cross-attention keys and values, for `step`."""
        return tuple(
            layout.store(layer.cross_attn.key_value(encoder_hidden_states_BMD))
            for layer in self.layers
        )

    def step(
        self,
        embeds_BKD: jax.Array,
        index: jax.Array,
        cache: DecoderCache,
        cross_cache: tuple[KVCacheLayer, ...],
        encoder_mask_BM: jax.Array,
    ) -> tuple[jax.Array, DecoderCache]:
        """One token of every beam.

        Args:
            embeds_BKD: embeddings of the tokens at position `index`.
            index: int32[], the position.
            cache: the self-attention cache.
            cross_cache: `cross_attention_cache`'s, shared by the beams of an example.
            encoder_mask_BM: bool, False where the encoder's input is padded.

        Returns:
            float[B, K, D] and the cache with position `index` filled.
        """
        x = embeds_BKD + _positions(self.positions, index, embeds_BKD[:, :1])
        x = self.embedding_norm(x)
        cache = cache.start_step(index)
        self_mask, cross_mask = cache.ancestor_mask(), encoder_mask_BM[:, None]
        filled = []
        steps = (step for _, step in self.layers.iter_calls("step"))
        for step, kv, cross_kv in zip(steps, cache.layers, cross_cache, strict=True):
            x, kv = step(x, index, kv, self_mask, cross_kv, cross_mask)
            filled.append(kv)
        return x, cache._replace(layers=tuple(filled))


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward network, each followed by residual and layer norm."""

    # Random keys that a call with dropout takes.
    NUM_DROPOUT_KEYS = 4

    def __init__(self, config: BartConfig, *, rngs: nnx.Rngs | None):
        self.dropout_rate = config.dropout
        self.activation_dropout_rate = config.activation_dropout
        self.self_attn = Attention(config, num_heads=config.encoder_attention_heads, rngs=rngs)
        self.self_attn_norm = LayerNorm(config.d_model)
        self.fc1 = Linear(config.d_model, config.encoder_ffn_dim, rngs=rngs)
        self.fc2 = Linear(config.encoder_ffn_dim, config.d_model, rngs=rngs)
        self.final_norm = LayerNorm(config.d_model)

    def __call__(
        self, x: jax.Array, mask_BM: jax.Array, *, keys: jax.Array | None = None
    ) -> jax.Array:
        y = self.self_attn(x, self.self_attn.key_value(x), mask_BM, key=index_key(keys, 0))
        x = self.self_attn_norm(x + dropout(y, self.dropout_rate, index_key(keys, 1)))
        return _feed_forward(self, x, index_key(keys, 2), index_key(keys, 3))


class DecoderLayer(nnx.Module):
    """Causal self-attention, cross-attention and feed-forward network, each post-norm."""

    NUM_DROPOUT_KEYS = 6

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
        cross_kv: KeyValue,
        cross_mask_BM: jax.Array,
        *,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        kv = self.self_attn.key_value(x)
        y = self.self_attn(x, kv, None, causal=True, key=index_key(keys, 0))
        x = self.self_attn_norm(x + dropout(y, self.dropout_rate, index_key(keys, 1)))
        y = self.cross_attn(x, cross_kv, cross_mask_BM, key=index_key(keys, 2))
        x = self.cross_attn_norm(x + dropout(y, self.dropout_rate, index_key(keys, 3)))
        return _feed_forward(self, x, index_key(keys, 4), index_key(keys, 5))

    def step(
        self,
        x_BKD: jax.Array,
        index: jax.Array,
        kv: KVCacheLayer,
        self_mask: jax.Array,
        cross_kv: KVCacheLayer,
        cross_mask: jax.Array,
    ) -> tuple[jax.Array, KVCacheLayer]:
        """One token of every beam; the beams of an example are queries of the same cached rows."""
        first_row = index * x_BKD.shape[1]
        kv = kv.write(self.self_attn.k_proj(x_BKD), self.self_attn.v_proj(x_BKD), first_row)
        y = self.self_attn.step(x_BKD, kv, self_mask)
        x_BKD = _linear_residual_norm(x_BKD, y, self.self_attn.out_proj, self.self_attn_norm)
        y = self.cross_attn.step(x_BKD, cross_kv, cross_mask)
        x_BKD = _linear_residual_norm(x_BKD, y, self.cross_attn.out_proj, self.cross_attn_norm)
        return _linear_residual_norm(x_BKD, gelu(self.fc1(x_BKD)), self.fc2, self.final_norm), kv


class Attention(nnx.Module):
    """Multi-head attention; keys and values are computed separately, so that they can be cached."""

    def __init__(self, config: BartConfig, *, num_heads: int, rngs: nnx.Rngs | None):
        self.num_heads = num_heads
        self.attention_dropout_rate = config.attention_dropout
        self.q_proj = Linear(config.d_model, config.d_model, rngs=rngs)
        self.k_proj = Linear(config.d_model, config.d_model, rngs=rngs)
        self.v_proj = Linear(config.d_model, config.d_model, rngs=rngs)
        self.out_proj = Linear(config.d_model, config.d_model, rngs=rngs)

    @jax.named_scope("text_attention")
    def key_value(self, x: jax.Array) -> KeyValue:
        """float[..., S, D] -> keys and values, float[..., N, S, E]."""
        return KeyValue(self._split_heads(self.k_proj(x)), self._split_heads(self.v_proj(x)))

    @jax.named_scope("text_attention")
    def __call__(
        self,
        x: jax.Array,
        kv: KeyValue,
        mask_BS: jax.Array | None,
        *,
        causal: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Attention of all queries at once, float[B, Q, D] -> float[B, Q, D].

        Args:
            kv: float[B, N, S, E].
            mask_BS: bool, False for keys that are not attended to; None for none such.
            causal: whether queries see the keys up to their own position alone.
            key: a random key, which turns dropout on.
        """
        q_BQD, rate = self.q_proj(x), self.attention_dropout_rate

        def anywhere(q_BQD: jax.Array, kv: KeyValue) -> jax.Array:
            mask = None if mask_BS is None else mask_BS[:, None, None, :]
            if causal:
                mask = causal_mask(q_BQD.shape[1], kv.key.shape[-2])
            q = self._split_heads(q_BQD)
            y = dot_product_attention(
                q, kv.key, kv.value, mask=mask, dropout_rate=rate, dropout_key=key
            )
            return join_heads(y)

        def on_tpu(q_BQD: jax.Array, kv: KeyValue) -> jax.Array:
            k_BSD, v_BSD = join_heads(kv.key), join_heads(kv.value)
            mask = jnp.ones(k_BSD.shape[:2], bool) if mask_BS is None else mask_BS
            kept = ()
            if key is not None and rate > 0.0:
                kept = (draw_kept(key, rate, self._split_heads(q_BQD), kv.key),)
            options = {"num_heads": self.num_heads, "causal": causal, "dropout_rate": rate}
            return text_attention(q_BQD, k_BSD, v_BSD, mask, *kept, **options)

        if text_attention_supported(q_BQD, kv.key.shape[-2], self.num_heads):
            y_BQD = lax.platform_dependent(q_BQD, kv, tpu=on_tpu, default=anywhere)
        else:
            y_BQD = anywhere(q_BQD, kv)
        return self.out_proj(y_BQD)

    @jax.named_scope("text_attention")
    def step(self, x_BKD: jax.Array, kv: KVCacheLayer, mask: jax.Array) -> jax.Array:
        """One query per beam over a cache, without `out_proj`; mask bool[B, 1 or K, S]."""
        return kv.attend(self.q_proj(x_BKD), mask, self.num_heads)

    def _split_heads(self, x: jax.Array) -> jax.Array:
        return split_heads(x, self.num_heads)


def _linear_residual_norm(
    x_BKD: jax.Array, y_BKF: jax.Array, linear: Linear, norm: LayerNorm
) -> jax.Array:
    """norm(x + linear(y)), the end of a decoding step's sublayers."""
    if not (linear.is_plain and linear_norm_kernel_supported(x_BKD, y_BKF.shape[-1])):
        return norm(x_BKD + linear(y_BKF))
    weights = *linear.kernel_and_bias(x_BKD.dtype), norm.scale[...], norm.bias[...]
    return linear_residual_norm(x_BKD, y_BKF, *weights)


def _feed_forward(
    layer: EncoderLayer | DecoderLayer, x: jax.Array, *keys: jax.Array | None
) -> jax.Array:
    inner, outer = keys or (None, None)
    with jax.named_scope("mlp"):
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
