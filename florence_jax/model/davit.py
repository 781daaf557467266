"""DaViT, the image encoder: windows attend in space, then groups of channels attend to each other.

Shapes: B images, H W grid, C channels, N heads or groups, E channels of a head, P window side,
        S tokens of a window or of a map.
Source: "DaViT: Dual Attention Vision Transformers", https://arxiv.org/abs/2204.03645.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from florence_jax.config import DaViTConfig
from florence_jax.model.lane_forms import channel_attention, window_attention
from florence_jax.model.layers import (
    MLP,
    Conv,
    DepthwiseConv,
    LayerNorm,
    Linear,
    Stack,
    attend,
    drop_path,
    fold_in,
    split,
)
from florence_jax.sharding.activations import axis_size, constrain


class DaViT(nnx.Module):
    """float[B, H, W, 3] pixels -> float[B, H/32, W/32, C] features."""

    def __init__(self, config: DaViTConfig, *, rngs: nnx.Rngs | None):
        # Two branches a block, spatial then channel, as the reference spreads its drop-path rates.
        rates = np.linspace(0.0, config.drop_path_rate, 2 * sum(config.depths)).tolist()
        stages, first = [], 0
        for stage, depth in enumerate(config.depths):
            last = first + 2 * depth
            stages.append(Stage(config, stage, rates[first:last], rngs=rngs))
            first = last
        self.stages = Stack(stages)

    def __call__(self, pixels_BHWC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        *_, features_BHWC = self.stage_outputs(pixels_BHWC, key=key)
        return features_BHWC

    def stage_outputs(
        self, x_BHWC: jax.Array, *, key: jax.Array | None = None
    ) -> Iterator[jax.Array]:
        """Each stage's feature map in turn; the last is the encoder's output."""
        for number, stage in enumerate(self.stages):
            x_BHWC = stage(x_BHWC, key=fold_in(key, number))
            yield x_BHWC


class Stage(nnx.Module):
    """Shrink the map by a strided convolution, then a stack of dual-attention blocks."""

    def __init__(
        self,
        config: DaViTConfig,
        stage: int,
        drop_path_rates: list[float],
        *,
        rngs: nnx.Rngs | None,
    ):
        # Of each block's two halves. The blocks themselves differ in nothing but their weights.
        self.drop_path_rates = tuple(zip(drop_path_rates[::2], drop_path_rates[1::2], strict=True))
        self.embed = PatchEmbed(config, stage, rngs=rngs)
        self.blocks = Stack(
            [DualBlock(config, stage, rngs=rngs) for _ in range(config.depths[stage])]
        )

    def __call__(self, x_BHWC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        x_BHWC = self.embed(x_BHWC)
        keys = split(key, self.blocks.depth, 2, 2)
        for number, (_, block) in enumerate(self.blocks.calls()):
            rates = self.drop_path_rates[number]
            x_BHWC = block(x_BHWC, None if keys is None else DropPath(rates, keys[number]))
        return x_BHWC


class PatchEmbed(nnx.Module):
    """A strided convolution, normalised before it (later stages) or after it (the stem)."""

    def __init__(self, config: DaViTConfig, stage: int, *, rngs: nnx.Rngs | None):
        in_dim = config.embed_dims[stage - 1] if stage else config.in_channels
        out_dim = config.embed_dims[stage]
        self.prenorm = config.patch_prenorm[stage]
        self.conv = Conv(
            in_dim,
            out_dim,
            size=config.patch_sizes[stage],
            stride=config.patch_strides[stage],
            padding=config.patch_paddings[stage],
            rngs=rngs,
        )
        self.norm = LayerNorm(in_dim if self.prenorm else out_dim)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        if self.prenorm:
            return self.conv(self.norm(x_BHWC))
        return self.norm(self.conv(x_BHWC))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DropPath:
    """What a block drops at random.

    Attributes:
        rates: of its two halves, known while it is traced.
        keys: [2, 2], for two branches in each half.
    """

    rates: tuple[float, float] = dataclasses.field(metadata={"static": True})
    keys: jax.Array


class DualBlock(nnx.Module):
    """Attention over space within windows, then over channels within groups."""

    def __init__(self, config: DaViTConfig, stage: int, *, rngs: nnx.Rngs | None):
        self.spatial = SpatialBlock(config, stage, rngs=rngs)
        self.channel = ChannelBlock(config, stage, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, drop: DropPath | None = None) -> jax.Array:
        x_BHWC = self.spatial(x_BHWC, drop, 0)
        return self.channel(x_BHWC, drop, 1)


class _Block(nnx.Module):
    """Depthwise convolution, attention, depthwise convolution, MLP: each added to its input."""

    def __init__(self, dim: int, mlp_ratio: float, *, rngs: nnx.Rngs | None):
        self.conv1 = DepthwiseConv(dim, rngs=rngs)
        self.norm1 = LayerNorm(dim)
        self.conv2 = DepthwiseConv(dim, rngs=rngs)
        self.norm2 = LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio), rngs=rngs)

    def attention(self, x_BHWC: jax.Array) -> jax.Array:
        raise TypeError("a block is either spatial or channel")

    def __call__(self, x_BHWC: jax.Array, drop: DropPath | None = None, half: int = 0) -> jax.Array:
        def add(x: jax.Array, branch: jax.Array, number: int) -> jax.Array:
            if drop is not None:
                branch = drop_path(branch, drop.rates[half], drop.keys[half, number])
            return x + branch

        x_BHWC = self.conv1(x_BHWC)
        x_BHWC = add(x_BHWC, self.attention(_per_token(self.norm1, x_BHWC)), 0)
        x_BHWC = self.conv2(x_BHWC)
        return add(x_BHWC, _per_token(lambda x: self.mlp(self.norm2(x)), x_BHWC), 1)


class SpatialBlock(_Block):
    def __init__(self, config: DaViTConfig, stage: int, *, rngs: nnx.Rngs | None):
        dim = config.embed_dims[stage]
        super().__init__(dim, config.mlp_ratio, rngs=rngs)
        self.window_attn = WindowAttention(
            dim, config.num_heads[stage], config.window_size, config.qkv_bias, rngs=rngs
        )

    def attention(self, x_BHWC: jax.Array) -> jax.Array:
        return self.window_attn(x_BHWC)


class ChannelBlock(_Block):
    def __init__(self, config: DaViTConfig, stage: int, *, rngs: nnx.Rngs | None):
        dim = config.embed_dims[stage]
        super().__init__(dim, config.mlp_ratio, rngs=rngs)
        self.channel_attn = ChannelAttention(
            dim, config.num_groups[stage], config.qkv_bias, rngs=rngs
        )

    def attention(self, x_BHWC: jax.Array) -> jax.Array:
        return self.channel_attn(x_BHWC)


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
        batch, height, width, dim = x_BHWC.shape
        side = self.window_size
        rows, columns = -(-height // side), -(-width // side)
        padding = ((0, 0), (0, rows * side - height), (0, columns * side - width), (0, 0))
        x = jnp.pad(x_BHWC, padding).reshape(batch, rows, side, columns, side, dim)
        x_BSC = x.swapaxes(2, 3).reshape(batch * rows * columns, side * side, dim)

        y_BSC = _for_platform(self, x_BSC)
        y = y_BSC.reshape(batch, rows, columns, side, side, dim).swapaxes(2, 3)
        return y.reshape(batch, rows * side, columns * side, dim)[:, :height, :width]

    def by_heads(self, x_BSC: jax.Array) -> jax.Array:
        """Attention within each window, float[B, S, C] -> float[B, S, C]."""
        qkv = _by_heads(self.qkv, x_BSC, self.num_heads)
        q_BNSE, k_BNSE, v_BNSE = qkv.transpose(2, 0, 3, 1, 4)
        y_BNSE = attend(q_BNSE, k_BNSE, v_BNSE)
        return _per_token(self.proj, y_BNSE.swapaxes(1, 2).reshape(x_BSC.shape))

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
        return _for_platform(self, x_BSC).reshape(x_BHWC.shape)

    def by_heads(self, x_BSC: jax.Array) -> jax.Array:
        """Attention over a map's tokens, float[B, S, C] -> float[B, S, C]."""
        tokens = x_BSC.shape[1]
        qkv = _by_heads(self.qkv, x_BSC, self.num_groups)
        q_BSNE, k_BSNE, v_BSNE = jnp.unstack(qkv, axis=2)
        scores = jnp.einsum("bsne,bsnf->bnef", q_BSNE, k_BSNE, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * tokens**-0.5, axis=-1).astype(x_BSC.dtype)
        y_BSNE = jnp.einsum("bnef,bsnf->bsne", weights, v_BSNE)
        return _per_token(self.proj, y_BSNE.reshape(x_BSC.shape))

    def by_lanes(self, x_BSC: jax.Array) -> jax.Array:
        """The same for XLA:TPU."""
        weights = _qkv_and_proj(self, x_BSC.dtype)
        return channel_attention(x_BSC, *weights, num_groups=self.num_groups)


