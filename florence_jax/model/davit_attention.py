"""DaViT's two kinds of attention, each in the form that is fastest where it is compiled for.

Shapes: B images, H W grid, C channels, N heads or groups, E channels of a head, P window side,
        S tokens of a window or of a map.
Source: "DaViT: Dual Attention Vision Transformers", https://arxiv.org/abs/2204.03645.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from florence_jax.model.layers import Linear, attend
from florence_jax.ops.davit_attention_tpu import channel_attention, window_attention
from florence_jax.ops.window_partition import from_windows, into_windows, strips_fit
from florence_jax.sharding.activations import axis_size, constrain


class WindowAttention(nnx.Module):
    """Self-attention among the tokens of one window.

    A map that the window does not divide is padded with zeros at its right and bottom. As in the
    reference, the padding is not masked: its keys (the bias of `qkv`) take part in the softmax.
    """

    def __init__(
        self, dim: int, num_heads: int, window_size: int, qkv_bias: bool, *, rngs: nnx.Rngs | None
    ):
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias, rngs=rngs)
        self.proj = Linear(dim, dim, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        _, height, width, _ = x_BHWC.shape
        side = self.window_size
        x = jnp.pad(x_BHWC, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        if strips_fit(x, side=side, num_heads=self.num_heads) and not _is_adapted(self):
            y = lax.platform_dependent(x, tpu=self.by_strips, default=self.by_windows)
        else:
            y = self.by_windows(x)
        return y[:, :height, :width]

    def by_windows(self, x_BHWC: jax.Array) -> jax.Array:
        """Attention within each window of a map that the window divides."""
        x_BSC = into_windows(x_BHWC, self.window_size)
        y_BSC = _for_platform(self, x_BSC, cpu=self.by_heads)
        return from_windows(y_BSC, x_BHWC.shape, self.window_size)

    def by_strips(self, x_BHWC: jax.Array) -> jax.Array:
        """The same for XLA:TPU, where a kernel can take it."""
        # Not with the module: Pallas takes a quarter of a second to import.
        from florence_jax.ops.window_attention_pallas import attend_by_strips

        return attend_by_strips(x_BHWC, *_qkv_and_proj(self, x_BHWC.dtype))

    def by_heads(self, x_BSC: jax.Array) -> jax.Array:
        """Attention within each window, float[B, S, C] -> float[B, S, C]."""
        qkv = _by_heads(self.qkv, x_BSC, self.num_heads)
        q_BNSE, k_BNSE, v_BNSE = qkv.transpose(2, 0, 3, 1, 4)
        y_BNSE = attend(q_BNSE, k_BNSE, v_BNSE)
        return per_token(self.proj, y_BNSE.swapaxes(1, 2).reshape(x_BSC.shape))

    def by_lanes(self, x_BSC: jax.Array) -> jax.Array:
        """The same for XLA:TPU."""
        weights = _qkv_and_proj(self, x_BSC.dtype)
        return window_attention(x_BSC, *weights, num_heads=self.num_heads)


class ChannelAttention(nnx.Module):
    """Self-attention among the channels of one group; a channel's embedding is its whole map.

    The softmax is scaled by the number of tokens ** -0.5, not by the group's width.
    """

    def __init__(self, dim: int, num_groups: int, qkv_bias: bool, *, rngs: nnx.Rngs | None):
        self.num_groups = num_groups
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias, rngs=rngs)
        self.proj = Linear(dim, dim, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        batch, height, width, dim = x_BHWC.shape
        x_BSC = x_BHWC.reshape(batch, height * width, dim)
        # On XLA:CPU, too, folding the attention into its projection wins, 57 to 31 ms in the first
        # stage at 768 px, where there are tokens enough to repay what each image costs. It cannot
        # run small ones of these products in bfloat16.
        folded = x_BHWC.dtype == jnp.float32 and height * width >= 2 * dim
        cpu = self.by_lanes if folded else self.by_heads
        return _for_platform(self, x_BSC, cpu=cpu).reshape(x_BHWC.shape)

    def by_heads(self, x_BSC: jax.Array) -> jax.Array:
        """Attention over a map's tokens, float[B, S, C] -> float[B, S, C]."""
        tokens = x_BSC.shape[1]
        qkv = _by_heads(self.qkv, x_BSC, self.num_groups)
        q_BSNE, k_BSNE, v_BSNE = jnp.unstack(qkv, axis=2)
        scores = jnp.einsum("bsne,bsnf->bnef", q_BSNE, k_BSNE, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * tokens**-0.5, axis=-1).astype(x_BSC.dtype)
        y_BSNE = jnp.einsum("bnef,bsnf->bsne", weights, v_BSNE)
        return per_token(self.proj, y_BSNE.reshape(x_BSC.shape))

    def by_lanes(self, x_BSC: jax.Array) -> jax.Array:
        """The same for XLA:TPU, and for many tokens on XLA:CPU."""
        weights = _qkv_and_proj(self, x_BSC.dtype)
        return channel_attention(x_BSC, *weights, num_groups=self.num_groups)


def _by_heads(qkv: Linear, x_BSC: jax.Array, heads: int) -> jax.Array:
    """Queries, keys and values of each head, float[B, S, 3, N, E]."""
    shape = (*x_BSC.shape[:2], 3, heads, x_BSC.shape[-1] // heads)
    if axis_size("tensor") == 1:
        return per_token(qkv, x_BSC).reshape(shape)
    # Each device's columns of the kernel are neighbours, and those of its heads are not: the kernel
    # is moved, which the compiler would do to the activations.
    kernel = qkv.kernel[...].astype(x_BSC.dtype).reshape(-1, *shape[2:])
    kernel = constrain(kernel, None, None, "tensor")
    y = jnp.einsum("bsc,cgne->bsgne", x_BSC, kernel)
    if qkv.bias is not None:
        y = y + constrain(qkv.bias[...].astype(y.dtype).reshape(shape[2:]), None, "tensor")
    y = constrain(y, "batch", None, None, "tensor")
    return y if qkv.adapter is None else y + qkv.adapter(x_BSC).reshape(shape)


def _for_platform(
    layer: WindowAttention | ChannelAttention,
    x_BSC: jax.Array,
    cpu: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    # An adapter adds to what a linear layer returns, which the form by lanes never computes whole;
    # and lanes cross the heads that a mesh divides.
    if _is_adapted(layer) or axis_size("tensor") > 1:
        return layer.by_heads(x_BSC)
    return lax.platform_dependent(x_BSC, cpu=cpu, tpu=layer.by_lanes, default=layer.by_heads)


def _is_adapted(layer: WindowAttention | ChannelAttention) -> bool:
    return layer.qkv.adapter is not None or layer.proj.adapter is not None


def _qkv_and_proj(
    layer: WindowAttention | ChannelAttention, dtype: jnp.dtype
) -> tuple[jax.Array, ...]:
    return *layer.qkv.kernel_and_bias(dtype), *layer.proj.kernel_and_bias(dtype)


def per_token(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Apply `function` to the rows of float[tokens, C].

    XLA:CPU's library for products takes up to 1.7 times as long for a left side of more axes.
    """
    y = function(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])
