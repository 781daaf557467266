"""Depthwise 3x3 convolution added to its input, and its gradient, dispatched by platform.

The fastest form differs by backend, more so in the backward pass: XLA:CPU's own gradient keeps nine
shifted copies of the input, most of a training step's memory.

Shapes: B images, H W grid, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.matmul_precision import current_precision, same_precision
from florence_jax.ops.depthwise_conv_pallas import depthwise_conv_pallas, pallas_supported
from florence_jax.ops.depthwise_conv_xla import (
    depthwise_conv_shifted_fma,
    depthwise_conv_xla,
    kernel_grad_conv,
    kernel_grad_rowwise,
    no_inline_jit,
)


def depthwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """float[B, H, W, C], [3, 3, 1, C] and [C] of one dtype -> float[B, H, W, C].

    Has a reverse-mode derivative of its own, and therefore none in forward mode (`jax.jvp`).
    """
    return _depthwise_conv(x, kernel, bias, current_precision())


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _depthwise_conv(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, precision: str | None
) -> jax.Array:
    forms: dict[str, Callable[..., jax.Array]] = {"cpu": no_inline_jit(depthwise_conv_shifted_fma)}
    if pallas_supported(x):
        forms["tpu"] = depthwise_conv_pallas
    return lax.platform_dependent(x, kernel, bias, **forms, default=depthwise_conv_xla)


def _forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, precision: str | None
) -> tuple[jax.Array, tuple]:
    with same_precision(precision):
        return _depthwise_conv(x, kernel, bias, precision), (x, kernel)


def _backward(
    precision: str | None, residuals: tuple, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel = residuals
    with same_precision(precision):
        # The input's gradient is the same operation with the kernel flipped.
        dx = depthwise_conv(g, kernel[::-1, ::-1], jnp.zeros(x.shape[-1:], x.dtype))
        dkernel = lax.platform_dependent(
            x, g, cpu=no_inline_jit(kernel_grad_rowwise), default=kernel_grad_conv
        )
    return dx, dkernel, g.sum((0, 1, 2), dtype=jnp.float32).astype(g.dtype)


_depthwise_conv.defvjp(_forward, _backward)
