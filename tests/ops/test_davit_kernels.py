"""The TPU's kernels for the depthwise convolution and the MLP against the plain forms, interpreted.

`tests/benchmarks/test_tpu_estimate.py` compiles them for a TPU.
"""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from florence_jax.config import base
from florence_jax.model import davit, layers
from florence_jax.ops import depthwise_conv_pallas, depthwise_conv_xla, norm_mlp_residual_pallas
from florence_jax.sharding.activations import batch_is_local
from tests.ops.kernel_checks import check_against_float32, draw

DIM = 256


def draw_depthwise(height=24, width=16):
    return draw(((2, height, width, DIM), 1.0), ((3, 3, 1, DIM), 0.3), ((DIM,), 0.2))


def draw_mlp(tokens, dim=DIM, hidden=4 * DIM):
    return draw(
        ((tokens, dim), 2.0),
        ((dim,), 1.0),
        ((dim,), 0.3),
        ((dim, hidden), 1.5 * dim**-0.5),
        ((hidden,), 0.3),
        ((hidden, dim), dim**-0.5),
        ((dim,), 0.2),
    )


DEPTHWISE = (
    depthwise_conv_xla.depthwise_conv_xla,
    depthwise_conv_pallas.depthwise_conv_kernel,
    depthwise_conv_pallas.depthwise_conv_pallas,
)
MLP = (
    norm_mlp_residual_pallas.reference,
    norm_mlp_residual_pallas.norm_mlp_residual_kernel,
    norm_mlp_residual_pallas.norm_mlp_residual,
)


