"""The image encoder's maths as arrays that fill a TPU's vector registers, 128 lanes wide.

XLA:TPU pads the last axis of every array to 128 lanes and moves data whenever that axis changes.
The published models have 32-channel heads and groups, 3-channel images and an exact GELU, which
fill a quarter of the lanes, a fortieth, and the vector unit. Same numbers, other shapes.

Shapes: B images, H W grid, C channels, S tokens of a window or of a map, N heads, E channels of a
        head, M blocks of channels, L channels of a block.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

LANES = 128

# log2 of the normal distribution's upper tail at a >= 0, by powers of a: minimax on [0, 7] with an
# error of 1e-5 up to 4. The last one is negative, so the tail vanishes as it should far outside.
_LOG2_TAIL = (
    -0.9999958276748657,
    -1.1512378454208374,
    -0.4585154056549072,
    -0.053889352828264236,
    0.00846280250698328,
    -0.0009162045898847282,
    5.9403275372460485e-05,
    -1.7059683159459382e-06,
)


def gelu_by_exponential(x: jax.Array) -> jax.Array:
    """The exact GELU for bfloat16: max(x, 0) - |x| tail(|x|), a polynomial and one exponential.

    Rounds to the same bfloat16 as the true value wherever |x| < 4. It costs so little that an MLP
    stays bound by its products.
    """
    y = x.astype(jnp.float32)
    distance = jnp.abs(y)
    log2_tail = jnp.full_like(distance, _LOG2_TAIL[-1])
    for coefficient in _LOG2_TAIL[-2::-1]:
        log2_tail = log2_tail * distance + coefficient
    return (jnp.maximum(y, 0.0) - distance * jnp.exp2(log2_tail)).astype(x.dtype)


def conv_by_columns(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """A strided convolution whose input columns are folded into channels, `stride` at a time.

    float[B, H, W, C], float[size, size, C, D] -> float[B, H', W', D]. Needs W to be a multiple of
    `stride`, and 2 padding < size, stride <= size <= padding + stride: each output then reads two
    folded columns.
    """
    batch, height, width, dim = x.shape
    size = kernel.shape[0]
    # Tap t reads column stride * w + t - padding, which is place t + stride - padding of the two.
    taps = ((0, 0), (stride - padding, padding + stride - size), (0, 0), (0, 0))
    kernel = jnp.pad(kernel, taps).reshape(size, 2, stride * dim, -1)
    return lax.conv_general_dilated(
        x.reshape(batch, height, width // stride, stride * dim),
        kernel,
        window_strides=(stride, 1),
        padding=((padding, padding), (1, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def columns_fit(width: int, *, size: int, stride: int, padding: int) -> bool:
    """Whether `conv_by_columns` can do this convolution."""
    return width % stride == 0 and 2 * padding < size and stride <= size <= padding + stride


def window_attention(
    x_BSC: jax.Array,
    qkv_kernel: jax.Array,
    qkv_bias: jax.Array,
    proj_kernel: jax.Array,
    proj_bias: jax.Array,
    *,
    num_heads: int,
) -> jax.Array:
    """Multi-head self-attention with a product for each of q, k and v, which then need no split."""
    q, k, v = (
        part.reshape(*x_BSC.shape[:2], num_heads, -1)
        for part in _project(x_BSC, qkv_kernel, qkv_bias)
    )
    scores = jnp.einsum("bqne,bsne->bnqs", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(x_BSC.dtype)
    y_BSC = jnp.einsum("bnqs,bsne->bqne", weights, v).reshape(x_BSC.shape)
    return y_BSC @ proj_kernel + proj_bias


def channel_attention(
    x_BSC: jax.Array,
    qkv_kernel: jax.Array,
    qkv_bias: jax.Array,
    proj_kernel: jax.Array,
    proj_bias: jax.Array,
    *,
    num_groups: int,
) -> jax.Array:
    """Attention among the channels of a group, folded into its projection.

    Channels are taken 128 at a time, whatever groups they hold; scores across groups are masked.
    The mixing of channels is linear in the values, so it is multiplied into the projection, a
    C x C matrix for each image, and not into the map.
    """
    batch, tokens, dim = x_BSC.shape
    q, k, v = _project(x_BSC, qkv_kernel, qkv_bias)
    group = dim // num_groups
    block = LANES if dim % LANES == 0 and LANES % group == 0 else group
    q, k = (part.reshape(batch, tokens, dim // block, block) for part in (q, k))
    scores = jnp.einsum("bsml,bsmk->bmlk", q, k, preferred_element_type=jnp.float32)
    group_of = jnp.arange(block) // group
    scores = jnp.where(group_of[:, None] == group_of, scores * tokens**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(x_BSC.dtype)
    projection = proj_kernel.reshape(dim // block, block, dim)
    mixed = jnp.einsum("bmlk,mlc->bmkc", weights, projection, preferred_element_type=jnp.float32)
    mixed = mixed.astype(x_BSC.dtype).reshape(batch, dim, dim)
    return jnp.einsum("bsl,blc->bsc", v, mixed) + proj_bias


def _project(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    kernels, biases = jnp.split(kernel, 3, axis=-1), jnp.split(bias, 3)
    return tuple(x @ part + shift for part, shift in zip(kernels, biases, strict=True))
