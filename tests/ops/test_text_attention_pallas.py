"""The TPU's kernels for BART's attention against the plain form, interpreted."""

import dataclasses
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from florence_jax.config import PRESETS
from florence_jax.model import bart
from florence_jax.ops import text_attention_pallas as kernels
from tests.ops.kernel_checks import draw, error

HEADS, DIM = 4, 256


def arguments(queries, keys, *, dropped, batch=2):
    q, k, v = draw(
        ((batch, queries, DIM), 2.0), ((batch, keys, DIM), 1.0), ((batch, keys, DIM), 1.0)
    )
    # The second example's last keys are padding.
    mask = jnp.arange(keys) < jnp.array([keys, keys - 3])[:, None]
    kept = jax.random.bernoulli(jax.random.key(2), 0.75, (batch, HEADS, queries, keys))
    return q, k, v, mask, *([kept] if dropped else [])


CASES = [
    # Rows and keys that fill no register, one block of rows and several.
    pytest.param(37, 37, False, False, id="encoder"),
    pytest.param(37, 37, False, True, id="encoder with dropout"),
    pytest.param(300, 61, False, True, id="cross"),
    pytest.param(272, 272, True, False, id="causal"),
    pytest.param(272, 272, True, True, id="causal with dropout"),
]


@pytest.mark.parametrize(("queries", "keys", "causal", "dropped"), CASES)
def test_forward(queries, keys, causal, dropped):
    options = {"num_heads": HEADS, "causal": causal, "dropout_rate": 0.25 if dropped else 0.0}
    given = arguments(queries, keys, dropped=dropped)
    true = kernels.reference(
        *(part.astype(jnp.float32) for part in given[:3]), *given[3:], **options
    )
    plain = kernels.reference(*given, **options)
    ours = kernels.forward_kernel(*given, interpret=True, **options)
    assert (ours.dtype, ours.shape) == (plain.dtype, plain.shape)
    # The same roundings in another order.
    assert error(ours, true) <= 1.02 * error(plain, true)
    np.testing.assert_allclose(ours.astype(np.float32), true, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("queries", "keys", "causal", "dropped"), CASES)
def test_backward(queries, keys, causal, dropped):
    """Each gradient is as near to float32's as the plain form's."""
    options = {"num_heads": HEADS, "causal": causal, "dropout_rate": 0.25 if dropped else 0.0}
    q, k, v, mask, *kept = arguments(queries, keys, dropped=dropped)
    (g,) = draw((q.shape, 1.0))
    wide = [part.astype(jnp.float32) for part in (q, k, v, g)]
    true = kernels.reference_backward(*wide[:3], mask, wide[3], *kept, **options)
    plain = kernels.reference_backward(q, k, v, mask, g, *kept, **options)
    ours = kernels.backward_kernel(q, k, v, mask, g, *kept, interpret=True, **options)
    for own, other, exact in zip(ours, plain, true, strict=True):
        assert own.dtype == jnp.bfloat16
        assert error(own, exact) <= 1.05 * error(other, exact)
        scale = float(jnp.abs(exact).max())
        np.testing.assert_allclose(own.astype(np.float32), exact, rtol=0.02, atol=0.01 * scale)


def layer(dim=DIM):
    config = dataclasses.replace(
        PRESETS["tiny"]().text,
        d_model=dim,
        encoder_attention_heads=HEADS,
        attention_dropout=0.25,
    )
    return bart.Attention(config, num_heads=HEADS, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_has_the_layers_arguments(causal, monkeypatch):
    """The layer's own call by the kernel: the same heads, mask, scale and draw of dropout."""
    attention, key = layer(), jax.random.key(5)
    (x,) = draw(((2, 24, DIM), 1.0))
    mask = None if causal else jnp.arange(24) < jnp.array([24, 20])[:, None]

    def call():
        return attention(x, attention.key_value(x), mask, causal=causal, key=key)

    plain = call()
    monkeypatch.setattr(bart.lax, "platform_dependent", lambda *given, tpu, default: tpu(*given))
    np.testing.assert_allclose(
        call().astype(np.float32), plain.astype(np.float32), rtol=0.02, atol=0.02
    )


def lowered(platform, *, dtype=jnp.bfloat16, dim=DIM, gradient=True):
    attention = layer(dim)

    def run(x):
        def loss(x):
            y = attention(x, attention.key_value(x), None, causal=True, key=jax.random.key(0))
            return jnp.square(y.astype(jnp.float32)).sum()

        return jax.grad(loss)(x) if gradient else loss(x)

    traced = jax.jit(run).trace(jax.ShapeDtypeStruct((2, 24, dim), dtype))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return set(re.findall(r'kernel_name = "(\w+)"', text))


def test_only_tpu_is_given_the_kernels():
    both = {"text_attention", "text_attention_backward"}
    assert lowered("tpu") == both
    assert lowered("tpu", gradient=False) == {"text_attention"}
    for platform in ("cpu", "cuda"):
        assert lowered(platform) == set()
    assert lowered("tpu", dtype=jnp.float32) == set()
    # A head's channels that make no whole register.
    assert lowered("tpu", dim=192) == set()
