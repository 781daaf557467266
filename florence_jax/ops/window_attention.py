"""DaViT's attention within square windows of a map: partition, XLA forms.

Shapes: B images or windows, H W grid, C channels, N heads, E channels of a head, P window side,
        S = P * P tokens of a window.
Source: "DaViT: Dual Attention Vision Transformers", https://arxiv.org/abs/2204.03645.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from florence_jax.ops.attention import dot_product_attention
from florence_jax.ops.channel_attention import project_qkv


def window_partition(x_BHWC: jax.Array, side: int) -> jax.Array:
    """Split a map into windows: [B, H, W, C], H and W multiples of P -> [B * H/P * W/P, S, C]."""
    batch, height, width, dim = x_BHWC.shape
    x = x_BHWC.reshape(batch, height // side, side, width // side, side, dim)
    return x.swapaxes(2, 3).reshape(-1, side * side, dim)


def window_reverse(y_BSC: jax.Array, shape: tuple[int, ...], side: int) -> jax.Array:
    """Invert `window_partition` for a map of `shape` [B, H, W, C]."""
    batch, height, width, dim = shape
    y = y_BSC.reshape(batch, height // side, width // side, side, side, dim)
    return y.swapaxes(2, 3).reshape(shape)


def window_attention_reference(qkv_BSGNE: jax.Array) -> jax.Array:
    """Multi-head self-attention of each window, float[B, S, 3, N, E] -> float[B, S, N, E]."""
    q_BNSE, k_BNSE, v_BNSE = qkv_BSGNE.transpose(2, 0, 3, 1, 4)
    return dot_product_attention(q_BNSE, k_BNSE, v_BNSE).swapaxes(1, 2)


def window_attention_folded(
    x_BSC: jax.Array,
    qkv_kernel: jax.Array,
    qkv_bias: jax.Array,
    proj_kernel: jax.Array,
    proj_bias: jax.Array,
    *,
    num_heads: int,
) -> jax.Array:
    """QKV projection, attention and output projection in layouts that XLA:TPU does not move.

    Args:
        x_BSC: float[B, S, C].
        qkv_kernel: float[C, 3C]. qkv_bias: float[3C].
        proj_kernel: float[C, C]. proj_bias: float[C].
        num_heads: N.

    Returns:
        float[B, S, C].
    """
    q, k, v = (
        part.reshape(*x_BSC.shape[:2], num_heads, -1)
        for part in project_qkv(x_BSC, qkv_kernel, qkv_bias)
    )
    scores = jnp.einsum("bqne,bsne->bnqs", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(x_BSC.dtype)
    y_BSC = jnp.einsum("bnqs,bsne->bqne", weights, v).reshape(x_BSC.shape)
    return y_BSC @ proj_kernel + proj_bias