@pytest.mark.parametrize("rows", [24, 8, 4])
def test_depthwise(rows, monkeypatch):
    """Strips that reach both edges of the map, one edge, none."""
    monkeypatch.setattr(depthwise_conv_pallas, "_MAX_TILE_ELEMENTS", rows * 16 * DIM)
    arguments = draw_depthwise()
    assert depthwise_conv_pallas.tile_rows(24, 16, DIM) == rows
    ours, true = check_against_float32(*DEPTHWISE[:2], arguments)
    # Summed in float32 and rounded once.
    np.testing.assert_allclose(ours.astype(np.float32), true, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "hidden", "parts"),
    [(512, 1024, 1), (700, 1024, 1), (40, 1024, 1), (512, 1024, 2), (40, 640, 1), (40, 640, 5)],
)
def test_mlp(tokens, hidden, parts, monkeypatch):
    """Rows that fill the steps and that do not; hidden channels at once, in chunks, in turns."""
    if parts > 1:
        room = norm_mlp_residual_pallas._bytes(min(512, tokens), DIM, hidden // parts)
        monkeypatch.setattr(norm_mlp_residual_pallas, "VMEM_BUDGET_BYTES", room)
    ours, true = check_against_float32(*MLP[:2], draw_mlp(tokens, hidden=hidden))
    np.testing.assert_allclose(ours.astype(np.float32), true, rtol=0.02, atol=0.05)


@functools.cache
def parts_of_block():
    return nnx.split(davit.SpatialBlock(base().vision, 1, rngs=nnx.Rngs(0)))


def spatial_block():
    """A block of its own for each test."""
    return nnx.merge(*parts_of_block())


def test_plain_forms_are_the_layers():
    """What the kernels are compared with is what every other backend computes."""
    x, scale, shift, kernel1, bias1, kernel2, bias2 = (
        array.astype(jnp.float32) for array in draw_mlp(40)
    )
    norm, mlp = layers.LayerNorm(DIM), layers.MLP(DIM, 4 * DIM, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = scale, shift
    mlp.fc1.kernel[...], mlp.fc1.bias[...] = kernel1, bias1
    mlp.fc2.kernel[...], mlp.fc2.bias[...] = kernel2, bias2
    plain = norm_mlp_residual_pallas.reference(x, scale, shift, kernel1, bias1, kernel2, bias2)
    np.testing.assert_array_equal(plain, x + mlp(norm(x)))


def test_a_block_hands_its_weights_to_the_kernel():
    """Of the block itself, in the order that the kernel takes them."""
    block = spatial_block()
    # Biases and norms other than at initialisation, where they are all zeros and ones.
    for number, norm_or_linear in enumerate((block.norm2, block.mlp.fc1, block.mlp.fc2)):
        bias = norm_or_linear.bias
        bias[...] = 0.3 * jax.random.normal(jax.random.key(number), bias[...].shape)
    block.norm2.scale[...] = 1.0 + jnp.arange(DIM) / DIM
    x = jax.random.normal(jax.random.key(3), (1, 24, 24, DIM))
    expected = x + block.mlp_branch(x)
    np.testing.assert_allclose(block._mlp_residual_pallas(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("forms", "drawn"), [(DEPTHWISE, lambda: draw_depthwise(8, 8)), (MLP, lambda: draw_mlp(16))]
)
def test_gradients_and_maps_are_the_plain_forms(forms, drawn):
    (plain, _, operation), arguments = forms, drawn()

    def gradients(form):
        def loss(*arguments):
            return jnp.sum(jnp.sin(form(*arguments).astype(jnp.float32)))

        return jax.jit(jax.grad(loss, tuple(range(len(arguments)))))(*arguments)

    for ours, expected in zip(gradients(operation), gradients(plain), strict=True):
        assert float(jnp.abs(expected.astype(jnp.float32)).max()) > 0
        np.testing.assert_array_equal(ours, expected)
    two = jnp.stack([arguments[0], -arguments[0]])
    axes = (0, *[None] * (len(arguments) - 1))
    mapped, expected = (jax.vmap(form, axes)(two, *arguments[1:]) for form in (operation, plain))
    np.testing.assert_array_equal(mapped, expected)


KERNELS = ("depthwise_conv", "window_attention", "norm_mlp_residual")


def lowered(block, platform, *, shape=(1, 24, 24, DIM), dtype=jnp.bfloat16, drop=None):
    """The program of a block for a platform."""
    traced = jax.jit(lambda x: block(x, drop)).trace(jax.ShapeDtypeStruct(shape, dtype))
    return traced.lower(lowering_platforms=(platform,)).as_text()


def count(text):
    """How many of each kernel are in a program."""
    return {name: text.count(f'kernel_name = "{name}"') for name in KERNELS}


def kernels(block, platform, **options):
    return count(lowered(block, platform, **options))


ALL, NONE = dict(zip(KERNELS, (2, 1, 1), strict=True)), dict.fromkeys(KERNELS, 0)


def test_only_tpu_is_given_the_kernels():
    assert kernels(spatial_block(), "tpu") == ALL
    for platform in ("cpu", "cuda"):
        assert kernels(spatial_block(), platform) == NONE


def test_what_the_kernels_cannot_take_goes_without():
    adapted = spatial_block()
    adapted.mlp.fc2.adapter = lambda x: x[:, :DIM]
    assert kernels(adapted, "tpu") == {**ALL, "norm_mlp_residual": 0}
    assert kernels(spatial_block(), "tpu", dtype=jnp.float32) == NONE
    # Columns that fill no register and make no pair of windows, and rows that make no strips.
    narrow = kernels(spatial_block(), "tpu", shape=(1, 24, 12, DIM))
    assert narrow == {"depthwise_conv": 0, "window_attention": 0, "norm_mlp_residual": 1}
    assert kernels(spatial_block(), "tpu", shape=(1, 97, 24, DIM)) == {**ALL, "depthwise_conv": 0}
    dropped = davit.DropPath((0.1, 0.1), jax.random.split(jax.random.key(0), (2, 2)))
    text = lowered(spatial_block(), "tpu", drop=dropped)
    assert count(text) == {**ALL, "norm_mlp_residual": 0}
    assert text.count('kernel_name = "norm_mlp_residual_forward"') == 1
    # Rows that make no blocks.
    odd = kernels(spatial_block(), "tpu", drop=dropped, shape=(1, 12, 4, DIM))
    assert odd == {"depthwise_conv": 0, "window_attention": 0, "norm_mlp_residual": 0}


@pytest.mark.parametrize(
    ("mesh", "rows", "local"),
    [
        ({"data": 1}, 1, True),
        ({"data": 2}, 2, True),
        ({"data": 2, "fsdp": 2, "tensor": 1}, 4, True),
        ({"data": 2}, 3, False),
        ({"data": 2, "tensor": 2}, 4, False),
    ],
)
def test_each_device_runs_the_kernels_on_its_rows(mesh, rows, local):
    """Where a mesh divides nothing else, and all devices get as many."""
    axes = (jax.sharding.AxisType.Auto,) * len(mesh)
    abstract = jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=axes)
    with jax.sharding.use_abstract_mesh(abstract):
        assert batch_is_local(rows) == local
        text = lowered(spatial_block(), "tpu", shape=(rows, 24, 24, DIM))
    assert count(text) == (ALL if local else NONE)
    # Each of one row, whatever the number of devices.
    own = re.findall(r"manual_computation.*manual_axes=.*?%arg\d+: tensor<(\w+)xbf16>", text)
    assert own == (["1x24x24x256"] * 4 if local and abstract.size > 1 else [])


def test_without_a_mesh_several_devices_go_without(monkeypatch):
    """What lies on all of them is not told apart from what lies on one."""
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert kernels(spatial_block(), "tpu") == NONE


def test_one_program_for_several_platforms():
    block = spatial_block()
    (x,) = draw(((1, 24, 24, DIM), 1.0))
    compute = jax.jit(lambda x: block(x))
    program = jax.export.export(compute, platforms=["cpu", "cuda", "tpu"])(x)
    assert program.mlir_module().count("tpu_custom_call") >= 3
    again = jax.export.deserialize(program.serialize())
    answers = (f(x).astype(np.float32) for f in (again.call, compute))
    np.testing.assert_allclose(*answers, rtol=0.02, atol=0.05)
