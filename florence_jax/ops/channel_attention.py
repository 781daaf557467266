"""DaViT's channel attention: a reference form and a form folded into the projections.

There are two versions. Florence-2's (`v2`) compares queries with keys, scales the scores by the
number of tokens ** -0.5 and mixes values. The paper's compares keys with values, scales by a
group's width ** -0.5 and mixes queries.

Shapes: B images, S tokens of a map, C channels, N groups, E channels of a group, M blocks of
        channels, L channels of a block.
Source: "DaViT: Dual Attention Vision Transformers", https://arxiv.org/abs/2204.03645.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from florence_jax.ops.pallas_primitive import LANES


def channel_attention_reference(qkv_BSGNE: jax.Array, *, v2: bool = True) -> jax.Array:
    """Channel attention within each group, float[B, S, 3, N, E] -> float[B, S, N, E]."""
    dtype = qkv_BSGNE.dtype
    q_BSNE, k_BSNE, v_BSNE = _roles(*jnp.unstack(qkv_BSGNE, axis=2), v2=v2)
    scale = _scale(qkv_BSGNE.shape[1], qkv_BSGNE.shape[-1], v2=v2)
    scores = jnp.einsum("bsne,bsnf->bnef", q_BSNE, k_BSNE, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * scale, axis=-1).astype(dtype)
    return jnp.einsum("bnef,bsnf->bsne", weights, v_BSNE)


def channel_attention_folded(
    x_BSC: jax.Array,
    qkv_kernel: jax.Array,
    qkv_bias: jax.Array,
    proj_kernel: jax.Array,
    proj_bias: jax.Array,
    *,
    num_groups: int,
    v2: bool = True,
) -> jax.Array:
    """QKV projection, channel attention and output projection, with the attention folded into the
    last.

    Mixing channels is linear in the values, so the attention weights are multiplied into the output
    projection, a C x C matrix per image, instead of into the map. Channels are taken in blocks of
    128, which fill a TPU's lanes; scores between groups of a block are masked.

    Args:
        x_BSC: float[B, S, C].
        qkv_kernel: float[C, 3C]. qkv_bias: float[3C].
        proj_kernel: float[C, C]. proj_bias: float[C].
        num_groups: N.
        v2: Florence-2's version; False is the paper's.

    Returns:
        float[B, S, C].
    """
    batch, tokens, dim = x_BSC.shape
    q, k, v = _roles(*project_qkv(x_BSC, qkv_kernel, qkv_bias), v2=v2)
    group = dim // num_groups
    scale = _scale(tokens, group, v2=v2)
    block = LANES if dim % LANES == 0 and LANES % group == 0 else group
    q, k = (part.reshape(batch, tokens, dim // block, block) for part in (q, k))
    scores = jnp.einsum("bsml,bsmk->bmlk", q, k, preferred_element_type=jnp.float32)
    group_of = jnp.arange(block) // group
    scores = jnp.where(group_of[:, None] == group_of, scores * scale, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(x_BSC.dtype)
    projection = proj_kernel.reshape(dim // block, block, dim)
    mixed = jnp.einsum("bmlk,mlc->bmkc", weights, projection, preferred_element_type=jnp.float32)
    mixed = mixed.astype(x_BSC.dtype).reshape(batch, dim, dim)
    return jnp.einsum("bsl,blc->bsc", v, mixed) + proj_bias


def _roles(
    q: jax.Array, k: jax.Array, v: jax.Array, *, v2: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is compared, with what, and what is mixed."""
    return (q, k, v) if v2 else (k, v, q)


def _scale(tokens: int, group: int, *, v2: bool) -> float:
    return (tokens if v2 else group) ** -0.5


def project_qkv(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    """Project to queries, keys and values by one product each: splitting a joint product moves
    data.
    """
    kernels, biases = jnp.split(kernel, 3, axis=-1), jnp.split(bias, 3)
    return tuple(x @ part + shift for part, shift in zip(kernels, biases, strict=True))
