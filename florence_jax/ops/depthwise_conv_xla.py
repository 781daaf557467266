"""XLA forms of the depthwise convolution with its residual, and of its kernel's gradient.

Shapes: B images, H W grid, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

_TAPS = tuple((row, column) for row in range(3) for column in range(3))


def depthwise_conv_xla(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """float[B, H, W, C], [3, 3, 1, C], [C] -> float[B, H, W, C], by XLA's grouped convolution."""
    return x + (_xla_conv(x, kernel) + bias)


def depthwise_conv_shifted_fma(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`depthwise_conv_xla` as nine shifted multiply-adds, one fused loop that XLA:CPU runs fast."""
    height, width = x.shape[1:3]
    padded = _padded(x).astype(jnp.float32)
    taps = kernel.astype(jnp.float32)
    total = x.astype(jnp.float32) + bias.astype(jnp.float32)
    for row, column in _TAPS:
        window = padded[:, row : row + height, column : column + width]
        total = total + window * taps[row, column, 0]
    return total.astype(x.dtype)


def kernel_grad_conv(x: jax.Array, g: jax.Array) -> jax.Array:
    """Gradient [3, 3, 1, C] of the kernel from the input and the output's gradient."""
    kernel = jax.ShapeDtypeStruct((3, 3, 1, x.shape[-1]), x.dtype)
    (dkernel,) = jax.linear_transpose(lambda kernel: _xla_conv(x, kernel), kernel)(g)
    return dkernel


def kernel_grad_rowwise(x: jax.Array, g: jax.Array) -> jax.Array:
    """`kernel_grad_conv` accumulated one row of the maps at a time.

    Adding whole rows fills the vector unit; XLA:CPU's sums over all but the last axis take six
    times as long. Images stay separate, so nothing moves between devices that share a batch.
    """
    height, width = x.shape[1:3]
    padded = _padded(x)

    def add_row(row: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        rows = lax.dynamic_slice_in_dim(padded, row, 3, axis=1).astype(jnp.float32)
        grad_row = lax.dynamic_index_in_dim(g, row, axis=1, keepdims=False).astype(jnp.float32)
        return tuple(
            total + rows[:, above, left : left + width] * grad_row
            for total, (above, left) in zip(sums, _TAPS, strict=True)
        )

    zero = jnp.zeros((x.shape[0], *x.shape[2:]), jnp.float32)
    sums = lax.fori_loop(0, height, add_row, (zero,) * len(_TAPS))
    taps = jnp.stack([total.sum((0, 1)) for total in sums])
    return taps.reshape(3, 3, 1, -1).astype(x.dtype)


def _padded(x: jax.Array) -> jax.Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))


def _xla_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def no_inline_jit(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Wrap `function` as a call that XLA does not inline, so that its result is computed once.

    XLA:CPU otherwise fuses cheap operations into each of their consumers: a norm and a residual
    after a depthwise convolution would compute the convolution four times.
    """
    compiled = jax.jit(function)

    def call(*arguments: jax.Array) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments)

    return call
