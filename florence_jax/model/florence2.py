"""Florence-2: image encoder, projector and encoder-decoder around one token embedding.

Shapes: B batch, K beams, F frames, H W pixels, L text tokens, M = image + text tokens, D model,
        V vocabulary.
Source: "Florence-2: Advancing a Unified Representation for a Variety of Vision Tasks",
https://arxiv.org/abs/2311.06242.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from florence_jax.config import Florence2Config
from florence_jax.model.bart import Decoder, Encoder
from florence_jax.model.davit import DaViT
from florence_jax.model.kv_cache import (
    DecoderCache,
    KVCacheHeadMajor,
    KVCacheLayer,
    KVCacheRowMajor,
    empty_cache,
)
from florence_jax.model.layers import Embedding, fold_in
from florence_jax.model.projector import Projector


class Florence2(nnx.Module):
    """The whole network; `dtype` is the dtype that activations are computed in.

    The token embedding is owned here and passed down: a module referenced twice would become two
    leaves, and tied weights would silently untie.
    """

    def __init__(self, config: Florence2Config, *, dtype: str = "float32", rngs: nnx.Rngs | None):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        text = config.text
        self.vision_tower = DaViT(config.vision, rngs=rngs)
        self.projector = Projector(config, rngs=rngs)
        self.shared = Embedding(text.vocab_size, text.d_model, rngs=rngs)
        self.encoder = Encoder(text, rngs=rngs)
        self.decoder = Decoder(text, rngs=rngs)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Embedding(text.vocab_size, text.d_model, rngs=rngs)
        )
        self.final_logits_bias = (
            nnx.Param(jnp.zeros((text.vocab_size,))) if config.final_logits_bias else None
        )

    def __call__(
        self,
        pixel_values: jax.Array,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        decoder_input_ids: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Teacher-forced logits, float32[B, L, V]. A `key` turns on dropout and drop-path."""
        image_features = self.encode_image(pixel_values, key=fold_in(key, 0))
        hidden_states, mask = self.encode(
            image_features, input_ids, attention_mask, key=fold_in(key, 1)
        )
        return self.decode(decoder_input_ids, hidden_states, mask, key=fold_in(key, 2))

    def encode_image(self, pixel_values: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Images float[B, H, W, 3] or frames float[B, F, H, W, 3] -> float[B, F + h*w, D]."""
        frames = pixel_values if pixel_values.ndim == 5 else pixel_values[:, None]
        batch, count, height, width, channels = frames.shape
        self.config.num_image_tokens(height, width, count)
        pixels = frames.reshape(batch * count, height, width, channels).astype(self.dtype)
        maps = self.vision_tower(pixels, key=key)
        return self.projector(maps.reshape(batch, count, *maps.shape[1:]))

    def encode(
        self,
        image_features: jax.Array,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Encoder hidden states float[B, M, D] of image and prompt, and their mask bool[B, M].

        Args:
            image_features: `encode_image`'s, float[B, F + h*w, D].
            input_ids: int[B, L], the text tokens alone.
            attention_mask: [B, L], zero or False where a prompt is padded.
        """
        return self.encode_embeddings(
            image_features, self.embed(input_ids), attention_mask, key=key
        )

    def encode_embeddings(
        self,
        image_features: jax.Array,
        text_embeds: jax.Array,
        attention_mask: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """`encode` of text that is embedded already, float[B, L, D]."""
        embeds, mask = self.merge_embeddings(image_features, text_embeds, attention_mask)
        return self.encoder(embeds, mask, key=key), mask

    def merge_embeddings(
        self, image_features: jax.Array, text_embeds: jax.Array, attention_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The encoder's input: image tokens in front of text embeddings, and the mask of both."""
        image, text = image_features.shape[1], text_embeds.shape[1]
        if image + text > self._max_positions:
            raise ValueError(
                f"{image} image tokens and {text} text tokens make {image + text}, but the encoder "
                f"has {self._max_positions} positions: shorten the prompt or the image"
            )
        embeds = jnp.concatenate([image_features.astype(text_embeds.dtype), text_embeds], axis=1)
        image_mask = jnp.ones(image_features.shape[:2], bool)
        return embeds, jnp.concatenate([image_mask, attention_mask.astype(bool)], axis=1)

    def decode(
        self,
        decoder_input_ids: jax.Array,
        encoder_hidden_states: jax.Array,
        encoder_attention_mask: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Teacher forcing: int[B, L] tokens -> float32[B, L, V] logits of their successors."""
        length, limit = decoder_input_ids.shape[1], self._max_positions
        if length > limit:
            raise ValueError(
                f"{length} decoder tokens were given; the decoder has {limit} positions"
            )
        hidden = self.decoder(
            self.embed(decoder_input_ids), encoder_hidden_states, encoder_attention_mask, key=key
        )
        return self.unembed(hidden)

    def cross_attention_cache(
        self, encoder_hidden_states: jax.Array, *, row_major: bool = False
    ) -> tuple[KVCacheLayer, ...]:
        """Cross-attention keys and values of float[B, M, D], computed once for all beams."""
        return self.decoder.cross_attention_cache(encoder_hidden_states, _cache_layout(row_major))

    def init_cache(
        self, batch: int, beams: int, tokens: int, *, row_major: bool = False
    ) -> DecoderCache:
        """An empty self-attention cache with room for `tokens` decoder tokens.

        With `row_major` the heads of a row are contiguous: the layout that TPUs write fast and that
        the decode kernels read.
        """
        text = self.config.text
        return empty_cache(
            _cache_layout(row_major),
            layers=text.decoder_layers,
            batch=batch,
            beams=beams,
            heads=text.decoder_attention_heads,
            tokens=tokens,
            dim=text.d_model,
            dtype=self.dtype,
        )

    def unembedding(self, multiple: int = 1) -> jax.Array:
        """float[D, V], the transposed output projection for `decode_step`.

        V is filled up to a multiple of `multiple` with zeros, of which `decode_step` returns none.

        For 2 to 12 rows XLA:CPU is 1.2 to 1.5 times as fast with it as with the table float[V, D];
        for a single row they tie. It costs one copy of the table per call.
        """
        weight = self._head.weight(self.dtype).T
        missing = -weight.shape[1] % multiple
        return lax.optimization_barrier(jnp.pad(weight, ((0, 0), (0, missing))))

    def decode_step(
        self,
        tokens: jax.Array,
        index: jax.Array,
        cache: DecoderCache,
        cross_cache: tuple[KVCacheLayer, ...],
        encoder_attention_mask: jax.Array,
        unembedding: jax.Array | None = None,
    ) -> tuple[jax.Array, DecoderCache]:
        """int[B, K] tokens at position `index` -> float32[B, K, V] logits, and the filled cache.

        `unembedding` is the value of `unembedding()`, made once before the first step.
        """
        hidden, cache = self.decoder.step(
            self.embed(tokens), index, cache, cross_cache, encoder_attention_mask
        )
        if unembedding is None:
            return self.unembed(hidden), cache
        with jax.named_scope("logits"):
            logits = jnp.matmul(hidden, unembedding, preferred_element_type=jnp.float32)
            return self._scale_and_shift(logits[..., : self._head.vocab_size]), cache

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int[...] -> float[..., D]."""
        embeds = self.shared(tokens, self.dtype)
        if self.config.text.scale_embedding:
            embeds = embeds * self.config.text.d_model**0.5
        return embeds

    @jax.named_scope("logits")
    def unembed(self, hidden: jax.Array) -> jax.Array:
        """float[..., D] -> float32[..., V]."""
        logits = jnp.einsum(
            "...d,vd->...v",
            hidden,
            self._head.weight(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        return self._scale_and_shift(logits)

    def unembedding_weights(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
        """Weight float[V, D] in `dtype` and bias float32[V], or None, of weights without int8."""
        bias = self.final_logits_bias
        return self._head.weight(dtype), None if bias is None else bias[...].astype(jnp.float32)

    def _scale_and_shift(self, logits: jax.Array) -> jax.Array:
        if self._head.scale is not None:
            logits = logits * self._head.scale[...]
        if self.final_logits_bias is None:
            return logits
        return logits + self.final_logits_bias[...].astype(jnp.float32)

    @property
    def _head(self) -> Embedding:
        return self.shared if self.lm_head is None else self.lm_head

    @property
    def _max_positions(self) -> int:
        return self.config.text.max_position_embeddings


def _cache_layout(row_major: bool) -> type[KVCacheLayer]:
    return KVCacheRowMajor if row_major else KVCacheHeadMajor
