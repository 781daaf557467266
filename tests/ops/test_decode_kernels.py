"""The TPU's kernels for a decoding step against the plain forms, interpreted.

`tests/benchmarks/test_tpu_estimate.py` compiles them for a TPU.
"""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax.generation import GenerationConfig
from florence_jax.model import Model, bart, kv_cache, random_params_with_spread_logits
from florence_jax.ops import decode_attention_pallas, linear_residual_norm_pallas
from florence_jax.quantization import quantize
from tests.ops.kernel_checks import check_against_float32, draw, error
from tests.small_model import small_model_config

# Not `generate` itself, which the package offers under the same name.
room = importlib.import_module("florence_jax.generation.generate")

DIM, HEADS = 256, 4
CONFIG = small_model_config(d_model=128, decoder_ffn_dim=256)


@pytest.fixture
def fresh_traces():
    """Neither from before something was patched, nor for those who come after."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def check(plain, kernel, arguments, **options):
    ours, true = check_against_float32(plain, kernel, arguments, **options)
    np.testing.assert_allclose(ours.astype(np.float32), true, rtol=0.02, atol=0.02)


def draw_attention(batch, beams, stored, *, own=True):
    memory = (batch, stored, DIM), 1.0
    arrays = draw(((batch, beams, DIM), 2.0), memory, memory)
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, (batch, beams if own else 1, stored))
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
    check(
        decode_attention_pallas.decode_attention_reference,
        decode_attention_pallas.decode_attention_kernel,
        arguments,
        heads=HEADS,
    )


def test_attention_to_many_rows_at_a_time(monkeypatch):
    """Three times 128 rows, of which a query may see none in one and all in another."""
    queries = 3 * decode_attention_pallas.pad_heads(HEADS)
    room = 3 * 4 * queries * DIM + 200 * (8 * DIM + 12 * queries)
    monkeypatch.setattr(decode_attention_pallas, "VMEM_BUDGET_BYTES", room)
    assert decode_attention_pallas.kv_block_size(384, DIM, queries) == 128
    q, key, value, mask = draw_attention(2, 3, 384)
    # Higher scores later on, so that what was summed up before must fade.
    key = key.at[:, 256:].multiply(2.0)
    mask = mask.at[0, 0, :128].set(False).at[0, 1, 128:].set(False).at[1, 2].set(True)
    check(
        decode_attention_pallas.decode_attention_reference,
        decode_attention_pallas.decode_attention_kernel,
        (q, key, value, mask),
        heads=HEADS,
    )


def test_attention_to_nothing_is_the_mean():
    """As in the plain form, which has no other answer for an example that is all padding."""
    q, key, value, mask = draw_attention(2, 2, 48)
    ours = decode_attention_pallas.decode_attention_kernel(
        q, key, value, jnp.zeros_like(mask), heads=HEADS, interpret=True
    )
    mean = jnp.broadcast_to(value.astype(jnp.float32).mean(1, keepdims=True), q.shape)
    np.testing.assert_allclose(ours.astype(np.float32), mean, atol=0.02)


@pytest.mark.parametrize(("batch", "channels"), [(2, DIM), (3, 1024), (300, 1536)])
def test_projection(batch, channels):
    """At once, in parts, and rows that do not fill the last step."""
    arguments = draw(
        ((batch, 3, DIM), 2.0),
        ((batch, 3, channels), 1.0),
        ((channels, DIM), channels**-0.5),
        ((DIM,), 0.3),
        ((DIM,), 1.0),
        ((DIM,), 0.3),
    )
    check(
        linear_residual_norm_pallas.linear_residual_norm_reference,
        linear_residual_norm_pallas.linear_residual_norm_kernel,
        arguments,
    )


def prepared(dtype="bfloat16", params=None, *, config=CONFIG):
    generator = np.random.default_rng(1)
    model = Model(config=config, dtype=dtype)
    return room.prepare_inputs(
        model,
        random_params_with_spread_logits(config, seed=5) if params is None else params,
        image_features=jnp.asarray(
            generator.standard_normal((2, 37, config.text.d_model), np.float32)
        ),
        input_ids=generator.integers(5, 200, (2, 6)),
        config=GenerationConfig(num_beams=3, max_new_tokens=20),
    )


def kernels(arguments, platform="tpu"):
    text = room.generate_jit.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    return set(re.findall(r'kernel_name = "(\w+)"', text))


ALL = {"decode_attention", "linear_residual_norm", "text_attention", "top_k"}


def test_only_tpu_is_given_the_kernels():
    assert kernels(prepared()) == ALL
    for platform in ("cpu", "cuda"):
        assert kernels(prepared(), platform) == set()


def test_what_the_kernels_cannot_take_goes_without(monkeypatch, fresh_traces):
    assert kernels(prepared("float32")) == {"top_k"}
    assert kernels(prepared(config=small_model_config())) == {"top_k"}  # 24 channels
    quantized = quantize(random_params_with_spread_logits(CONFIG, seed=5))
    assert kernels(prepared(params=quantized)) == ALL - {"linear_residual_norm"}
    # Queries of a beam's own rows, where no number of rows fits.
    monkeypatch.setattr(decode_attention_pallas, "VMEM_BUDGET_BYTES", 0)
    jax.clear_caches()
    assert kernels(prepared()) == ALL - {"decode_attention"}


@pytest.mark.parametrize(("axes", "local"), [({"data": 2}, True), ({"tensor": 2}, False)])
def test_each_device_runs_the_kernels_on_its_rows(axes, local):
    mesh = jax.sharding.AbstractMesh(
        tuple(axes.values()), tuple(axes), axis_types=(jax.sharding.AxisType.Auto,)
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert kernels(prepared()) == (ALL if local else set())


def test_steps_with_the_kernels_are_no_further_from_the_truth(monkeypatch, fresh_traces):
    """Layers hand queries, caches and weights to them as they take them."""
    generator = np.random.default_rng(2)
    tokens = generator.integers(5, 200, (6, 3, 3))
    params = random_params_with_spread_logits(CONFIG, seed=5)
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
        module = Model(config=CONFIG, dtype=dtype).bind(params)
        cross = module.cross_attention_cache(jnp.asarray(memory, dtype), row_major=True)
        known = jnp.arange(43) < jnp.asarray([[43], [20], [1]])
        held, steps = module.init_cache(3, 3, 8, row_major=True), []
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

    for module, name, kernel in (
        (
            kv_cache,
            "decode_attention",
            decode_attention_pallas.decode_attention_kernel,
        ),
        (
            bart,
            "linear_residual_norm",
            linear_residual_norm_pallas.linear_residual_norm_kernel,
        ),
    ):
        monkeypatch.setattr(module, name, interpreted(kernel))
    jax.clear_caches()
    ours = run("bfloat16")
    assert set(calls) == {
        decode_attention_pallas.decode_attention_kernel,
        linear_residual_norm_pallas.linear_residual_norm_kernel,
    }
    assert float(jnp.abs(true).max()) > 1.0
    assert error(ours, true) <= 1.05 * error(plain, true)
