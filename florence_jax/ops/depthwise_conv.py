"""The 3x3 convolution of each channel by itself, added to its input, and its gradient.

What is fastest differs by backend, backward even more than forward: XLA:CPU's own gradient keeps
nine shifted copies of the input, which is most of a training step's memory.

Shapes: B images, H W grid, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from florence_jax.ops.depthwise_conv_xla import (
    compiled_apart,
    depthwise_conv_by_convolution,
    depthwise_conv_by_shifts,
    strip_rows,
    taps_by_convolution,
    taps_by_rows,
)
from florence_jax.sharding.activations import rows_are_local


@jax.custom_vjp
def depthwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """float[B, H, W, C], [3, 3, 1, C] and [C] of one dtype -> float[B, H, W, C].

    Has a reverse-mode derivative of its own, and therefore none in forward mode (`jax.jvp`).
    """
    forms: dict[str, Callable[..., jax.Array]] = {"cpu": compiled_apart(depthwise_conv_by_shifts)}
    if x.dtype == jnp.bfloat16 and strip_rows(*x.shape[1:]) and rows_are_local(x.shape[0]):
        # Not with the module: Pallas takes a quarter of a second to import.
        from florence_jax.ops.depthwise_conv_pallas import depthwise_conv_by_strips

        forms["tpu"] = depthwise_conv_by_strips
    return lax.platform_dependent(x, kernel, bias, **forms, default=depthwise_conv_by_convolution)


def _forward(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple]:
    return depthwise_conv(x, kernel, bias), (x, kernel)


def _backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel = residuals
    # The input's gradient is the same operation with the kernel turned around.
    dx = depthwise_conv(g, kernel[::-1, ::-1], jnp.zeros(x.shape[-1:], x.dtype))
    dkernel = lax.platform_dependent(
        x, g, cpu=compiled_apart(taps_by_rows), default=taps_by_convolution
    )
    return dx, dkernel, g.sum((0, 1, 2), dtype=jnp.float32).astype(g.dtype)


depthwise_conv.defvjp(_forward, _backward)
