"""The smallest Florence-2 with every kind of layer: gradients of it compile in seconds."""

import numpy as np

from florence_jax.checkpoint.param_tree import flatten
from florence_jax.config import BartConfig, DaViTConfig, Florence2Config
from florence_jax.model import random_params_with_spread_logits
from florence_jax.training.state import Batch

CONFIG = Florence2Config(
    vision=DaViTConfig(
        embed_dims=(8,),
        depths=(1,),
        num_heads=(2,),
        num_groups=(2,),
        patch_sizes=(7,),
        patch_strides=(4,),
        patch_paddings=(3,),
        patch_prenorm=(False,),
        window_size=4,
    ),
    text=BartConfig(
        vocab_size=64,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
    ),
    image_token_id=63,
)


def small_params() -> dict[str, np.ndarray]:
    """Flat float32 parameters."""
    return dict(flatten(random_params_with_spread_logits(CONFIG, seed=0)))


def small_batch(*, micro: int = 1, rows: int = 4, seed: int = 0, length: int = 6) -> Batch:
    """Rows with answers of different lengths, padded with -100."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(4, 60, (micro, rows, length)).astype(np.int32)
    lengths = draw.integers(1, length + 1, (micro, rows, 1))
    labels = np.where(np.arange(length) < lengths, labels, -100).astype(np.int32)
    return Batch(
        images=draw.integers(0, 256, (micro, rows, 16, 16, 3)).astype(np.uint8),
        input_ids=draw.integers(4, 60, (micro, rows, 5)).astype(np.int32),
        labels=labels,
    )
