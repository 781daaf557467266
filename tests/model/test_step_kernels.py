"""The TPU's kernels for a decoding step against the plain forms, interpreted.

`tests/benchmarks/test_tpu_estimate.py` compiles them for a TPU.
"""

import dataclasses
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax.config import tiny
from florence_jax.generation import GenerationConfig
from florence_jax.model import (
    Model,
    attend_rows,
    project_rows,
    spread_params,
    step_forms,
)
from florence_jax.quantization import quantize

# Not `generate` itself, which the package offers under the same name.
room = importlib.import_module("florence_jax.generation.generate")

DIM, HEADS = 256, 4
CONFIG = dataclasses.replace(
    tiny(), text=dataclasses.replace(tiny().text, d_model=128, decoder_ffn_dim=256)
)


def error(ours, true):
    return float(jnp.sqrt(jnp.mean((ours.astype(jnp.float32) - true) ** 2)))


def check_against_float32(plain, kernel, arguments, **options):
    """The answer in float32, rounded where bfloat16 must be: nearer than the plain form's."""
    true = plain(*(_wide(array) for array in arguments), **options)
    ours = kernel(*arguments, **options, interpret=True)
    assert ours.dtype == jnp.bfloat16
    assert ours.shape == true.shape
    assert error(ours, true) <= error(plain(*arguments, **options), true)
    np.testing.assert_allclose(ours.astype(np.float32), true, rtol=0.02, atol=0.02)


def _wide(array):
    return array.astype(jnp.float32) if array.dtype == jnp.bfloat16 else array


