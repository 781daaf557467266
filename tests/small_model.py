"""Sizes of a Florence-2 that compiles in half the time of "tiny", for tests of what is around it.

Two stages instead of four, one layer each instead of two; as many image tokens as the published
models make of an image. The network itself is tested with "tiny" in tests/model.
"""

import dataclasses

from florence_jax.config import DaViTConfig, Florence2Config, tiny


def small_model_config(**text) -> Florence2Config:
    """The sizes; `text` replaces fields of the language model's."""
    base = tiny()
    vision = DaViTConfig(
        embed_dims=(8, 16),
        depths=(1, 1),
        num_heads=(1, 2),
        num_groups=(2, 4),
        patch_sizes=(8, 4),
        # 32 pixels a token, as the four strides of the published models together.
        patch_strides=(8, 4),
        patch_paddings=(3, 1),
        patch_prenorm=(False, True),
    )
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    return dataclasses.replace(
        base, vision=vision, text=dataclasses.replace(base.text, **(layers | text))
    )
