"""Weight-only int8: what is stored, how far it is from the floats, and how it is computed."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax import config as configs
from florence_jax.generation import GenerationConfig, generate
from florence_jax.generation.generate import generate_jit
from florence_jax.generation.inputs import prepare_inputs
from florence_jax.model import Model, random_params_with_spread_logits
from florence_jax.quantization import quantize, quantized, quantized_modules, widened

GREEDY = GenerationConfig(max_new_tokens=6)


@functools.cache
def tiny(tied: bool = True):
    base = configs.tiny()
    text = dataclasses.replace(
        base.text, vocab_size=96, max_position_embeddings=96, encoder_layers=1, decoder_layers=1
    )
    config = dataclasses.replace(
        base, text=text, image_token_id=95, tie_word_embeddings=tied, final_logits_bias=not tied
    )
    params = random_params_with_spread_logits(config, 4)
    return Model(config=config), params, quantize(params)


def dequantized(params):
    """Floats for int8, by the definition: value = int8 * scale."""
    if not isinstance(params, dict):
        return params
    params = {name: dequantized(node) for name, node in params.items()}
    for name, axis in (("kernel", 0), ("embedding", 1)):
        if name in params and "scale" in params:
            scale = np.expand_dims(params.pop("scale"), axis)
            params[name] = np.asarray(params[name], np.float32) * scale
    return params


def inputs(batch=2):
    rng = np.random.default_rng(0)
    return {
        "image_features": rng.standard_normal((batch, 5, 24)).astype(np.float32),
        "input_ids": rng.integers(4, 90, (batch, 6)),
    }


def logits(model, params):
    given = inputs()

    @jax.jit
    def run(params):
        module = model.bind(params)
        memory, mask = module.encode(
            given["image_features"], given["input_ids"], jnp.ones((2, 6), bool)
        )
        return module.decode(given["input_ids"], memory, mask)

    return np.asarray(run(params))


def test_what_is_int8():
    _, params, small = tiny()
    modules = quantized_modules(small)
    assert "shared" in modules
    assert len([name for name in modules if name.startswith("decoder/layers/0/")]) == 10
    assert len(modules) == 11
    assert quantized_modules(params) == ()
    for part in ("encoder", "vision_tower", "projector"):
        assert small[part] is params[part] or jax.tree.all(
            jax.tree.map(np.array_equal, small[part], params[part])
        )
    assert small["decoder"]["layers"]["0"]["fc1"]["kernel"].dtype == jnp.int8
    assert small["shared"]["scale"].shape == (96,)


def test_no_weight_is_off_by_more_than_half_a_step():
    _, params, small = tiny()
    floats = dequantized(small)
    for path in (("shared", "embedding"), ("decoder", "layers", "0", "fc2", "kernel")):
        exact, near, node = params, floats, small
        for name in path:
            exact, near, node = exact[name], near[name], node if name == path[-1] else node[name]
        steps = np.expand_dims(node["scale"], 1 if path[-1] == "embedding" else 0)
        assert np.all(np.abs(exact - near) <= 0.5001 * steps)
        assert np.abs(np.asarray(node[path[-1]], np.int32)).max() == 127


def test_a_channel_of_zeros_stays_one():
    small = quantize({"shared": {"embedding": np.zeros((3, 4), np.float32)}})
    assert not np.any(small["shared"]["embedding"])
    assert np.all(np.isfinite(small["shared"]["scale"]))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
def test_logits_are_those_of_the_rounded_weights(tied):
    model, params, small = tiny(tied)
    expected = logits(model, dequantized(small))
    np.testing.assert_allclose(logits(model, small), expected, rtol=1e-5, atol=2e-5)
    # And those weights are others than before.
    assert np.abs(logits(model, params) - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("config", "batch"),
    [
        (GREEDY, 1),
        (dataclasses.replace(GREEDY, num_beams=2, do_sample=True), 2),
    ],
    ids=["greedy", "beam sampling"],
)
def test_tokens_are_those_of_the_rounded_weights(config, batch):
    model, _, small = tiny(False)
    ours, expected = (
        generate(model, params, **inputs(batch), config=config, rng=jax.random.key(0))
        for params in (small, dequantized(small))
    )
    np.testing.assert_array_equal(ours.sequences, expected.sequences)
    np.testing.assert_allclose(ours.sequence_scores, expected.sequence_scores, rtol=1e-4)


def test_bfloat16_activations():
    model, _, small = tiny()
    half = dataclasses.replace(model, dtype="bfloat16")
    near, exact = logits(half, small), logits(model, small)
    assert near.dtype == np.float32
    assert 0 < np.sqrt(np.mean((near - exact) ** 2)) < 0.05 * exact.std()


@functools.cache
def traced():
    model, _, small = tiny()
    return generate_jit.trace(*prepare_inputs(model, small, **inputs(), config=GREEDY))


@pytest.mark.parametrize(("platform", "inside"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_where_weights_become_floats(platform, inside):
    """On an accelerator every step reads int8. XLA:CPU would write floats out at every step: there
    it is done once, before the loop."""
    text = traced().lower(lowering_platforms=(platform,)).as_text()
    rows, columns = tiny()[2]["decoder"]["layers"]["0"]["fc1"]["kernel"].shape
    conversion = f"(tensor<{rows}x{columns}xi8>) -> tensor<{rows}x{columns}xf32>"
    before, *loop = text.split("stablehlo.while")
    assert (conversion in "".join(loop)) is inside
    assert (conversion in before) is not inside


def test_widened_kernels_have_no_scale():
    _, _, small = tiny()
    wide = widened(small, jnp.dtype("float32"))
    assert quantized_modules(wide) == ("shared",)
    assert wide["decoder"]["layers"]["0"]["fc1"]["kernel"].dtype == jnp.float32


def test_errors_say_what_to_do():
    _, params, small = tiny()
    with pytest.raises(ValueError, match="quantised already"):
        quantize(small)
    with pytest.raises(ValueError, match="quantize='int4', expected 'int8' or None"):
        quantized(params, "int4")
    model, *_ = tiny(False)
    with pytest.raises(ValueError, match="params do not belong to this model's config"):
        model.bind(small)
