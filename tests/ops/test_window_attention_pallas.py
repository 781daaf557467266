"""The TPU's kernels for window attention against the plain forms, interpreted.

`tests/benchmarks/test_tpu_estimate.py` compiles it for a TPU.
"""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from florence_jax.model import davit
from florence_jax.ops import window_attention_core_pallas, window_attention_pallas

DIM = 256


def attention(dim=DIM):
    return davit.WindowAttention(dim, dim // 32, 12, True, rngs=nnx.Rngs(0))


def draw(height, width, dim=DIM):
    """A map and the weights, for scores of which some are large."""
    shapes = [(1, height, width, dim), (dim, 3 * dim), (3 * dim,), (dim, dim), (dim,)]
    scales = [1.0, 1.5 * dim**-0.5, 0.3, dim**-0.5, 0.1]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        (scale * jax.random.normal(key, shape)).astype(jnp.bfloat16)
        for key, shape, scale in zip(keys, shapes, scales, strict=True)
    ]


def wide(arrays):
    return [array.astype(jnp.float32) for array in arrays]


def error(ours, true):
    return float(jnp.sqrt(jnp.mean((ours.astype(jnp.float32) - true) ** 2)))


@pytest.fixture
def narrow_strips(monkeypatch):
    monkeypatch.setattr(window_attention_pallas, "_MAX_STRIP_ELEMENTS_PER_ROW", 24 * DIM)


def test_kernel(narrow_strips):
    """Strips above and beside each other, two blocks of channels: no farther from float32's answer
    than the plain form in bfloat16, and wrong nowhere."""
    arguments = draw(24, 48)
    assert window_attention_pallas.tile_width(48, DIM) == 24
    true = window_attention_pallas.reference(*wide(arguments))
    ours = window_attention_pallas.window_attention_kernel(*arguments, interpret=True)
    plain = window_attention_pallas.reference(*arguments)
    assert error(ours, true) <= error(plain, true)
    np.testing.assert_allclose(ours.astype(np.float32), true, rtol=0.02, atol=0.03)
    assert ours.dtype == plain.dtype == jnp.bfloat16


def test_plain_form_is_the_layers():
    """What the kernel is compared with is what every other backend computes."""
    x, qkv_kernel, qkv_bias, proj_kernel, proj_bias = wide(draw(12, 24))
    layer = attention()
    layer.qkv.kernel[...], layer.qkv.bias[...] = qkv_kernel, qkv_bias
    layer.proj.kernel[...], layer.proj.bias[...] = proj_kernel, proj_bias
    plain = window_attention_pallas.reference(x, qkv_kernel, qkv_bias, proj_kernel, proj_bias)
    np.testing.assert_allclose(plain, layer(x), rtol=1e-4, atol=1e-5)


def draw_core():
    """Projections with some large scores, and a cotangent."""
    keys = jax.random.split(jax.random.key(1), 2)
    qkv = 1.5 * jax.random.normal(keys[0], (1, 24, 48, 3 * DIM))
    return [
        part.astype(jnp.bfloat16) for part in (qkv, jax.random.normal(keys[1], (1, 24, 48, DIM)))
    ]


