"""The hooks for code that knows no mesh, where the compiler divides badly by itself.

Without a mesh (`using`) it does nothing, so a module never knows whether there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec, get_abstract_mesh

from florence_jax.sharding.mesh import batch_axes, batch_parts


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` divided by mesh axes, one a dimension; "batch" means all axes that divide batches.

    Dimensions left out are whole. An axis that the mesh lacks, or that does not divide the
    dimension, is left out.
    """
    mesh = get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or math.prod(mesh.axis_sizes) == 1:
        return x
    entries: list[tuple[str, ...] | None] = []
    for size, axis in zip(x.shape, axes, strict=False):
        names: tuple[str, ...] = batch_axes(mesh) if axis == "batch" else ()
        if axis is not None and axis in mesh.shape:
            names = (axis,)
        parts = math.prod(mesh.shape[name] for name in names)
        entries.append(names if parts > 1 and size % parts == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))


def by_rows(
    function: Callable[..., Any], *arrays: jax.Array, whole: Sequence[jax.Array] = ()
) -> Any:
    """`function(*arrays, *whole)` for each entry of the arrays' first axis alone, device by device.

    For what the compiler does not divide: it would collect a `top_k` or a scatter of all devices'
    rows on each of them, and cannot cut a kernel at all. Every device has all of `whole`.
    """
    mesh = get_abstract_mesh()
    # Where axes are manual, `arrays` are one device's already.
    parts = 1 if mesh.empty or mesh.manual_axes else batch_parts(mesh)
    if parts == 1 or any(array.shape[0] % parts for array in arrays):
        return function(*arrays, *whole)
    rows = PartitionSpec(batch_axes(mesh))
    given = (*(rows for _ in arrays), *(PartitionSpec() for _ in whole))
    divided = jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=rows, check_vma=False)
    return divided(*arrays, *whole)


def axis_size(axis: str) -> int:
    """Devices along an axis of the mesh; 1 without one."""
    return get_abstract_mesh().shape.get(axis, 1)


def rows_are_local(batch: int) -> bool:
    """Whether `by_rows` gives each device its own of so many rows, and all of what they need.

    Not where heads are divided (`tensor`), and not without a mesh where there are several devices,
    as inputs may then lie on any of them, in any way.
    """
    mesh = get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    if mesh.manual_axes:
        return set(mesh.manual_axes) == set(mesh.axis_names)
    parts = batch_parts(mesh)
    return mesh.size == parts and batch % parts == 0
