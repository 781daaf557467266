"""What a TPU kernel needs around it to be an operation like any other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh, get_abstract_mesh, use_abstract_mesh

from florence_jax.sharding.activations import by_rows

# What share a register: neighbouring values of the last axis, and rows of float32.
LANES, SUBLANES = 128, 8
# Bytes of the 16 MiB that a kernel may use on every generation of TPUs, less what temporaries take.
ROOM = 12 * 2**20

Options = tuple[tuple[str, Hashable], ...]


def tpu_operation(
    name: str, plain_form: Callable[..., Any], kernel: Callable[..., Any], rows: int = 1
) -> Callable[..., Any]:
    """`kernel` on TPUs; on other platforms, differentiated or mapped over, `plain_form`.

    Both take so many arrays of `rows`, then weights, and options; they return an array of rows, or
    a tuple of them. On a mesh that divides the rows each device runs the kernel on its own (see
    `rows_are_local`).

    A primitive of our own, and not the kernel alone: a program for several platforms (`jax.export`)
    holds every branch for each of them, and Pallas refuses to be written down for a CPU.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def plain(options: Options) -> Callable[..., tuple[jax.Array, ...]]:
        return lambda *arguments: _several(plain_form(*arguments, **dict(options)))

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
            return _several(by_rows(own, *arguments[:rows], whole=arguments[rows:]))

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


def _several(results: Any) -> tuple[jax.Array, ...]:
    return results if isinstance(results, tuple) else (results,)
