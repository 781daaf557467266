"""Strided convolutions of the patch embeddings, with few input channels folded for TPUs.

Shapes: B images, H W grid, C input channels, D output channels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.pallas_primitive import LANES


def strided_conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """float[B, H, W, C], float[kh, kw, C, D] -> float[B, H', W', D], padded symmetrically."""
    reference = functools.partial(_xla_conv, stride=stride, padding=padding)
    few_channels = x.shape[-1] * stride < LANES
    if few_channels and space_to_depth_applies(
        x.shape[2], size=kernel.shape[0], stride=stride, padding=padding
    ):
        folded = functools.partial(conv_space_to_depth, stride=stride, padding=padding)
        return lax.platform_dependent(x, kernel, tpu=folded, default=reference)
    return reference(x, kernel)


def space_to_depth_applies(width: int, *, size: int, stride: int, padding: int) -> bool:
    """Whether `conv_space_to_depth` computes this convolution."""
    return width % stride == 0 and 2 * padding < size and stride <= size <= padding + stride


def conv_space_to_depth(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """A strided convolution with `stride` neighbouring input columns folded into channels.

    XLA:TPU pads channels to 128 lanes, so an image of 3 channels would fill a fortieth of them.

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


def _xla_conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
