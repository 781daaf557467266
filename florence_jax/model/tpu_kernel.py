"""What a TPU kernel needs around it to be an operation like any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh, get_abstract_mesh, use_abstract_mesh

from florence_jax.sharding.activations import by_rows


def tpu_operation(
    name: str, plain_form: Callable[..., jax.Array], kernel: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """`kernel` on TPUs; on other platforms, differentiated or mapped over, `plain_form`.

    Both take an array of rows and weights, and return an array like the first. On a mesh that
    divides the rows each device runs the kernel on its own (see `rows_are_local`).

    A primitive of our own, and not the kernel alone: a program for several platforms (`jax.export`)
    holds every branch for each of them, and Pallas refuses to be written down for a CPU.
    """
    primitive = Primitive(name)

    # Lowering knows neither the mesh that an operation was traced in nor its axes that were manual.
    def call(rows: jax.Array, *weights: jax.Array) -> jax.Array:
        return primitive.bind(rows, *weights, mesh=get_abstract_mesh())

    def anywhere(*arguments: jax.Array, mesh: AbstractMesh) -> jax.Array:
        return plain_form(*arguments)

    def on_tpu(rows: jax.Array, *weights: jax.Array, mesh: AbstractMesh) -> jax.Array:
        with use_abstract_mesh(mesh):
            return by_rows(kernel, rows, whole=weights)

    def derivative(
        primals: Sequence[Any], tangents: Sequence[Any], *, mesh: AbstractMesh
    ) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(plain_form, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))

    def batched(
        arguments: Sequence[Any], axes: Sequence[int | None], *, mesh: AbstractMesh
    ) -> tuple[jax.Array, int]:
        return jax.vmap(plain_form, tuple(axes))(*arguments), 0

    primitive.def_impl(jax.jit(primitive.bind, static_argnames="mesh"))
    primitive.def_abstract_eval(lambda rows, *weights, mesh: rows)
    mlir.register_lowering(primitive, mlir.lower_fun(anywhere, multiple_results=False))
    lowered = mlir.lower_fun(on_tpu, multiple_results=False)
    mlir.register_lowering(primitive, lowered, platform="tpu")
    ad.primitive_jvps[primitive] = derivative
    batching.primitive_batchers[primitive] = batched
    return call
