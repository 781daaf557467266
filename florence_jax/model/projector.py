"""The projector: feature maps of the image encoder to image tokens of the language model.

Shapes: B examples, F frames, H W grid, C channels of the image encoder, D model.
Source: https://arxiv.org/abs/2311.06242, section 4, and the published modelling code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from florence_jax.config import Florence2Config
from florence_jax.model.layers import LayerNorm, Linear, normal


class Projector(nnx.Module):
    """float[B, F, H, W, C] feature maps -> float[B, F + H*W, D] image tokens.

    Every cell gets its learned row and column position and its frame's cosine position. The tokens
    are each frame's mean over space, then each cell's mean over frames.
    """

    def __init__(self, config: Florence2Config, *, rngs: nnx.Rngs | None):
        dim, positions = config.vision.embed_dims[-1], config.max_image_positions
        half = dim // 2
        # Standard normal, as torch initialises the reference's position embeddings.
        self.row_positions = nnx.Param(normal(rngs, (positions, half), std=1.0))
        self.column_positions = nnx.Param(normal(rngs, (positions, dim - half), std=1.0))
        # A constant, but one that checkpoints carry in their own rounding: a leaf like the others,
        # so that it loads and round-trips; trainers freeze it.
        shape = (config.max_temporal_positions, dim)
        self.temporal_positions = nnx.Param(
            jnp.zeros(shape) if rngs is None else jnp.asarray(cosine_positions(*shape))
        )
        self.proj = Linear(dim, config.text.d_model, use_bias=False, rngs=rngs)
        self.norm = LayerNorm(config.text.d_model)

    @jax.named_scope("projector")
    def __call__(self, x_BFHWC: jax.Array) -> jax.Array:
        batch, frames, height, width, dim = x_BFHWC.shape
        dtype = x_BFHWC.dtype
        column_WC = self.column_positions[:width].astype(dtype)
        row_HC = self.row_positions[:height].astype(dtype)
        # Column channels come first: the reference concatenates x before y.
        position_HWC = jnp.concatenate(
            [
                jnp.broadcast_to(column_WC[None], (height, width, column_WC.shape[-1])),
                jnp.broadcast_to(row_HC[:, None], (height, width, row_HC.shape[-1])),
            ],
            axis=-1,
        )
        frame_FC = self.temporal_positions[:frames].astype(dtype)
        x = x_BFHWC + position_HWC + frame_FC[:, None, None]
        x = x.reshape(batch, frames, height * width, dim)
        means = [_mean(x, axis=2), _mean(x, axis=1)]
        return self.norm(self.proj(jnp.concatenate(means, axis=1)))


def cosine_positions(length: int, dim: int) -> np.ndarray:
    """float32[length, dim] sinusoids with sine in even and cosine in odd channels (base 10,000)."""
    half = dim // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / half))
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    table = np.empty((length, dim), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table


def _mean(x: jax.Array, axis: int) -> jax.Array:
    return x.mean(axis, dtype=jnp.float32).astype(x.dtype)
