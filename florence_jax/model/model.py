"""`Model`: Florence-2 as functions of its parameters, compiled once per shape."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from florence_jax.config import Florence2Config
from florence_jax.matmul_precision import at_model_precision
from florence_jax.model.florence2 import Florence2
from florence_jax.model.handle import Handle, Params, structure
from florence_jax.sharding.batch import use_mesh


@dataclass(frozen=True, kw_only=True)
class Model(Handle):
    """A Florence-2 without its weights: hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        config: the sizes.
        dtype, matmul_precision, layout: as in `Handle`.
    """

    config: Florence2Config

    def __repr__(self) -> str:
        mesh = "" if self.mesh is None else f", mesh {dict(self.mesh.shape)}"
        return f"Model({self.config.describe()}, {self.dtype}{mesh})"

    def build(self, rngs: nnx.Rngs | None) -> Florence2:
        """The modules, with zeros for weights where there are no `rngs`."""
        return Florence2(self.config, dtype=self.dtype, rngs=rngs)

    def bind(self, params: Params) -> Florence2:
        """The modules with these weights in them; see `Handle.bind`."""
        return super().bind(params)

    def encode_image(self, params: Params, pixel_values: jax.Array) -> jax.Array:
        """Images float[B, H, W, 3] or frames float[B, F, H, W, 3] -> float[B, F + h*w, D]."""
        with use_mesh(self.mesh):
            return _encode_image(self, params, pixel_values)

    def logits(
        self,
        params: Params,
        *,
        pixel_values: jax.Array,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array,
    ) -> jax.Array:
        """Teacher-forced logits.

        Args:
            pixel_values: float[B, H, W, 3], normalised.
            input_ids: int[B, L], the text tokens alone; image tokens are put in front of them.
            attention_mask: [B, L], zero where a prompt is padded; by default where the pad id is.
            decoder_input_ids: int[B, T], starting with `decoder_start_token_id`.

        Returns:
            float32[B, T, V]: logits of the token after each decoder token.
        """
        if attention_mask is None:
            attention_mask = jnp.asarray(input_ids) != self.config.text.pad_token_id
        with use_mesh(self.mesh):
            return _logits(self, params, pixel_values, input_ids, attention_mask, decoder_input_ids)


def abstract_params(config: Florence2Config) -> Params:
    """The parameter tree's shapes and dtypes, without allocating any of it."""
    return structure(Model(config=config))[1]


@functools.partial(jax.jit, static_argnums=0)
@at_model_precision
def _encode_image(model: Model, params: Params, pixel_values: jax.Array) -> jax.Array:
    return model.bind(params).encode_image(pixel_values)


@functools.partial(jax.jit, static_argnums=0)
@at_model_precision
def _logits(
    model: Model,
    params: Params,
    pixel_values: jax.Array,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    decoder_input_ids: jax.Array,
) -> jax.Array:
    return model.bind(params)(pixel_values, input_ids, attention_mask, decoder_input_ids)
