"""DaViT, the image encoder: attention within spatial windows, then among groups of channels.

Shapes: B images, H W grid, C channels, N heads or groups, E channels of a head, P window side,
        S tokens of a window or of a map.
Source: "DaViT: Dual Attention Vision Transformers", https://arxiv.org/abs/2204.03645.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from florence_jax.config import DaViTConfig
from florence_jax.model.davit_attention import ChannelAttention, WindowAttention
from florence_jax.model.layers import (
    MLP,
    Conv,
    DepthwiseConv,
    LayerNorm,
    Sequential,
    drop_path,
    fold_in,
    per_token,
    split_key,
)
from florence_jax.ops.norm_mlp_residual_pallas import pallas_supported
from florence_jax.ops.norm_mlp_residual_training_pallas import (
    backward_supported,
    norm_mlp_residual,
    norm_mlp_residual_dropped,
)


class DaViT(nnx.Module):
    """float[B, H, W, 3] pixels -> float[B, H/32, W/32, C] features."""

    def __init__(self, config: DaViTConfig, *, rngs: nnx.Rngs | None):
        # Each block has a spatial and a channel half with a rate each.
        blocks, most = sum(config.depths), config.drop_path_rate
        if config.drop_path_per_block:
            rates = np.repeat(np.linspace(0.0, most, blocks), 2).tolist()
        else:
            rates = np.linspace(0.0, most, 2 * blocks).tolist()
        stages, first = [], 0
        for stage, depth in enumerate(config.depths):
            last = first + 2 * depth
            stages.append(Stage(config, stage, rates[first:last], rngs=rngs))
            first = last
        self.stages = Sequential(stages)

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
    """A strided convolution that shrinks the map, then dual-attention blocks."""

    def __init__(
        self,
        config: DaViTConfig,
        stage: int,
        drop_path_rates: list[float],
        *,
        rngs: nnx.Rngs | None,
    ):
        # One pair per block. Blocks differ only in their weights, so that they share one trace.
        self.drop_path_rates = tuple(zip(drop_path_rates[::2], drop_path_rates[1::2], strict=True))
        self.embed = PatchEmbed(config, stage, rngs=rngs)
        self.blocks = Sequential(
            [DualBlock(config, stage, rngs=rngs) for _ in range(config.depths[stage])]
        )

    def __call__(self, x_BHWC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        x_BHWC = self.embed(x_BHWC)
        keys = split_key(key, self.blocks.depth, 2, 2)
        for number, (_, block) in enumerate(self.blocks.iter_calls()):
            rates = self.drop_path_rates[number]
            x_BHWC = block(x_BHWC, None if keys is None else DropPath(rates, keys[number]))
        return x_BHWC


class PatchEmbed(nnx.Module):
    """A strided convolution, normalised before it (later stages) or after it (the stem)."""

    def __init__(self, config: DaViTConfig, stage: int, *, rngs: nnx.Rngs | None):
        in_dim = config.embed_dims[stage - 1] if stage else config.in_channels
        out_dim = config.embed_dims[stage]
        self.prenorm = config.patch_prenorm[stage]
        self.pad_to_stride = config.pad_to_stride
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
            return self.conv(self._padded(self.norm(x_BHWC)))
        return self.norm(self.conv(self._padded(x_BHWC)))

    def _padded(self, x_BHWC: jax.Array) -> jax.Array:
        if not self.pad_to_stride:
            return x_BHWC
        _, height, width, _ = x_BHWC.shape
        stride = self.conv.stride
        return jnp.pad(x_BHWC, ((0, 0), (0, -height % stride), (0, -width % stride), (0, 0)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DropPath:
    """Stochastic depth of one block.

    Attributes:
        rates: drop rates of the spatial and the channel half; static.
        keys: key[2, 2], for the two branches (attention, MLP) of each half.
    """

    rates: tuple[float, float] = dataclasses.field(metadata={"static": True})
    keys: jax.Array

    def scales(self, half: int, branch: int, batch: int) -> jax.Array:
        """What `drop_path` multiplies each example's branch by, float32[B]."""
        ones = jnp.ones((batch, 1, 1, 1))
        return drop_path(ones, self.rates[half], self.keys[half, branch]).reshape(batch)


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
        x_BHWC = add(x_BHWC, self.attention(per_token(self.norm1, x_BHWC)), 0)
        x_BHWC = self.conv2(x_BHWC)
        if not self._mlp_kernel_applies(x_BHWC, dropped=drop is not None):
            return add(x_BHWC, self.mlp_branch(x_BHWC), 1)
        keep = None if drop is None else drop.scales(half, 1, len(x_BHWC))
        return lax.platform_dependent(
            x_BHWC,
            tpu=functools.partial(self._mlp_residual_pallas, keep_B=keep),
            default=lambda x: add(x, self.mlp_branch(x), 1),
        )

    def mlp_branch(self, x_BHWC: jax.Array) -> jax.Array:
        return per_token(lambda x: self.mlp(self.norm2(x)), x_BHWC)

    @jax.named_scope("mlp")
    def _mlp_residual_pallas(self, x_BHWC: jax.Array, keep_B: jax.Array | None = None) -> jax.Array:
        norm = self.norm2.scale[...], self.norm2.bias[...]
        fc1, fc2 = (one.kernel_and_bias(x_BHWC.dtype) for one in (self.mlp.fc1, self.mlp.fc2))
        weights = (*norm, *fc1, *fc2)
        if keep_B is None:
            return norm_mlp_residual(x_BHWC, *weights)
        return norm_mlp_residual_dropped(x_BHWC, keep_B, *weights)

    def _mlp_kernel_applies(self, x_BHWC: jax.Array, *, dropped: bool) -> bool:
        hidden = self.mlp.fc1.kernel.shape[1]
        plain = self.mlp.fc1.is_plain and self.mlp.fc2.is_plain
        supported = plain and pallas_supported(x_BHWC, hidden)
        return supported and (not dropped or backward_supported(x_BHWC, hidden))


class SpatialBlock(_Block):
    """The half of a dual-attention block that attends within spatial windows."""

    def __init__(self, config: DaViTConfig, stage: int, *, rngs: nnx.Rngs | None):
        dim = config.embed_dims[stage]
        super().__init__(dim, config.mlp_ratio, rngs=rngs)
        self.window_attn = WindowAttention(
            dim, config.num_heads[stage], config.window_size, config.qkv_bias, rngs=rngs
        )

    def attention(self, x_BHWC: jax.Array) -> jax.Array:
        return self.window_attn(x_BHWC)


class ChannelBlock(_Block):
    """The half of a dual-attention block that attends among channels."""

    def __init__(self, config: DaViTConfig, stage: int, *, rngs: nnx.Rngs | None):
        dim = config.embed_dims[stage]
        super().__init__(dim, config.mlp_ratio, rngs=rngs)
        self.channel_attn = ChannelAttention(
            dim, config.num_groups[stage], config.qkv_bias, v2=config.channel_attn_v2, rngs=rngs
        )

    def attention(self, x_BHWC: jax.Array) -> jax.Array:
        return self.channel_attn(x_BHWC)
