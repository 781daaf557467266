"""Lower bounds on the model's work, in FLOPs and bytes read, computed from its config.

A multiply-add is two FLOPs. Counted are matrix products and convolutions; norms, softmax, GELU and
additions are left out, as everywhere where a share of the matmul peak is reported. Nothing here
knows how any engine does the work, so a slow way of doing it is not credited for its extra FLOPs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from florence_jax.config import DaViTConfig, Florence2Config


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs to compute and bytes to read at least once."""

    flops: float
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(flops=self.flops + other.flops, bytes=self.bytes + other.bytes)

    def times(self, count: float) -> Work:
        return Work(flops=self.flops * count, bytes=self.bytes * count)


def vision(config: Florence2Config, height: int, width: int) -> Work:
    """One image of `height` x `width` pixels through DaViT and the projector."""
    tokens = 1 + math.prod(config.vision.grids(height, width)[-1])
    projector = 2 * tokens * config.vision.embed_dims[-1] * config.text.d_model
    return tower(config.vision, height, width) + Work(flops=projector)


def tower(config: DaViTConfig, height: int, width: int) -> Work:
    """One image of `height` x `width` pixels through DaViT."""
    flops = 0.0
    channels = config.in_channels
    for stage, (rows, columns) in enumerate(config.grids(height, width)):
        size, dim = config.patch_sizes[stage], config.embed_dims[stage]
        flops += 2 * rows * columns * size**2 * channels * dim
        flops += config.depths[stage] * _dual_block(config, stage, rows, columns)
        channels = dim
    return Work(flops=flops)


def encoder(config: Florence2Config, tokens: int) -> Work:
    """One row of `tokens` image and text tokens through the BART encoder."""
    text = config.text
    projections = 2 * tokens * 4 * text.d_model**2
    attention = 2 * 2 * tokens * tokens * text.d_model
    feed_forward = 2 * 2 * tokens * text.d_model * text.encoder_ffn_dim
    return Work(flops=text.encoder_layers * (projections + attention + feed_forward))


def cross_attention_cache(config: Florence2Config, tokens: int) -> Work:
    """Keys and values of one row's encoder states, for every decoder layer."""
    text = config.text
    return Work(flops=text.decoder_layers * 2 * 2 * tokens * text.d_model**2)


def token(config: Florence2Config, encoder_tokens: int, position: int) -> Work:
    """One decoder token of one row, with `encoder_tokens` encoder tokens and `position` tokens
    before it.
    """
    text = config.text
    attended = position + 1 + encoder_tokens
    layer = (
        # Self-attention projects four times, cross-attention twice: its keys and values are cached.
        2 * 6 * text.d_model**2
        + 2 * 2 * attended * text.d_model
        + 2 * 2 * text.d_model * text.decoder_ffn_dim
    )
    head = 2 * text.d_model * text.vocab_size
    return Work(flops=text.decoder_layers * layer + head)


def _dual_block(tower: DaViTConfig, stage: int, height: int, width: int) -> float:
    dim, tokens = tower.embed_dims[stage], height * width
    side = tower.window_size
    windowed = math.ceil(height / side) * math.ceil(width / side) * side**2
    group = dim // tower.num_groups[stage]
    depthwise = 2 * 9 * tokens * dim
    mlp = 2 * 2 * tokens * dim * int(dim * tower.mlp_ratio)
    # Projections to queries, keys and values and back, scores, and the values' weighted sum.
    spatial = windowed * (2 * 4 * dim**2 + 2 * 2 * side**2 * dim)
    channel = tokens * (2 * 4 * dim**2 + 2 * 2 * group * dim)
    return spatial + channel + 2 * (2 * depthwise + mlp)
