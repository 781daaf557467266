"""FLOP formulas against torch's counter on transformers' model, and bytes against the weights."""

import jax
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from convert.verify.reference import native_model, random_params_with_spread_logits
from florence_jax import config as configs
from florence_jax.model import abstract_params, flops
from florence_jax.model.flops import Work
from tests.benchmarks.ceilings import Ceilings, decoder_step


@pytest.fixture(scope="module")
def reference():
    config = configs.tiny()
    model = native_model(config, random_params_with_spread_logits(config, 0))
    # torch's counter passes over its fused attention on the CPU.
    model.set_attn_implementation("eager")
    return config, model


def count(function, *arguments, **named):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*arguments, **named)
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [(384, 384), (96, 160)], ids=["whole windows", "padded windows"])
def test_vision(reference, size):
    config, model = reference
    counted = count(model.model.get_image_features, torch.zeros((1, 3, *size)))
    assert flops.vision(config, *size).flops == counted


def test_encoder(reference):
    config, model = reference
    embeds = torch.zeros((1, 30, config.text.d_model))
    counted = count(model.model.language_model.encoder, inputs_embeds=embeds)
    assert flops.encoder(config, 30).flops == counted


def test_first_token_and_cross_attention(reference):
    config, model = reference
    hidden_states = torch.zeros((1, 30, config.text.d_model))

    def first_token():
        decoder = model.model.language_model.decoder
        hidden = decoder(
            input_ids=torch.zeros((1, 1), dtype=int), encoder_hidden_states=hidden_states
        )
        return model.lm_head(hidden.last_hidden_state)

    expected = flops.cross_attention_cache(config, 30) + flops.token(config, 30, 0)
    assert expected.flops == count(first_token)


@pytest.mark.parametrize(
    ("preset", "vision", "encoder", "cross", "token"),
    [("base", 380e9, 57e9, 8.4e9, 0.19e9), ("large", 1488e9, 198e9, 29.7e9, 0.49e9)],
)
def test_known_figures(preset, vision, encoder, cross, token):
    """Counted by hand before, to the digits given, for 768 x 768 and a prompt of 13 tokens."""
    config = configs.PRESETS[preset]()
    source = config.num_image_tokens(768, 768) + 13
    found = (
        flops.vision(config, 768, 768).flops,
        flops.encoder(config, source).flops,
        flops.cross_attention_cache(config, source).flops,
        flops.token(config, source, 32).flops,
    )
    np.testing.assert_allclose(found, (vision, encoder, cross, token), rtol=0.015)


def test_a_step_reads_its_weights_once_and_each_beams_cache():
    config = configs.tiny()
    params = abstract_params(config)
    kernels = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params["decoder"]["layers"])
        if path[-1].key == "kernel"
        and not (path[1].key == "cross_attn" and path[2].key in ("k_proj", "v_proj"))
    ]
    weights = sum(kernels) + params["shared"]["embedding"].size
    step = decoder_step(config, batch=4, beams=3, encoder_tokens=100, position=9, item=2)
    width = 2 * config.text.decoder_layers * config.text.d_model
    assert step.bytes == 2 * (weights + width * (4 * 100 + 12 * 10))


def test_the_slower_of_computing_and_reading_decides():
    ceilings = Ceilings(flops_per_second=100.0, bytes_per_second=10.0)
    assert ceilings.seconds(Work(flops=200.0, bytes=5.0)) == 2.0
    assert ceilings.seconds(Work(flops=200.0, bytes=50.0)) == 5.0