def draw_attention(batch, beams, stored, *, own=True, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = (batch, beams, DIM), (batch, stored, DIM), (batch, stored, DIM)
    scales = 2.0, 1.0, 1.0
    arrays = [
        (scale * jax.random.normal(key, shape)).astype(jnp.bfloat16)
        for key, shape, scale in zip(keys, shapes, scales, strict=False)
    ]
    mask = jax.random.bernoulli(keys[3], 0.5, (batch, beams if own else 1, stored))
    return *arrays, mask.at[:, :, 0].set(True)


@pytest.mark.parametrize(
    ("batch", "beams", "stored", "own"),
    [
        (2, 3, 37, False),  # the encoder's output, of any length
        (9, 1, 64, True),  # more examples than share registers, and some of them alone
        (1, 5, 320, True),
    ],
)
def test_attention(batch, beams, stored, own):
    arguments = draw_attention(batch, beams, stored, own=own)
    check_against_float32(
        step_forms.attend_to_rows, attend_rows.row_attention_kernel, arguments, heads=HEADS
    )


def test_attention_to_many_rows_at_a_time(monkeypatch):
    """Three times 128 rows, of which a query may see none in one and all in another."""
    queries = 3 * step_forms.filled_heads(HEADS)
    room = 3 * 4 * queries * DIM + 200 * (8 * DIM + 12 * queries)
    monkeypatch.setattr(step_forms, "_ROOM", room)
    assert step_forms.rows_at_once(384, DIM, queries) == 128
    q, key, value, mask = draw_attention(2, 3, 384)
    # Higher scores later on, so that what was summed up before must fade.
    key = key.at[:, 256:].multiply(2.0)
    mask = mask.at[0, 0, :128].set(False).at[0, 1, 128:].set(False).at[1, 2].set(True)
    check_against_float32(
        step_forms.attend_to_rows,
        attend_rows.row_attention_kernel,
        (q, key, value, mask),
        heads=HEADS,
    )


def test_attention_to_nothing_is_the_mean():
    """As in the plain form, which has no other answer for an example that is all padding."""
    q, key, value, mask = draw_attention(2, 2, 48)
    ours = attend_rows.row_attention_kernel(
        q, key, value, jnp.zeros_like(mask), heads=HEADS, interpret=True
    )
    mean = jnp.broadcast_to(value.astype(jnp.float32).mean(1, keepdims=True), q.shape)
    np.testing.assert_allclose(ours.astype(np.float32), mean, atol=0.02)


@pytest.mark.parametrize(("batch", "channels"), [(2, DIM), (3, 1024), (300, 1536)])
def test_projection(batch, channels):
    """At once, in parts, and rows that do not fill the last step."""
    keys = jax.random.split(jax.random.key(1), 6)
    shapes = (batch, 3, DIM), (batch, 3, channels), (channels, DIM), (DIM,), (DIM,), (DIM,)
    scales = 2.0, 1.0, channels**-0.5, 0.3, 1.0, 0.3
    arguments = [
        (scale * jax.random.normal(key, shape)).astype(jnp.bfloat16)
        for key, shape, scale in zip(keys, shapes, scales, strict=True)
    ]
    check_against_float32(step_forms.project_and_norm, project_rows.project_kernel, arguments)


def prepared(dtype="bfloat16", params=None, *, config=CONFIG):
    generator = np.random.default_rng(1)
    model = Model(config=config, dtype=dtype)
    return room.prepare(
        model,
        spread_params(config, seed=5) if params is None else params,
        image_features=jnp.asarray(
            generator.standard_normal((2, 37, config.text.d_model), np.float32)
        ),
        input_ids=generator.integers(5, 200, (2, 6)),
        config=GenerationConfig(num_beams=3, max_new_tokens=20),
    )


def kernels(arguments, platform="tpu"):
    text = room.generate_program.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    return set(re.findall(r'kernel_name = "(\w+)"', text))


ALL = {"row_attention", "project", "top"}


def test_only_tpu_is_given_the_kernels():
    assert kernels(prepared()) == ALL
    for platform in ("cpu", "cuda"):
        assert kernels(prepared(), platform) == set()


def test_what_the_kernels_cannot_take_goes_without(monkeypatch):
    assert kernels(prepared("float32")) == {"top"}
    assert kernels(prepared(config=tiny())) == {"top"}  # 24 channels
    quantized = quantize(spread_params(CONFIG, seed=5))
    assert kernels(prepared(params=quantized)) == ALL - {"project"}
    # Queries of a beam's own rows, where no number of rows fits.
    monkeypatch.setattr(step_forms, "_ROOM", 0)
    jax.clear_caches()
    assert kernels(prepared()) == ALL - {"row_attention"}


@pytest.mark.parametrize(("axes", "local"), [({"data": 2}, True), ({"tensor": 2}, False)])
def test_each_device_runs_the_kernels_on_its_rows(axes, local):
    mesh = jax.sharding.AbstractMesh(
        tuple(axes.values()), tuple(axes), axis_types=(jax.sharding.AxisType.Auto,)
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert kernels(prepared()) == (ALL if local else set())


def test_steps_with_the_kernels_are_no_further_from_the_truth(monkeypatch):
    """Layers hand queries, caches and weights to them as they take them."""
    generator = np.random.default_rng(2)
    tokens = generator.integers(5, 200, (6, 3, 3))
    params = spread_params(CONFIG, seed=5)
    # Biases and norms other than at initialisation, where they are all zeros and ones.
    params = jax.tree.map(
        lambda leaf: (
            leaf + 0.1 * generator.standard_normal(leaf.shape, np.float32)
            if leaf.ndim == 1
            else leaf
        ),
        params,
    )
    memory = generator.standard_normal((3, 43, CONFIG.text.d_model), np.float32)
    parents = generator.integers(3, size=(6, 3, 3))

    def run(dtype):
        jax.clear_caches()
        module = Model(config=CONFIG, dtype=dtype).bind(params)
        cross = module.decoder_cross_kv(jnp.asarray(memory, dtype), whole_rows=True)
        known = jnp.arange(43) < jnp.asarray([[43], [20], [1]])
        held, steps = module.init_cache(3, 3, 8, whole_rows=True), []
        for index in range(len(tokens)):
            logits, held = module.decode_step(tokens[index], jnp.int32(index), held, cross, known)
            held = held.reorder(jnp.asarray(parents[index]))
            steps.append(logits)
        return jnp.stack(steps)

    true, plain = run("float32"), run("bfloat16")
    calls = []

    def interpreted(kernel):
        def call(*arguments, **options):
            calls.append(kernel)
            return kernel(*arguments, **options, interpret=True)

        return call

    for room, name, kernel in (
        (attend_rows, "attend_to_rows_by_kernel", attend_rows.row_attention_kernel),
        (project_rows, "project_and_norm_by_kernel", project_rows.project_kernel),
    ):
        monkeypatch.setattr(room, name, interpreted(kernel))
    ours = run("bfloat16")
    assert set(calls) == {attend_rows.row_attention_kernel, project_rows.project_kernel}
    assert float(jnp.abs(true).max()) > 1.0
    assert error(ours, true) <= 1.05 * error(plain, true)