@pytest.fixture
def narrow_core_strips(monkeypatch):
    """Strips beside each other, and channels in two groups."""
    monkeypatch.setattr(window_attention_core_pallas, "_MAX_CHANNELS", DIM // 2)
    monkeypatch.setattr(window_attention_core_pallas, "_MAX_STRIP_ELEMENTS_PER_ROW", 12 * DIM)


def test_core_kernel(narrow_core_strips):
    qkv, _ = draw_core()
    true = window_attention_core_pallas.reference(*wide([qkv]))
    ours = window_attention_core_pallas.forward_kernel(qkv, interpret=True)
    assert error(ours, true) <= error(window_attention_core_pallas.reference(qkv), true)
    np.testing.assert_allclose(ours.astype(np.float32), true, rtol=0.02, atol=0.03)


def test_backward_kernel(narrow_core_strips):
    """Nearer to float32's gradients of queries, keys and values than the plain form's."""
    arguments = draw_core()
    true = window_attention_core_pallas.reference_backward(*wide(arguments))
    ours = window_attention_core_pallas.backward_kernel(*arguments, interpret=True)
    plain = window_attention_core_pallas.reference_backward(*arguments)
    for part in range(3):
        own = slice(part * DIM, (part + 1) * DIM)
        assert error(ours[..., own], true[..., own]) <= error(plain[..., own], true[..., own])
    np.testing.assert_allclose(ours.astype(np.float32), true, rtol=0.02, atol=0.06)


def gradients(form, arguments):
    def loss(*arguments):
        return jnp.sum(jnp.sin(form(*arguments).astype(jnp.float32)))

    # As one program each: what is compiled apart is rounded apart.
    return jax.jit(jax.grad(loss, tuple(range(len(arguments)))))(*arguments)


def test_gradients_are_the_plain_forms():
    """In float32, where the forms differ by rounding only; on CPU the core is the plain form."""
    arguments = wide(draw(12, 24))
    ours = gradients(window_attention_core_pallas.window_attention, arguments)
    plain = gradients(window_attention_pallas.reference, arguments)
    for one, other in zip(ours, plain, strict=True):
        assert float(jnp.abs(other).max()) > 0
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(jnp.abs(other).max()))


def test_it_is_mapped_as_the_plain_form():
    arguments = draw(12, 24)
    maps = jnp.stack([arguments[0], -arguments[0]])

    def mapped(form):
        return jax.vmap(form, (0, *[None] * 4))(maps, *arguments[1:])

    np.testing.assert_array_equal(
        mapped(window_attention_core_pallas.window_attention),
        mapped(window_attention_pallas.reference),
    )


def test_one_program_for_several_platforms():
    layer = attention()
    x_BHWC = draw(12, 24)[0]
    program = jax.export.export(jax.jit(layer), platforms=["cpu", "cuda", "tpu"])(x_BHWC)
    assert "tpu_custom_call" in program.mlir_module()
    again = jax.export.deserialize(program.serialize())
    np.testing.assert_array_equal(again.call(x_BHWC), jax.jit(layer)(x_BHWC))


def lowered(layer, platform, *, shape=(1, 12, 24, DIM), dtype=jnp.bfloat16, grad=False):
    def run(x):
        return jnp.sum(jnp.square(layer(x).astype(jnp.float32)))

    x = jax.ShapeDtypeStruct(shape, dtype)
    traced = jax.jit(jax.grad(run) if grad else run).trace(x)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_only_tpu_is_given_the_kernel():
    for platform, given in (("tpu", True), ("cpu", False), ("cuda", False)):
        assert ("tpu_custom_call" in lowered(attention(), platform)) == given


def kernels_in(text):
    return sorted(re.findall(r'kernel_name = "(\w+)"', text))


def test_training_runs_the_core_forward_and_backward():
    adapted = attention()
    adapted.qkv.adapter = lambda x: jnp.concatenate([x, x, x], axis=-1)
    for layer in (attention(), adapted):
        assert kernels_in(lowered(layer, "tpu", grad=True)) == [
            "window_attention_core",
            "window_attention_core_backward",
        ]


def test_layers_that_the_fused_kernel_cannot_take_run_the_core():
    adapted = attention()
    adapted.proj.adapter = lambda x: x
    assert kernels_in(lowered(adapted, "tpu")) == ["window_attention_core"]
    # The weights of 1024 channels do not fit in VMEM.
    wide = lowered(attention(1024), "tpu", shape=(1, 12, 24, 1024))
    assert kernels_in(wide) == ["window_attention_core"]


def test_what_the_kernel_cannot_take_goes_without():
    for other in ({"dtype": jnp.float32}, {"shape": (1, 12, 36, DIM)}):  # an odd number of windows
        assert "tpu_custom_call" not in lowered(attention(), "tpu", **other)


def test_a_map_with_padding_is_padded_first():
    """47 columns are padded to 48 behind the norm, and cut off again."""
    text = lowered(attention(), "tpu", shape=(1, 11, 47, DIM))
    assert "tpu_custom_call" in text
    assert "1x12x48x256" in text
