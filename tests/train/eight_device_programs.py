"""Small programs compiled for eight devices of this host; prints their HLO as one JSON object."""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def array(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


def sgd_step(weights, inputs):
    """Six layers in a scan; its gradient has a loop forward and a loop back."""

    def loss(weights):
        hidden, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), inputs, weights)
        return (hidden**2).mean()

    return weights - 0.1 * jax.grad(loss)(weights)


def per_device(function, in_specs, out_specs):
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def until_large(x):
    return jax.lax.while_loop(lambda x: x.sum() < 1000.0, lambda x: x * 1.5, x)


ring = [(here, (here + 1) % 4) for here in range(4)]
sizes, inputs = (6, 256, 256), array((64, 256), ("data", "fsdp"))
programs = {
    "data parallel": (sgd_step, array(sizes), inputs),
    "fsdp": (sgd_step, array(sizes, None, "fsdp"), inputs),
    "permute": (
        per_device(lambda x: jax.lax.ppermute(x, "fsdp", ring), P("fsdp"), P("fsdp")),
        array((512, 256), "fsdp"),
    ),
    "all to all": (
        per_device(lambda x: jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True), P("fsdp"), P("fsdp")),
        array((512, 256), "fsdp"),
    ),
    "scatter": (
        per_device(
            lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True),
            P(None, "data"),
            P("fsdp", "data"),
        ),
        array((512, 256), None, "data"),
    ),
    "while": (until_large, array((512, 256), "fsdp")),
    "alone": (lambda x: x * 2.0, array((512, 256), "fsdp")),
}
print(json.dumps({k: jax.jit(f).lower(*a).compile().as_text() for k, (f, *a) in programs.items()}))