def _by_heads(qkv: Linear, x_BSC: jax.Array, heads: int) -> jax.Array:
    """Queries, keys and values of each head, float[B, S, 3, N, E]."""
    shape = (*x_BSC.shape[:2], 3, heads, x_BSC.shape[-1] // heads)
    if axis_size("tensor") == 1:
        return _per_token(qkv, x_BSC).reshape(shape)
    # Each device's columns of the kernel are neighbours, and those of its heads are not: the kernel
    # is moved, which the compiler would do to the activations.
    kernel = qkv.kernel[...].astype(x_BSC.dtype).reshape(-1, *shape[2:])
    kernel = constrain(kernel, None, None, "tensor")
    y = jnp.einsum("bsc,cgne->bsgne", x_BSC, kernel)
    if qkv.bias is not None:
        y = y + constrain(qkv.bias[...].astype(y.dtype).reshape(shape[2:]), None, "tensor")
    y = constrain(y, "batch", None, None, "tensor")
    return y if qkv.adapter is None else y + qkv.adapter(x_BSC).reshape(shape)


def _for_platform(layer: WindowAttention | ChannelAttention, x_BSC: jax.Array) -> jax.Array:
    # An adapter adds to what a linear layer returns, which the TPU's form never computes whole; and
    # lanes cross the heads that a mesh divides.
    adapted = layer.qkv.adapter is not None or layer.proj.adapter is not None
    if adapted or axis_size("tensor") > 1:
        return layer.by_heads(x_BSC)
    return lax.platform_dependent(x_BSC, tpu=layer.by_lanes, default=layer.by_heads)


def _qkv_and_proj(
    layer: WindowAttention | ChannelAttention, dtype: jnp.dtype
) -> tuple[jax.Array, ...]:
    """The kernel and bias of qkv, then of proj; a missing bias is zero."""

    def weights(linear: Linear) -> tuple[jax.Array, jax.Array]:
        kernel, bias = linear.kernel[...].astype(dtype), linear.bias
        zero = jnp.zeros(kernel.shape[1:], dtype)
        return kernel, zero if bias is None else bias[...].astype(dtype)

    return *weights(layer.qkv), *weights(layer.proj)


def _per_token(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Apply `function` to the rows of float[tokens, C].

    XLA:CPU's library for products takes up to 1.7 times as long for a left side of more axes.
    """
    y = function(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])
