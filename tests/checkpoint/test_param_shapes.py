"""The spelled-out parameter shapes are the model's own."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_jax.checkpoint.param_tree import flatten, param_shapes
from florence_jax.config import PRESETS, BartConfig, DaViTConfig, Florence2Config
from florence_jax.model import abstract_params


def of_the_model(config):
    return {path: leaf.shape for path, leaf in flatten(abstract_params(config))}


@pytest.mark.parametrize("preset", PRESETS)
def test_of_every_preset(preset):
    assert param_shapes(PRESETS[preset]()) == of_the_model(PRESETS[preset]())


def test_of_untied_weights_and_an_output_bias():
    config = dataclasses.replace(
        PRESETS["tiny"](), tie_word_embeddings=False, final_logits_bias=True
    )
    assert param_shapes(config) == of_the_model(config)


def per_stage(values, stages):
    return st.lists(values, min_size=stages, max_size=stages).map(tuple)


@st.composite
def configs(draw):
    """Small models in which every size that may differ from another does, sooner or later."""
    stages, small = draw(st.integers(1, 3)), st.integers(1, 3)
    heads = draw(per_stage(small, stages))
    vision = DaViTConfig(
        embed_dims=tuple(count * draw(st.integers(1, 5)) for count in heads),
        depths=draw(per_stage(small, stages)),
        num_heads=heads,
        num_groups=(1,) * stages,
        patch_sizes=draw(per_stage(st.integers(1, 7), stages)),
        patch_strides=(2,) * stages,
        patch_paddings=(1,) * stages,
        patch_prenorm=draw(per_stage(st.booleans(), stages)),
        mlp_ratio=draw(st.floats(1, 4)),
        qkv_bias=draw(st.booleans()),
        in_channels=draw(small),
    )
    text = BartConfig(
        vocab_size=draw(st.integers(3, 9)),
        d_model=2 * draw(small),
        encoder_layers=draw(small),
        decoder_layers=draw(small),
        encoder_attention_heads=2,
        decoder_attention_heads=1,
        encoder_ffn_dim=draw(st.integers(1, 9)),
        decoder_ffn_dim=draw(st.integers(1, 9)),
        max_position_embeddings=draw(st.integers(1, 9)),
    )
    return Florence2Config(
        vision=vision,
        text=text,
        max_image_positions=draw(st.integers(1, 5)),
        max_temporal_positions=draw(st.integers(1, 5)),
        tie_word_embeddings=draw(st.booleans()),
        final_logits_bias=draw(st.booleans()),
    )


@settings(max_examples=25)
@given(configs())
def test_of_any_config(config):
    assert param_shapes(config) == of_the_model(config)
