"""The MLP's training kernels against the plain forms, interpreted.

`tests/benchmarks/test_tpu_estimate.py` compiles them for a TPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from florence_jax.ops import norm_mlp_residual_training_pallas as training
from florence_jax.ops import pallas_primitive
from tests.ops.kernel_checks import check_against_float32, draw, error

# The second image's branch is dropped, the third's scaled up.
KEEP = jnp.array([1.0, 0.0, 1.25])


def arguments(dim=256, hidden=1024, side=12):
    maps = (3, side, side, dim)
    x, g, scale, shift, kernel1, bias1, kernel2, bias2 = draw(
        (maps, 2.0),
        (maps, 1.0),
        ((dim,), 1.0),
        ((dim,), 0.3),
        ((dim, hidden), 1.5 * dim**-0.5),
        ((hidden,), 0.3),
        ((hidden, dim), dim**-0.5),
        ((dim,), 0.2),
    )
    return x, g, (scale, shift, kernel1, bias1, kernel2, bias2)


def test_forward():
    x, _, weights = arguments()
    given = (x, KEEP, *weights)
    ours, true = check_against_float32(training.reference, training.forward_kernel, given)
    np.testing.assert_allclose(ours.astype(np.float32), true, rtol=0.02, atol=0.05)
    np.testing.assert_array_equal(ours[1], x[1])


@pytest.mark.parametrize(("dim", "hidden", "side"), [(256, 1024, 12), (128, 640, 16)])
def test_backward(dim, hidden, side):
    """Each gradient is as near to float32's as plain reverse mode's: several blocks and chunks."""
    x, g, weights = arguments(dim, hidden, side)
    wide = [part.astype(jnp.float32) for part in (x, g, KEEP, *weights)]
    true = training.reference_backward(*wide, shards=1)
    plain = training.reference_backward(x, g, KEEP, *weights, shards=1)
    ours = training.backward_kernel(x, g, KEEP, *weights, interpret=True)
    assert jax.tree.map(lambda one: (one.shape, one.dtype), ours) == jax.tree.map(
        lambda one: (one.shape, one.dtype), plain
    )
    for own, other, exact in zip(ours, plain, true, strict=True):
        assert error(own, exact) <= 1.05 * error(other, exact) + 1e-6
        scale = float(jnp.abs(exact).max())
        np.testing.assert_allclose(own.astype(np.float32), exact, rtol=0.02, atol=0.01 * scale)
    np.testing.assert_array_equal(ours[0][1], g[1])


def test_shards_sum_to_the_whole():
    x, g, weights = arguments()
    wide = [part.astype(jnp.float32) for part in (x, g, KEEP, *weights)]
    dx, *parts = training.reference_backward(*wide, shards=3)
    whole_dx, *whole = training.reference_backward(*wide, shards=1)
    np.testing.assert_allclose(dx, whole_dx, rtol=1e-5, atol=1e-4)
    for part, one in zip(parts, whole, strict=True):
        assert part.shape == (3, *one.shape[1:])
        np.testing.assert_allclose(part.sum(0), one[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("form", ["dropped", "whole"])
def test_the_operation_differentiates_as_the_plain_form(form):
    """Without a TPU both are the plain form, in any order of transformations."""
    x, _, weights = arguments(side=8)
    keep = KEEP if form == "dropped" else jnp.ones(3)

    def operation(x, *weights):
        if form == "dropped":
            return training.norm_mlp_residual_dropped(x, keep, *weights)
        return training.norm_mlp_residual(x, *weights)

    def gradients(function):
        def loss(*given):
            return jnp.sum(jnp.sin(function(*given).astype(jnp.float32)))

        return jax.jit(jax.grad(loss, tuple(range(7))))(x, *weights)

    expected = gradients(lambda x, *weights: training.reference(x, keep, *weights))
    for ours, plain in zip(gradients(operation), expected, strict=True):
        assert float(jnp.abs(plain.astype(jnp.float32)).max()) > 0
        assert error(ours, plain.astype(jnp.float32)) <= 0.01 * float(
            jnp.abs(plain.astype(jnp.float32)).max()
        )


def test_what_fits(monkeypatch):
    """Rows that make no blocks, and weights that only some chips have room for."""

    mesh = jax.sharding.AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,))
    assert pallas_primitive.device_kind() == jax.devices()[0].device_kind

    def supported(dim, side, hidden=None, kind="cpu"):
        like = jax.ShapeDtypeStruct((4, side, side, dim), jnp.bfloat16)
        monkeypatch.setattr(pallas_primitive, "device_kind", lambda: kind)
        with jax.sharding.use_abstract_mesh(mesh):
            return training.backward_supported(like, hidden or 4 * dim)

    assert supported(128, 192)
    assert supported(256, 96)
    assert not supported(128, 7)
    assert not supported(512, 48)
    assert not supported(512, 48, kind="TPU v4")
    assert supported(512, 48, kind="TPU v5 lite")
    assert supported(512, 48, kind="TPU v5")
    assert supported(1024, 24, kind="TPU v6 lite")
    assert not supported(1024, 24, kind="TPU v5")
