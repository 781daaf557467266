"""DaViT's two kinds of attention as layers: window attention and channel attention.

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

from florence_jax.model.layers import Linear, per_token
from florence_jax.ops import window_attention_core_pallas, window_attention_pallas
from florence_jax.ops.channel_attention import channel_attention_folded, channel_attention_reference
from florence_jax.ops.window_attention import (
    window_attention_folded,
    window_attention_reference,
    window_partition,
    window_reverse,
)
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

    @jax.named_scope("window_attention")
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        _, height, width, _ = x_BHWC.shape
        side = self.window_size
        x = jnp.pad(x_BHWC, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        sizes = {"side": side, "num_heads": self.num_heads}
        if not window_attention_core_pallas.pallas_supported(x, **sizes):
            y = self._windowed(x)
        else:
            plain = self.qkv.is_plain and self.proj.is_plain
            fused = plain and window_attention_pallas.pallas_supported(x, **sizes)
            tpu = self._fused if fused else self._projected
            y = lax.platform_dependent(x, tpu=tpu, default=self._windowed)
        return y[:, :height, :width]

    def _fused(self, x_BHWC: jax.Array) -> jax.Array:
        weights = _qkv_and_proj(self, x_BHWC.dtype)
        return window_attention_core_pallas.window_attention(x_BHWC, *weights)

    def _projected(self, x_BHWC: jax.Array) -> jax.Array:
        y_BHWC = window_attention_core_pallas.window_attention_core(self.qkv(x_BHWC))
        return self.proj(y_BHWC)

    def _windowed(self, x_BHWC: jax.Array) -> jax.Array:
        x_BSC = window_partition(x_BHWC, self.window_size)
        y_BSC = _dispatch_platform(self, x_BSC, cpu=self._reference)
        return window_reverse(y_BSC, x_BHWC.shape, self.window_size)

    def _reference(self, x_BSC: jax.Array) -> jax.Array:
        y_BSNE = window_attention_reference(_project_qkv(self.qkv, x_BSC, self.num_heads))
        return per_token(self.proj, y_BSNE.reshape(x_BSC.shape))

    def _folded(self, x_BSC: jax.Array) -> jax.Array:
        weights = _qkv_and_proj(self, x_BSC.dtype)
        return window_attention_folded(x_BSC, *weights, num_heads=self.num_heads)


class ChannelAttention(nnx.Module):
    """Self-attention among the channels of one group; a channel's embedding is its whole map."""

    def __init__(
        self, dim: int, num_groups: int, qkv_bias: bool, *, v2: bool, rngs: nnx.Rngs | None
    ):
        self.num_groups = num_groups
        self.v2 = v2
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias, rngs=rngs)
        self.proj = Linear(dim, dim, rngs=rngs)

    @jax.named_scope("channel_attention")
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        batch, height, width, dim = x_BHWC.shape
        x_BSC = x_BHWC.reshape(batch, height * width, dim)
        # On XLA:CPU the folded form also wins where there are enough tokens to repay its cost per
        # image (57 -> 31 ms in the first stage at 768 px). XLA:CPU cannot run some of its small
        # products in bfloat16.
        many_tokens = x_BHWC.dtype == jnp.float32 and height * width >= 2 * dim
        cpu = self._folded if many_tokens else self._reference
        return _dispatch_platform(self, x_BSC, cpu=cpu).reshape(x_BHWC.shape)

    def _reference(self, x_BSC: jax.Array) -> jax.Array:
        qkv_BSGNE = _project_qkv(self.qkv, x_BSC, self.num_groups)
        y_BSNE = channel_attention_reference(qkv_BSGNE, v2=self.v2)
        return per_token(self.proj, y_BSNE.reshape(x_BSC.shape))

    def _folded(self, x_BSC: jax.Array) -> jax.Array:
        weights = _qkv_and_proj(self, x_BSC.dtype)
        return channel_attention_folded(x_BSC, *weights, num_groups=self.num_groups, v2=self.v2)


def _project_qkv(qkv: Linear, x_BSC: jax.Array, heads: int) -> jax.Array:
    """Queries, keys and values of each head, float[B, S, 3, N, E]."""
    shape = (*x_BSC.shape[:2], 3, heads, x_BSC.shape[-1] // heads)
    if axis_size("tensor") == 1:
        return per_token(qkv, x_BSC).reshape(shape)
    # Each device holds neighbouring columns of the kernel, which are not those of its heads. Moving
    # the kernel is cheaper than moving the activations, as the compiler would.
    kernel = qkv.kernel[...].astype(x_BSC.dtype).reshape(-1, *shape[2:])
    kernel = constrain(kernel, None, None, "tensor")
    y = jnp.einsum("bsc,cgne->bsgne", x_BSC, kernel)
    if qkv.bias is not None:
        y = y + constrain(qkv.bias[...].astype(y.dtype).reshape(shape[2:]), None, "tensor")
    y = constrain(y, "batch", None, None, "tensor")
    return y if qkv.adapter is None else y + qkv.adapter(x_BSC).reshape(shape)


def _dispatch_platform(
    layer: WindowAttention | ChannelAttention,
    x_BSC: jax.Array,
    cpu: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    # An adapter adds to a linear layer's output, which the folded form never computes; and a mesh
    # that divides heads would cut through its blocks of channels.
    if _is_adapted(layer) or axis_size("tensor") > 1:
        return layer._reference(x_BSC)
    return lax.platform_dependent(x_BSC, cpu=cpu, tpu=layer._folded, default=layer._reference)


def _is_adapted(layer: WindowAttention | ChannelAttention) -> bool:
    return layer.qkv.adapter is not None or layer.proj.adapter is not None


def _qkv_and_proj(
    layer: WindowAttention | ChannelAttention, dtype: jnp.dtype
) -> tuple[jax.Array, ...]:
    return *layer.qkv.kernel_and_bias(dtype), *layer.proj.kernel_and_bias(dtype)
