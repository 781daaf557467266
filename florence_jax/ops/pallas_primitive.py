"""Turn a TPU kernel into a JAX primitive: dispatched by platform, differentiable, sharded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh, get_abstract_mesh, use_abstract_mesh

from florence_jax.sharding.activations import batch_is_local, map_batch_shards

# A vector register holds 128 neighbouring values of the last axis (lanes) by 8 float32 rows
# (sublanes); XLA:TPU pads the last axis of every array to whole lanes.
LANES, SUBLANES = 128, 8
# Every TPU generation gives a kernel 16 MiB of VMEM unless it asks for more; temporaries take the
# rest.
VMEM_BUDGET_BYTES = 12 * 2**20

# VMEM of a core by the kind of device; chips that are not here have 16 MiB.
_VMEM_BYTES = {
    "TPU v5 lite": 128 * 2**20,
    "TPU v5e": 128 * 2**20,
    "TPU v5": 64 * 2**20,
    "TPU v5p": 64 * 2**20,
    "TPU v6 lite": 128 * 2**20,
    "TPU v6e": 128 * 2**20,
    "TPU7x": 64 * 2**20,
}

Options = tuple[tuple[str, Hashable], ...]


def make_pallas_primitive(
    name: str, reference: Callable[..., Any], kernel: Callable[..., Any], batched_args: int = 1
) -> Callable[..., Any]:
    """Make an operation that runs `kernel` on TPUs, and `reference` elsewhere and when transformed.

    The operation is a primitive because a program for several platforms (`jax.export`) holds every
    branch for each of them, and Pallas cannot lower a TPU kernel for a CPU. Differentiation and
    `jax.vmap` use the reference. On a mesh that divides the batch, each device runs the kernel on
    its own rows (see `batch_is_local`).

    Args:
        name: the primitive's name.
        reference: takes `batched_args` arrays with a leading batch axis, then weights, then keyword
            options; returns one array or a tuple of arrays with a leading batch axis.
        kernel: the same signature, for TPUs.
        batched_args: how many of the leading arguments have a batch axis.

    Returns:
        A function with the signature of `reference`.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def plain(options: Options) -> Callable[..., tuple[jax.Array, ...]]:
        return lambda *arguments: _as_tuple(reference(*arguments, **dict(options)))

    # Lowering knows neither the mesh that an operation was traced in nor its axes that were manual.
    def call(*arguments: jax.Array, **options: Hashable) -> Any:
        results = primitive.bind(
            *arguments, mesh=get_abstract_mesh(), options=tuple(options.items())
        )
        return tuple(results) if len(results) > 1 else results[0]

    def shapes(*arguments: Any, mesh: AbstractMesh, options: Options) -> tuple[Any, ...]:
        given = (jax.ShapeDtypeStruct(one.shape, one.dtype) for one in arguments)
        results = jax.eval_shape(plain(options), *given)
        return tuple(ShapedArray(one.shape, one.dtype) for one in results)

    def anywhere(
        *arguments: jax.Array, mesh: AbstractMesh, options: Options
    ) -> tuple[jax.Array, ...]:
        return plain(options)(*arguments)

    def on_tpu(
        *arguments: jax.Array, mesh: AbstractMesh, options: Options
    ) -> tuple[jax.Array, ...]:
        with use_abstract_mesh(mesh):
            own = functools.partial(kernel, **dict(options))
            return _as_tuple(
                map_batch_shards(
                    own, *arguments[:batched_args], replicated=arguments[batched_args:]
                )
            )

    def derivative(
        primals: Sequence[Any], tangents: Sequence[Any], *, mesh: AbstractMesh, options: Options
    ) -> tuple[Any, Any]:
        tangents = tuple(map(ad.instantiate_zeros, tangents))
        return jax.jvp(plain(options), tuple(primals), tangents)

    def batched(
        arguments: Sequence[Any], axes: Sequence[Any], *, mesh: AbstractMesh, options: Options
    ) -> tuple[Any, Any]:
        results = jax.vmap(plain(options), tuple(axes))(*arguments)
        return results, (0,) * len(results)

    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("mesh", "options")))
    primitive.def_abstract_eval(shapes)
    mlir.register_lowering(primitive, mlir.lower_fun(anywhere, multiple_results=True))
    lowered = mlir.lower_fun(on_tpu, multiple_results=True)
    mlir.register_lowering(primitive, lowered, platform="tpu")
    ad.primitive_jvps[primitive] = derivative
    batching.primitive_batchers[primitive] = batched
    return call


def vmem_bytes() -> int:
    """VMEM of a core of the device that is traced for."""
    return _VMEM_BYTES.get(device_kind(), 16 * 2**20)


def device_kind() -> str:
    """The kind of device that is traced for: the mesh's, or the default one."""
    device = get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def rows_fill_registers(x_BKD: jax.Array) -> bool:
    """Whether a step's activations are bfloat16 of whole lanes, each example's on one device."""
    whole = x_BKD.shape[-1] % LANES == 0
    return whole and x_BKD.dtype == jnp.bfloat16 and batch_is_local(x_BKD.shape[0])


def _as_tuple(results: Any) -> tuple[jax.Array, ...]:
    return results if isinstance(results, tuple) else (results,)
