"""Sharding hooks inside the model, for operations that the compiler divides badly by itself.

Without a mesh (`use_mesh`) it does nothing, so a module never knows whether there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec, get_abstract_mesh

from florence_jax.sharding.mesh import batch_axes, batch_parts


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain `x` to be divided by mesh axes, one per dimension; "batch" means all batch axes.

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


def map_batch_shards(
    function: Callable[..., Any], *arrays: jax.Array, replicated: Sequence[jax.Array] = ()
) -> Any:
    """Run `function(*arrays, *replicated)` on each device's own shard of the batch.

    The compiler would gather all rows of a `top_k` or a scatter on every device, and cannot divide
    a Pallas kernel at all. `function` must treat the rows of the first axis independently.
    """
    mesh = get_abstract_mesh()
    # If axes are manual, `arrays` are one device's shards already.
    parts = batch_shards()
    if parts == 1 or any(array.shape[0] % parts for array in arrays):
        return function(*arrays, *replicated)
    rows = PartitionSpec(batch_axes(mesh))
    given = (*(rows for _ in arrays), *(PartitionSpec() for _ in replicated))
    divided = jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=rows, check_vma=False)
    return divided(*arrays, *replicated)


def batch_shards() -> int:
    """The number of shards that `map_batch_shards` makes of a batch that they divide."""
    mesh = get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else batch_parts(mesh)


def axis_size(axis: str) -> int:
    """The number of devices along an axis of the mesh; 1 without a mesh."""
    return get_abstract_mesh().shape.get(axis, 1)


def batch_is_local(batch: int) -> bool:
    """Whether each device holds whole rows of a batch of this size and all weights they need.

    False on a mesh that divides heads (`tensor`), and with several devices but no mesh, where
    inputs may be placed in any way.
    """
    mesh = get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    if mesh.manual_axes:
        return set(mesh.manual_axes) == set(mesh.axis_names)
    parts = batch_parts(mesh)
    return mesh.size == parts and batch % parts == 0
